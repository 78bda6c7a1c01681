"""The tests and the packages on each Python, with the newest and the oldest dependencies.

``nox`` runs all of it, ``nox --list`` lists the sessions, ``nox -s unit-3.13 oldest`` runs some.
``make pythons``, and so CI, runs Python 3.10 and 3.14; `.ci/install` puts these into
the folder of the tools. A Python that is neither there nor on PATH is skipped; where CI is set it
is an error. `WHEEL` and `SDIST` name built files to test; without them the checkout is built.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]
TOOLS = Path(os.environ.get("OTEL_SSE_TOOLS") or Path.home() / ".cache" / "otel-sse-tools")
os.environ["PATH"] = os.pathsep.join([str(TOOLS / "bin"), os.environ["PATH"]])
# What tests/unit and tests/helpers need beside the package and what it instruments. The end-to-end
# tests have more tools, and not all of these exist for the oldest dependencies.
UNIT = [
    *(
        "pytest >= 8.4",
        "pytest-asyncio >= 1.0",
        "pytest-randomly",
        "pytest-rerunfailures >= 16.3",
        "pytest-timeout",
        "pytest-xdist",
    ),
    *("fastapi", "httptools", "httpx-sse", "hypothesis", "psutil", "sse-starlette"),
    *("sseclient-py", "trio", "uvicorn", "uvloop"),
]
# What depends on the Python: the servers and their ends, workers, threads, generators, clients.
E2E = [
    f"tests/e2e/test_{name}.py"
    for name in (
        *("aiohttp_streams", "asgi_servers", "client_breaks", "client_closes", "client_garbage"),
        *("client_nested", "client_reading", "finalizers", "sanic_streams"),
        *("shutdown", "starlette_streams", "stops", "thread_context", "threads"),
        *("tornado_streams", "trio", "unnoticed_ends", "workers", "wsgi_servers"),
    )
]
# What the end-to-end tests need beside `UNIT`, where the dependencies are the oldest.
OLDEST_PACKAGES = [
    *("a2wsgi", "aiohttp-sse", "brotli", "hypercorn[trio]", "lilya", "uvicorn-worker"),
    *("opentelemetry-instrumentation-asgi", "zstandard"),
]
# Instead of the oldest version that is allowed, the oldest one that can be tested here.
TESTABLE = {
    "bottle": "bottle == 0.12.18",  # imports on Python 3.10
    "curl_cffi": "curl_cffi == 0.15",  # before, a synchronous stream may wait for itself
    "gevent": "",  # has no wheels for Python 3.10: the newest
    "httpx": "httpx == 0.25.2",  # takes the h11 of httpx2
    "setuptools": "setuptools < 67.5",  # has gunicorn 20's pkg_resources, unwarned
    "uvloop": "uvloop < 0.22",  # from where on the uvloop worker of the oldest aiohttp fails
    "websockets": "websockets < 11",  # from where on what the oldest Sanic imports is deprecated
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
# The end-to-end tests with the oldest dependencies: those of `E2E`, but for FastAPI's own event
# streams, and those of the frameworks, which do not depend on the Python.
OLDEST_E2E = [
    *(each for each in E2E if "starlette_streams" not in each),
    "tests/e2e/test_asgi_frameworks.py",
]
# What only newer versions do, as the servers of ``test_each_close_is_reported`` in these files, and
# as keywords.
NEWER_SERVERS = {
    # gunicorn's own ASGI worker, and uvicorn's --timeout-worker-healthcheck
    "tests/e2e/test_asgi_servers.py": ["gunicorn, asgi", "uvicorn, 2 workers"],
    "tests/e2e/test_asgi_frameworks.py": ["quart, gunicorn"],
}
NEWER_CASES = (
    "urllib3-read1",
    "zstd",  # of each client
    "urllib3 and /gzip and (read-7 or readline or readinto)",  # urllib3 1.26 takes b"" for the end
    "/short-urllib3 or /short-requests",  # an error in urllib3 2 alone
    "uvicorn-workers or recycled and [uvicorn]",  # uvicorn's --timeout-worker-healthcheck
    "of_sanic and asgi]",  # Sanic 23.12 ends streams by ASGI in an error of its own
)
# What the oldest versions warn of: import hooks of Bottle and urllib3, Starlette's test client,
# Litestar of itself.
OLD_WARNINGS = [
    *("-W", "ignore:_ImportRedirect:ImportWarning"),
    *("-W", "ignore:_SixMetaPathImporter:ImportWarning"),
    *("-W", "ignore:The anyio.abc.BlockingPortal:DeprecationWarning"),
    *("-W", "ignore:Unclosed <MemoryObject:ResourceWarning"),
    *("-W", "ignore:Use of deprecated parameter 'debug':DeprecationWarning"),
]

nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.envdir = ".venv/nox"
nox.options.error_on_missing_interpreters = "CI" in os.environ


@nox.session(python=PYTHONS)
def unit(session: nox.Session) -> None:
    """The unit tests, with the newest version of every dependency."""
    wheel = f"{_built(session, 'WHEEL')}[otlp,instruments-any,cli]"
    # One test builds the distributions.
    session.install("--group", "build", wheel, *UNIT)
    _test_units(session)


@nox.session(python=PYTHONS)
def e2e(session: nox.Session) -> None:
    """The part of the end-to-end tests that depends on the Python, with the newest versions."""
    session.install("--group", "test", f"{_built(session, 'WHEEL')}[otlp,cli]")
    # Python 3.14 warns of Sanic's sources when it compiles them, which the tests would find.
    session.run("python", "-W", "ignore", "-c", "import sanic")
    files = [each for each in session.posargs if not each.startswith("-")] or E2E
    options = [each for each in session.posargs if each.startswith("-")]
    _test_e2e(session, *files, *options)


@nox.session(python=PYTHONS[:1])
def oldest(session: nox.Session) -> None:
    """The unit tests and `OLDEST_E2E`, with the oldest version of every direct dependency.

    On the oldest Python alone, since frameworks of that age do not run on later ones. Without those
    of the commands, whose extra asks for a later httpx.
    """
    constraints = _folder(session) / "oldest.txt"
    constraints.write_text("\n".join(_oldest(session)))
    wheel = _built(session, "WHEEL")
    session.install(
        *("--constraints", str(constraints), "--group", "build"),
        *(f"{wheel}[otlp,instruments-any]", *UNIT, *OLDEST_PACKAGES),
    )
    session.run("uv", "pip", "freeze", external=True)
    _test_units(
        session,
        *("--ignore", "tests/unit/cli", *(f"--deselect={each}" for each in NEWER)),
        *OLD_WARNINGS,
    )
    cases = " and ".join(f"not ({each})" for each in NEWER_CASES)
    servers = [
        f"--deselect={file}::test_each_close_is_reported[{server}]"
        for file, names in NEWER_SERVERS.items()
        for server in names
    ]
    _test_e2e(session, *OLDEST_E2E, *servers, "-k", cases, *OLD_WARNINGS)


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
    folder = _folder(session)
    command = ("uv", "build", "--quiet", option, "--out-dir", str(folder), str(ROOT))
    session.run_install(*command, external=True)
    return str(max(folder.glob(f"*.{ending}"), key=os.path.getmtime))


def _folder(session: nox.Session) -> Path:
    """A folder for files of the session, and not for those of its tests: hatchling, which one of
    them runs, heeds no .gitignore in a folder that it names.
    """
    folder = Path(session.create_tmp()).resolve()
    session.env.pop("TMPDIR")
    return folder


def _oldest(session: nox.Session) -> list[str]:
    """Each direct dependency with its oldest version that can be tested."""
    printed = session.run_install(
        *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-deps"),
        *("--resolution", "lowest-direct", "--python-version", str(session.python)),
        *("--extra", "otlp", "--extra", "instruments-any", str(ROOT / "pyproject.toml")),
        external=True,
        silent=True,
    )
    found = {line.partition("==")[0].replace("-", "_"): line for line in str(printed).split()}
    return [line for line in (found | TESTABLE).values() if line]


def _test_units(session: nox.Session, *options: str) -> None:
    arguments = ("tests/unit", "-m", "not slow", "--numprocesses", "2", *options)
    session.run("pytest", *arguments, *session.posargs, env={"FUZZ_EXAMPLES": "100"})


def _test_e2e(session: nox.Session, *arguments: str) -> None:
    parallel = ("--numprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
    session.run("pytest", *arguments, *parallel)
