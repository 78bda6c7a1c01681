"""Runs pytest for one mutant.

``python child.py IDS ARGUMENT ...``: IDS is a file with the ids of the tests to run, in this
order; an empty one runs all. A property that fails does so at once: no smaller example is sought.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


class _Chosen:
    def __init__(self, ids: list[str]) -> None:
        self._places = {name: place for place, name in enumerate(ids)}

    @staticmethod
    def pytest_configure() -> None:
        # Not before pytest, which rewrites the assertions of its plugin.
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", phases=phases, database=None)
        settings.load_profile("mutants")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Iterator[None]:
        yield
        if places := self._places:
            items[:] = [item for item in items if item.nodeid in places]
            items.sort(key=lambda item: places[item.nodeid])


if __name__ == "__main__":
    spec = importlib.util.find_spec("otel_sse")
    assert spec is not None
    assert str(spec.origin).startswith(os.environ["PYTHONPATH"]), spec.origin
    chosen = _Chosen(Path(sys.argv[1]).read_text().split("\n")[:-1])
    sys.exit(pytest.main(sys.argv[2:], plugins=[chosen]))
