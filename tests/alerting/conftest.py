"""The tests of the alerts share one episode with all processes."""

from collections.abc import Iterator

import pytest
from alerting.episode import Episode, played


@pytest.fixture(scope="session")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Episode]:
    with played(tmp_path_factory.mktemp("episode")) as played_once:
        yield played_once
