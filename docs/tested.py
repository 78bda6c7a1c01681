"""What is tested on what, from the data of the tests themselves: the tables of compatibility.md.

The servers' command lines are those that tests/e2e is parametrized by, a framework is what the
application imports that such a line names, the Pythons and the oldest versions are noxfile.py's,
the Makefile's and pyproject.toml's. Nothing is listed here by hand.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from otel_sse import frameworks
from otel_sse.instrumentor import SSEInstrumentor

ROOT: Final = Path(__file__).resolve().parents[1]
E2E: Final = ROOT / "tests" / "e2e"
APPLICATIONS: Final = ROOT / "tests" / "applications"
# How a name of a distribution is written.
NAMES: Final = {
    **{"asgi": "any ASGI application", "wsgi": "any WSGI application"},
    **{"fastapi": "FastAPI", "sse_starlette": "sse-starlette", "blacksheep": "BlackSheep"},
    **{"hypercorn": "Hypercorn", "granian": "Granian", "daphne": "Daphne"},
    **{"waitress-serve": "waitress", "uwsgi": "uWSGI"},
    "aiohttp": "aiohttp",
}
# Programs that are servers. Any other runs its framework's own.
PROGRAMS: Final = (
    "uvicorn",
    "gunicorn",
    "hypercorn",
    "granian",
    "daphne",
    "waitress-serve",
    "uwsgi",
)

# A test file, and the first Python on which it is skipped, if any.
Run = tuple[str, tuple[int, int] | None]
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def servers() -> Table:
    """Each framework with each server that a test runs it on."""
    run: dict[tuple[str, str], set[Run]] = defaultdict(set)
    run_oldest: set[tuple[str, str]] = set()
    for file in sorted([*E2E.glob("test_*.py"), *APPLICATIONS.glob("test_*.py")]):
        # Not by importing each of them, which takes long.
        for name in set(
            re.findall(
                r"(?m)^(SERVERS)\b|import.*\b([A-Z]*_?SERVERS|FRAMEWORKS|STOPS)\b",
                file.read_text(),
            )
        ):
            found = getattr(_imported(f"{file.parent.name}.{file.stem}"), "".join(name))
            for name, command in _commands(found):
                for framework in _frameworks_of(command):
                    row = framework, _server_of(command)
                    run[row].add((file.stem, _first_skipped(command, file)))
                    if _runs_with_oldest(file, name):
                        run_oldest.add(row)
    rows = [
        (
            _name(row[0]),
            row[1],
            oldest(row[0], is_tested=row in run_oldest),
            pythons(files),
        )
        for row, files in run.items()
    ]
    return ("framework", "server", "oldest version", "Pythons"), sorted(rows, key=_order)


def clients() -> Table:
    """Each client library."""
    readers = _imported("helpers.client_readers")
    files = [
        file
        for file in E2E.glob("test_client_*.py")
        if re.search(r"(?m)^@client$", file.read_text())
    ]
    is_tested = any(_runs_with_oldest(file) for file in files)
    where = pythons({(file.stem, None) for file in files})
    found = {name.partition("-")[0] for name in readers.CLIENTS}
    rows = [(library, oldest(library, is_tested=is_tested), where) for library in found]
    return ("library", "oldest version", "Pythons"), sorted(rows, key=_order)


def matrix() -> Table:
    """What runs on which Python."""
    nox = _noxfile()
    rows = [
        ("unit tests, newest dependencies", ", ".join(nox.PYTHONS), "`nox -s unit`"),
        ("end-to-end tests, the part that depends on it", ", ".join(nox.PYTHONS), "`nox -s e2e`"),
        (
            "these and the ASGI frameworks, oldest dependencies",
            nox.PYTHONS[0],
            "`nox -s oldest`",
        ),
        ("both of the first, newest dependencies, in CI", ", ".join(_in_ci()), "`make pythons`"),
        ("wheel and source distribution", ", ".join(nox.PYTHONS), "`nox -s package`"),
    ]
    return ("what", "Pythons", "command"), rows


def pythons(runs: set[Run]) -> str:
    """Those that CI runs one of these test files on, beside the one that ``.venv`` is made of."""
    chosen = {Path(file).stem for file in _noxfile().E2E}
    skipped = [first for stem, first in runs if stem in chosen]
    found = [
        each
        for each in _in_ci()
        if any(first is None or tuple(map(int, each.split("."))) < first for first in skipped)
    ]
    return ", ".join([*found, "main"])


def _first_skipped(command: str, file: Path) -> tuple[int, int] | None:
    """The first Python on which a test of this file does not run this server."""
    closes = _imported("e2e.closes")
    waits = re.search(r"HYPERCORN_WAITS|import.* check\b", file.read_text())
    if waits is None or not command.startswith("hypercorn"):
        return None
    first: tuple[int, int] = closes.HYPERCORN_WAITS
    return first


def _runs_with_oldest(file: Path, server: str = "") -> bool:
    """Whether a test of this file, of the server of this name, runs with the oldest versions."""
    path = file.relative_to(ROOT).as_posix()
    nox = _noxfile()
    return path in nox.OLDEST_E2E and server not in nox.NEWER_SERVERS.get(path, ())


def oldest(distribution: str, *, is_tested: bool) -> str:
    """The oldest version that is allowed, and the one that is tested where that is another."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("\ninstruments-any = [")[2].partition("\n]")[0]
    bounds = dict(re.findall(r'"([\w-]+) >= ([\w.]+)', section))
    bound = bounds.get(distribution)
    if bound is None:
        return "—"
    if not is_tested:
        return "the newest alone"
    instead = _noxfile().TESTABLE.get(distribution)
    if instead is None:
        return bound
    return f"{bound} (tested: {instead.partition('==')[2].strip() or 'none'})"


def _order(row: tuple[str, ...]) -> list[str]:
    return [cell.lower() for cell in row]


def _name(distribution: str) -> str:
    return NAMES.get(distribution, distribution.capitalize())


def _commands(found: Any) -> Iterator[tuple[str, str]]:
    """The command lines among what a test is parametrized by, with their names where they have."""
    if isinstance(found, (dict, tuple, list)):
        named = found.items() if isinstance(found, dict) else (("", each) for each in found)
        for name, each in named:
            command = getattr(each, "command", each)
            if isinstance(command, str) and "{port}" in command:
                yield name, command


def _server_of(command: str) -> str:
    program, *options = shlex.split(command)
    if program not in PROGRAMS:
        if "run" in options:
            return f"`{program} run`"
        if options[0] == "-m":
            return f"`{options[2]}`"
        source = (E2E / "apps" / options[0]).read_text()
        if "from eventlet import wsgi" in source:
            return "eventlet's"
        if "uvicorn.Server" in source:
            return "uvicorn"
        return "the standard library's" if "import WSGIServer" in source else "its own"
    name = NAMES.get(program, program)
    if program == "gunicorn":
        kind = options[options.index("-k") + 1]
        own = E2E / "apps" / f"{kind.partition('.')[0]}.py"
        name += ", a subclass of uvicorn's worker" if own.exists() else f", `{kind}`"
    return name


def _frameworks_of(command: str) -> list[str]:
    """What the application imports that the command names: what its name has, else all of it."""
    if (own := re.match(r"python -m (\w+)", command)) is not None:
        return [own[1]]
    place = re.search(r"\b(\w+):(\w+)", command)
    place = place or re.search(r"\b(\w+)\.py\b(?: {port} (\w+)|())", command)
    assert place is not None, command
    module, name = place[1], place[2]
    file = E2E / "apps" / f"{module}.py"
    imported = _imports(file)
    if not name:
        # A program that serves something of a module beside it.
        name = " ".join(re.findall(r"(?m)^from endings_\w+ import (.*)$", file.read_text()))
    named = sorted(each for each in imported if each in f"{module} {name}")
    if "wsgi" in module or "wsgi" in file.read_text():
        return named or ["wsgi"]
    return named or sorted(imported) or ["asgi"]


@cache
def _imports(file: Path) -> set[str]:
    """The frameworks among what a file imports, in itself and in modules beside it."""
    known = {target.module.partition(".")[0] for target in targets()}
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in (name.partition(".")[0] for name in names):
            if (beside := file.with_name(f"{name}.py")).exists():
                found |= _imports(beside)
            elif name in known:
                found.add(name)
    return found


def targets() -> Iterator[Any]:
    """What is awaited of frameworks and client libraries."""
    for each in vars(frameworks).values():
        if isinstance(each, type) and issubclass(each, SSEInstrumentor):
            for target in getattr(each, "targets", ()):
                if target.hooks.partition(":")[0].rpartition(".")[2] not in _SERVERS:
                    yield target


_SERVERS: Final = ("asgi_servers", "wsgi_servers")


def _in_ci() -> list[str]:
    found = re.search(r"(?m)^PYTHONS \?= (.*)$", (ROOT / "Makefile").read_text())
    assert found is not None
    return found[1].split()


def _imported(name: str) -> ModuleType:
    for folder in (ROOT / "tests", ROOT / "examples"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return importlib.import_module(name)


@cache
def _noxfile() -> Any:
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
