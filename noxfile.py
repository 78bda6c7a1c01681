"""The unit tests and the packages on each Python, with the newest and the oldest dependencies.

``nox`` runs all of it, ``nox --list`` lists the sessions, ``nox -s unit-3.13 oldest`` runs some. A
Python that is not on this machine is skipped; where CI is set it is an error. `WHEEL` and `SDIST`
name built files to test; without them the checkout is built.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
# What tests/unit and tests/helpers need beside the package and what it instruments. The end-to-end
# tests have more tools, and not all of these exist for the oldest dependencies.
UNIT = [
    *(
        "pytest >= 8.4",
        "pytest-asyncio >= 1.0",
        "pytest-randomly",
        "pytest-timeout",
        "pytest-xdist",
    ),
    *("fastapi", "httptools", "httpx-sse", "hypothesis", "sse-starlette", "sseclient-py", "trio"),
    *("uvicorn", "uvloop"),
]
# Instead of the oldest version that is allowed, the oldest one that can be tested here.
TESTABLE = {
    "bottle": "bottle == 0.12.18",  # imports on Python 3.10
    "gevent": "",  # has no wheels for Python 3.10, and no unit test runs it
    "httpx": "httpx == 0.25.2",  # takes the h11 of httpx2
    "werkzeug": "werkzeug < 3",  # which the oldest Flask needs and does not ask for
}
# What only newer versions do: FastAPI's own APIRoute.handle, Starlette's ClientDisconnect of an
# OSError.
_CASES = "tests/unit/test_instrumentor.py"
NEWER = [
    f"{_CASES}::test_a_bad_option_raises_and_leaves_nothing_patched",
    f"{_CASES}::test_an_old_framework_is_skipped_as_contrib_skips_it",
    f"{_CASES}::test_instrumenting_twice_patches_once",
    f"{_CASES}::test_uninstrument_leaves_nothing_patched",
    "tests/unit/stream/test_close_reason.py"
    "::test_an_error_of_the_applications_is_reported_whatever_the_framework_calls_it",
]

nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.envdir = ".venv/nox"
nox.options.error_on_missing_interpreters = "CI" in os.environ


@nox.session(python=PYTHONS)
def unit(session: nox.Session) -> None:
    """The unit tests, with the newest version of every dependency."""
    session.install(f"{_built(session, 'WHEEL')}[otlp,instruments-any,cli]", *UNIT)
    _test(session)


@nox.session(python=PYTHONS[:1])
def oldest(session: nox.Session) -> None:
    """The unit tests, with the oldest version of every direct dependency that is allowed.

    On the oldest Python alone, since frameworks of that age do not run on later ones. Without those
    of the commands, whose extra asks for a later httpx.
    """
    constraints = Path(session.create_tmp()) / "oldest.txt"
    constraints.write_text("\n".join(_oldest(session)))
    wheel = _built(session, "WHEEL")
    session.install("--constraints", str(constraints), f"{wheel}[otlp,instruments-any]", *UNIT)
    session.run("uv", "pip", "freeze", external=True)
    _test(
        session,
        *("--ignore", "tests/unit/cli", *(f"--deselect={each}" for each in NEWER)),
        # The old Bottle's import hook.
        *("-W", "ignore:_ImportRedirect:ImportWarning"),
    )


@nox.session(python=PYTHONS)
@nox.parametrize("kind", [nox.param("WHEEL", id="wheel"), nox.param("SDIST", id="sdist")])
def package(session: nox.Session, kind: str) -> None:
    """What is published, in an environment with nothing else."""
    session.install(f"{_built(session, kind)}[otlp,cli]", "pip")
    session.run("python", "-m", "pip", "check")
    # Not the checkout: Python looks for modules in the working directory first.
    with session.chdir(session.create_tmp()):
        session.run("python", "-W", "error", "-c", "import otel_sse; print(otel_sse.__file__)")
        session.run("otel-sse", "--version")


def _built(session: nox.Session, kind: str) -> str:
    """The file that the environment names, or what is built of the checkout."""
    if kind in os.environ:
        return str(Path(os.environ[kind]).resolve())
    option, ending = {"WHEEL": ("--wheel", "whl"), "SDIST": ("--sdist", "tar.gz")}[kind]
    folder = Path(session.create_tmp()).resolve()
    command = ("uv", "build", "--quiet", option, "--out-dir", str(folder), str(ROOT))
    session.run_install(*command, external=True)
    return str(max(folder.glob(f"*.{ending}"), key=os.path.getmtime))


def _oldest(session: nox.Session) -> list[str]:
    """Each direct dependency with its oldest version that can be tested."""
    printed = session.run_install(
        *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-deps"),
        *("--resolution", "lowest-direct", "--python-version", str(session.python)),
        *("--extra", "otlp", "--extra", "instruments-any", str(ROOT / "pyproject.toml")),
        external=True,
        silent=True,
    )
    found = {line.partition("==")[0]: line for line in str(printed).split()}
    return [line for line in (found | TESTABLE).values() if line]


def _test(session: nox.Session, *options: str) -> None:
    arguments = ("tests/unit", "-m", "not slow", "--numprocesses", "2", *options)
    session.run("pytest", *arguments, *session.posargs, env={"FUZZ_EXAMPLES": "100"})
