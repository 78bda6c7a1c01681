"""Fixtures for the tests of the wire format."""

import pytest

from otel_sse.wire import parser


@pytest.fixture(autouse=True)
def _cold() -> None:
    """No test depends on the event lines that an earlier one has shown."""
    parser._known_lines.clear()
