"""Which tests run a line of the package, by coverage.py."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from coverage import CoverageData


class Covering:
    """What was measured of tests with ``--cov-context=test`` and the package at ``package``."""

    def __init__(self, package: Path, measured: Path) -> None:
        data = CoverageData(str(measured))
        data.read()
        self._sizes: Counter[str] = Counter()
        self._lines: dict[str, dict[int, set[str]]] = {}
        for file in data.measured_files():
            lines = {
                # Without the phase of the test: a fixture runs the package too.
                line: {context.rpartition("|")[0] for context in contexts} - {""}
                for line, contexts in data.contexts_by_lineno(file).items()
            }
            self._lines[Path(file).relative_to(package).as_posix()] = lines
            for tests in lines.values():
                self._sizes.update(tests)

    def tests(self, file: str, line: int) -> list[str]:
        """The ids of the tests that run the statement of the line; first those that run little of
        the package, which are fast and say most about it.
        """
        lines = self._lines.get(file, {})
        # A statement is measured by its first line.
        starts = [start for start in lines if start <= line]
        found = lines[max(starts)] if starts else set()
        return sorted(found, key=lambda test: (self._sizes[test], test))
