"""Fixtures for the tests of the wire format."""

import pytest

from otel_sse import scanner


@pytest.fixture(autouse=True)
def _cold() -> None:
    """No test depends on the event lines that an earlier one has shown."""
    scanner._known_lines.clear()
