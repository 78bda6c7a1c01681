"""Changes the package in small ways, and reports which changes no test notices.

``python tests/mutants/run.py [COUNT [SEED [MODULE ...]]]``; a MODULE is a file or folder of the
package. A mutant is one change of one line, in a copy of the package that Python finds before the
installed one, in other processes of a test too. Of the unit tests and the end-to-end tests that are
quick, those that run its line are run until one fails. Lines that none of them runs are left out:
they are for servers in processes of their own, whose tests run for minutes.

``equivalent.yaml`` lists mutants that behave as the package does, each with the reason: they are
not drawn. The commands of ``otel-sse`` are left out: their tests run for minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

import yaml

if __name__ == "__main__":
    # The tests' folder in place of this one.
    sys.path[0] = str(Path(__file__).parent.parent)

from mutants.covering import Covering
from mutants.forked import failure, warm_up
from mutants.mutations import Mutant, mutants_of

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "otel_sse"
WORK: Final = ROOT / ".build/mutants"
EQUIVALENT: Final = Path(__file__).with_name("equivalent.yaml")
JOBS: Final = 2
# Seconds for one test, and for all that run a mutant: one that hangs is noticed.
OPTIONS: Final = ("--timeout=60",)
LIMIT: Final = 600
FUZZ: Final = {"FUZZ_EXAMPLES": "50"}
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
    "clients/requests": ("e2e/test_coexistence",),
    "frameworks": ("e2e/test_asgi_servers", "e2e/test_wsgi_servers"),
    "process/server_stops": ("e2e/test_stops",),
    "process/shutdown": ("e2e/test_stops",),
    "semconv": ("semconv/test_registry",),
    "servers/asgi_servers": ("e2e/test_asgi_servers",),
    "servers/bottle": ("e2e/test_wsgi_servers",),
    "servers/django": ("e2e/test_wsgi_servers",),
    "servers/flask": ("e2e/test_wsgi_servers",),
    "servers/sanic": ("e2e/test_sanic_requests", "e2e/test_sanic_streams"),
    "servers/tornado": ("e2e/test_tornado_requests", "e2e/test_tornado_streams"),
    "servers/wsgi": ("e2e/test_wsgi_servers",),
}


def _sample(count: int, seed: int, modules: list[str], covering: Covering) -> list[Mutant]:
    """Random mutants of lines that tests run, no two of one line, none known as equivalent."""
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
    waiting = {(each.file, each.line) for each in found}
    run = {place for place in waiting if covering.tests(*place) is not None}
    print(f"{len(run)} of {len(waiting)} lines are run by tests that are quick", flush=True)
    sample: list[Mutant] = []
    for mutant in sorted(found, key=lambda each: each.rank(seed)):
        place = (mutant.file, mutant.line)
        if len(sample) == count:
            break
        if place not in run or (mutant.file, *mutant.change) in known:
            continue
        with suppress(SyntaxError):
            compile(mutant.code, mutant.file, "exec")
            run.remove(place)
            sample.append(mutant)
    return sample


def _copy() -> Path:
    """A copy of the package, compiled: each of many processes would do it again."""
    shutil.rmtree(WORK, ignore_errors=True)
    copy = WORK / "0"
    shutil.copytree(PACKAGE, copy / "otel_sse", ignore=shutil.ignore_patterns("__pycache__"))
    # By the content of the source: a mutant may have the time and the size of what it replaces.
    options = ["-q", "--invalidation-mode", "checked-hash"]
    subprocess.run([sys.executable, "-m", "compileall", *options, copy], check=True)
    return copy


def _quick() -> list[str]:
    ignored = [f"--ignore=tests/unit/{name}" for name in OTHERS]
    return ["tests/unit", *(f"tests/e2e/test_{name}.py" for name in QUICK), *ignored]


def _measure(copy: Path) -> Covering:
    """All tests that are measured have to pass without a mutant."""
    # Coverage removes what is named like its data at the start.
    package, data, config = copy / "otel_sse", WORK / "coverage", WORK / "measured.ini"
    config.write_text(f"[run]\nsource = {package}\n")
    # Not `python -m`, which would find the checkout's package first.
    command = [
        str(Path(sys.executable).with_name("pytest")),
        "-q",
        "-m",
        "not slow",
        f"--numprocesses={JOBS}",
    ]
    command += [f"--cov={package}", f"--cov-config={config}", "--cov-context=test"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "COVERAGE_FILE": str(data)}
    done = subprocess.run(
        [*command, "--cov-report=", *_quick()],
        cwd=ROOT,
        env={**environment, **FUZZ},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"The tests fail without a mutant:\n{done.stdout}")
    return Covering(package, data)


def _test(file: str, code: str, ids: list[str]) -> str | None:
    """The first failure of the tests of a mutant, in a worker."""
    copy = WORK / str(os.getpid())
    if not copy.exists():
        shutil.copytree(WORK / "0", copy)
    module = copy / "otel_sse" / file
    original = module.read_text()
    module.write_text(code)
    try:
        # Importing all their files takes longer than the tests that notice most mutants.
        for some in (ids[:FIRST], ids[FIRST:]):
            tests = list(dict.fromkeys(name.partition("::")[0] for name in some))
            if tests and (by := failure(copy, [*OPTIONS, *tests], some, LIMIT)):
                return by
        elsewhere = [names for start, names in ELSEWHERE.items() if file.startswith(start)]
        if elsewhere:
            tests = [f"tests/{name}.py" for name in elsewhere[0]]
            if by := failure(copy, [*OPTIONS, *tests], [], LIMIT):
                return by
        # It runs when the module is imported.
        return None if ids else failure(copy, [*OPTIONS, *_quick()], [], LIMIT)
    finally:
        module.write_text(original)


def _start_worker() -> None:
    os.chdir(ROOT)
    os.environ.update(FUZZ)
    warm_up()


def main(count: int = 200, seed: int = 1, *modules: str) -> None:
    began = monotonic()
    covering = _measure(_copy())
    sample = _sample(count, seed, list(modules), covering)
    if not sample:
        sys.exit("There is no mutant to test.")
    noticed = 0
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(JOBS, context, _start_worker) as pool:
        tasks = {
            pool.submit(
                _test, each.file, each.code, covering.tests(each.file, each.line) or []
            ): each
            for each in sample
        }
        for number, task in enumerate(as_completed(tasks), 1):
            mutant, by = tasks[task], task.result()
            noticed += by is not None
            place = f"otel_sse/{mutant.file}:{mutant.line}"
            print(f"{number:4} {place} {by or 'NOT NOTICED'}", flush=True)
            if by is None:
                old, new = mutant.change
                print(f"       - {old}\n       + {new}", flush=True)
    minutes = (monotonic() - began) / 60
    print(f"{noticed} of {len(sample)} noticed, {noticed / len(sample):.1%}, in {minutes:.0f} min")
    sys.exit(noticed < len(sample))


if __name__ == "__main__":
    numbers = [int(each) for each in sys.argv[1:3]]
    main(*numbers, *sys.argv[3:])
