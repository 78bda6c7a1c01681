"""The fixture of every application's tests."""

from collections.abc import Iterator

import pytest
from applications.runs import Runs, both


@pytest.fixture(scope="class")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Both runs of the class's application."""
    with both(request.cls.application) as runs:
        yield runs
