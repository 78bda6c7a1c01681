"""Changes the package in small ways, and reports which changes no test notices.

``python tests/mutants/run.py [COUNT [SEED [MODULE ...]]]``; a MODULE is a file or folder of the
package. A mutant is one change of one line, in a copy of the package that Python finds before the
installed one, in other processes of a test too. Of the unit tests and the end-to-end tests that are
quick, those that run its line are run until one fails.

``equivalent.yaml`` lists mutants that behave as the package does, each with the reason: they are
not drawn. The commands of ``otel-sse`` are left out: their tests run for minutes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Final, NamedTuple

import yaml

if __name__ == "__main__":
    # The tests' folder in place of this one.
    sys.path[0] = str(Path(__file__).parent.parent)

from mutants.covering import Covering
from mutants.mutations import Mutant, mutants_of

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "otel_sse"
WORK: Final = ROOT / ".build/mutants"
EQUIVALENT: Final = Path(__file__).with_name("equivalent.yaml")
JOBS: Final = 2
# Seconds for one test, and for all that run a mutant: one that hangs is noticed.
TEST_LIMIT: Final = 60
LIMIT: Final = 600
# Tests that are run before all others.
FIRST: Final = 20

# Tests that read files, which no mutant changes, and those of the commands.
OTHERS: Final = ("test_docs.py", "test_words.py", "test_package.py", "cli")
# The tests that are measured run the package in their own process.
QUICK: Final = (
    "starlette_streams",
    "aiohttp_streams",
    "middleware_streams",
    "mounted_closes",
    "close_causes",
    "odd_messages",
    "unusual_responses",
    "parents",
    "propagation",
    "client_breaks",
    "client_closes",
    "client_connects",
    "client_final",
    "client_nested",
    "client_reading",
    "client_responses",
)
# These run it in others, or read what a module defines. By the start of the module's name.
ELSEWHERE: Final = {
    "config": ("unit/test_config",),
    "semconv": ("semconv/test_registry", "unit/telemetry/test_telemetry"),
    "servers/bottle": ("e2e/test_wsgi_servers",),
    "servers/django": ("e2e/test_wsgi_servers",),
    "servers/flask": ("e2e/test_wsgi_servers",),
    "servers/wsgi": ("e2e/test_wsgi_servers", "e2e/test_coexistence_wsgi"),
    "process/server_facts": ("e2e/test_stops", "e2e/test_wsgi_servers", "e2e/test_workers"),
    "process/": ("e2e/test_shutdown", "e2e/test_lifecycle"),
    "stream/sharing": ("e2e/test_shutdown", "e2e/test_lifecycle"),
}


class Result(NamedTuple):
    """``by`` is what noticed the mutant, None where nothing did."""

    mutant: Mutant
    by: str | None


class Run:
    """One run of pytest with the package in ``copy``."""

    def __init__(self, copy: Path, *options: str, ids: list[str] | None = None) -> None:
        chosen = copy / "ids"
        chosen.write_text("".join(f"{name}\n" for name in ids or ()))
        child = Path(__file__).with_name("child.py")
        command = [sys.executable, str(child), str(chosen), "-q", "--tb=no", "-m", "not slow"]
        command += ["-p", "no:cacheprovider", "-p", "no:randomly", f"--timeout={TEST_LIMIT}"]
        changes = {
            "PYTHONPATH": str(copy),
            "PYTHONDONTWRITEBYTECODE": "1",
            "FUZZ_EXAMPLES": "50",
            "COVERAGE_FILE": str(WORK / "coverage"),
        }
        self._process = subprocess.Popen(
            [*command, *options],
            cwd=ROOT,
            env={**os.environ, **changes},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def failure(self, limit: float | None = None) -> str | None:
        """What fails, in a line."""
        process = self._process
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            output = f"no end within {limit} s"
        finally:
            # Servers that a test has started, too.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode == 0:
            return None
        lines = output.splitlines() or [f"exit code {process.returncode}"]
        return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])


def _sample(count: int, seed: int, modules: list[str]) -> list[Mutant]:
    """Random mutants, no two of one line, none that is known as equivalent."""
    known = {
        (each["file"], each["old"].strip(), each["new"].strip())
        for each in yaml.safe_load(EQUIVALENT.read_text())
    }
    found: list[Mutant] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        command = file.startswith(("cli/", "__main__"))
        if file.startswith(tuple(modules)) if modules else not command:
            found += mutants_of(file, path.read_text())
    sample: list[Mutant] = []
    lines: set[tuple[str, int]] = set()
    for mutant in sorted(found, key=lambda each: each.rank(seed)):
        place = (mutant.file, mutant.line)
        if len(sample) == count:
            break
        if place in lines or (mutant.file, *mutant.change) in known:
            continue
        with suppress(SyntaxError):
            compile(mutant.code, mutant.file, "exec")
            lines.add(place)
            sample.append(mutant)
    return sample


def _copies() -> list[Path]:
    """One copy of the package for each job, compiled: each of many processes would do it again."""
    shutil.rmtree(WORK, ignore_errors=True)
    copies = [WORK / str(job) for job in range(JOBS)]
    for copy in copies:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, copy / "otel_sse", ignore=ignored)
        # By the content of the source: a mutant may have the time and the size of what it replaces.
        options = ["-q", "--invalidation-mode", "checked-hash"]
        subprocess.run([sys.executable, "-m", "compileall", *options, copy], check=True)
    return copies


def _quick() -> list[str]:
    ignored = [f"--ignore=tests/unit/{name}" for name in OTHERS]
    return ["tests/unit", *(f"tests/e2e/test_{name}.py" for name in QUICK), *ignored]


def _measure(copy: Path) -> Covering:
    """All tests that are measured have to pass without a mutant."""
    package = copy / "otel_sse"
    config = WORK / "coverage.ini"
    config.write_text(f"[run]\nsource = {package}\n")
    options = [f"--cov={package}", f"--cov-config={config}", "--cov-context=test", "--cov-report="]
    failure = Run(copy, f"--numprocesses={JOBS}", *options, *_quick()).failure()
    if failure is not None:
        sys.exit(f"The tests fail without a mutant: {failure}")
    return Covering(package, WORK / "coverage")


def _failure(mutant: Mutant, copy: Path, covering: Covering) -> str | None:
    """The first of its tests that fails."""
    file, ids = mutant.file, covering.tests(mutant.file, mutant.line)
    # Importing all their files takes longer than the tests that notice most mutants.
    for some in (ids[:FIRST], ids[FIRST:]):
        tests = list(dict.fromkeys(name.partition("::")[0] for name in some))
        if tests and (by := Run(copy, "-x", *tests, ids=some).failure(LIMIT)):
            return by
    elsewhere = [names for start, names in ELSEWHERE.items() if file.startswith(start)]
    if elsewhere:
        tests = [f"tests/{name}.py" for name in elsewhere[0]]
        if by := Run(copy, "-x", *tests).failure(LIMIT):
            return by
    # A line that no test runs is run when the module is imported.
    return None if ids else Run(copy, "-x", *_quick()).failure(LIMIT)


def main(count: int = 200, seed: int = 1, *modules: str) -> None:
    began = monotonic()
    sample = _sample(count, seed, list(modules))
    copies: SimpleQueue[Path] = SimpleQueue()
    first, *others = _copies()
    covering = _measure(first)
    for copy in (first, *others):
        copies.put(copy)

    def test(mutant: Mutant) -> Result:
        copy = copies.get()
        module = copy / "otel_sse" / mutant.file
        try:
            module.write_text(mutant.code)
            return Result(mutant, _failure(mutant, copy, covering))
        finally:
            module.write_text(mutant.original)
            copies.put(copy)

    noticed = 0
    with ThreadPoolExecutor(JOBS) as pool:
        tasks = [pool.submit(test, mutant) for mutant in sample]
        for number, task in enumerate(as_completed(tasks), 1):
            mutant, by = task.result()
            noticed += by is not None
            print(
                f"{number:4} otel_sse/{mutant.file}:{mutant.line} {by or 'NOT NOTICED'}", flush=True
            )
            if by is None:
                old, new = mutant.change
                print(f"       - {old}\n       + {new}", flush=True)
    minutes = (monotonic() - began) / 60
    print(f"{noticed} of {len(sample)} noticed, {noticed / len(sample):.1%}, in {minutes:.0f} min")
    sys.exit(noticed < len(sample))


if __name__ == "__main__":
    numbers = [int(each) for each in sys.argv[1:3]]
    main(*numbers, *sys.argv[3:])
