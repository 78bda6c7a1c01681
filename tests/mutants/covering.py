"""Which tests run a line of the package, by coverage.py."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from coverage import Coverage


class Covering:
    """What was measured of tests with ``--cov-context=test`` and the package at ``package``."""

    def __init__(self, package: Path, measured: Path) -> None:
        coverage = Coverage(data_file=measured)
        coverage.load()
        data = coverage.get_data()
        self._sizes: Counter[str] = Counter()
        self._statements: dict[str, list[int]] = {}
        self._lines: dict[str, dict[int, set[str]]] = {}
        self._in_functions: dict[str, set[int]] = {}
        for path in data.measured_files():
            lines = {
                # Without the phase of the test: a fixture runs the package too.
                line: {context.rpartition("|")[0] for context in contexts} - {""}
                for line, contexts in data.contexts_by_lineno(path).items()
            }
            file = Path(path).relative_to(package).as_posix()
            self._lines[file] = lines
            self._statements[file] = coverage.analysis2(path)[1]
            self._in_functions[file] = _lines_in_functions(Path(path).read_text())
            for tests in lines.values():
                self._sizes.update(tests)

    def tests(self, file: str, line: int) -> list[str] | None:
        """The ids of the tests that run the statement of the line; first those that run little of
        the package, which are fast and say most about it. None of them where it runs when the
        module is imported, which any test may be the first to do, and None where it does not run
        at all.
        """
        if line not in self._in_functions.get(file, ()):
            return [] if file in self._lines else None
        starts = [start for start in self._statements.get(file, ()) if start <= line]
        tests = self._lines[file].get(max(starts)) if starts else None
        return None if tests is None else sorted(tests, key=lambda test: (self._sizes[test], test))


def _lines_in_functions(source: str) -> set[int]:
    """The lines of all functions' bodies."""
    return {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for line in range(node.body[0].lineno, (node.end_lineno or 0) + 1)
    }
