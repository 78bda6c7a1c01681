"""Peers' own test suites with otel_sse and without it: ``python tests/peers/run.py [NAME ...]``.

Each suite is that of a source distribution, in an environment of its own in ``.venv/peers``, with
the newest versions, and runs in three ways: ``without``; ``with`` all instrumentors; and ``every``,
with a copy of the package that takes every response for an event stream, since peers have few tests
of those and many of other bodies, which have to pass, too.

What differs from ``without`` is run twice more: only what has the same two outcomes each time is a
difference; the rest is unsteady. ``make peers`` calls it. It downloads packages, and is no part of
``make test``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.archives import unpack

_ROOT: Final = Path(__file__).resolve().parents[2]
_HOME: Final = Path(os.environ.get("OTEL_SSE_PEERS") or _ROOT / ".venv/peers")
_PYTEST: Final = (
    "-m",
    "pytest",
    "-p",
    "peer_plugin",
    "-q",
    "-p",
    "no:cacheprovider",
    "--continue-on-collection-errors",
)
# What pytest takes a file for its own by.
_PYTEST_SECTION: Final = re.compile(r"^\[(tool[.:])?pytest\b", re.MULTILINE)
_TIMEOUT: Final = 1200.0
_AGAIN: Final = 2
_WAYS: Final = ("without", "with", "every")
# What decides that a response is an event stream, and what takes its place for ``every``: the looks
# at any header that come first in ASGI and WSGI, at its text, and at its media type.
_DETECTION: Final = (
    (r"len\(value\) > 16 and len\(name\) == 12 and value\.lower\(\)\.find\(.*?\) >= 0", "True"),
    (r'len\(name\) == 12 and len\(value\) > 16 and "stream" in value\.lower\(\)', "True"),
    (r'"stream" (not )?in ', r'"" \1in '),
    (r"MEDIA_TYPE not in headers\b", '"" not in headers'),
    (r"_last_media_type\(content_type\) == MEDIA_TYPE", "True"),
)
_DETECTIONS: Final = 12


@dataclass(frozen=True)
class Suite:
    """One peer's tests.

    Attributes:
        project: the distribution whose tests they are.
        needs: what else they need.
        tests: the arguments of pytest, or of ``runner``.
        package: the folder of the source that would hide the installed package.
        runner: the program that runs them, in place of pytest.
    """

    project: str
    needs: tuple[str, ...]
    tests: tuple[str, ...]
    package: str | None = None
    runner: str | None = None


_SUITES: Final = {
    "aiohttp-sse": Suite(
        "aiohttp-sse",
        ("pytest", "pytest-asyncio", "pytest-aiohttp"),
        ("tests", "-o", "asyncio_mode=auto"),
        "aiohttp_sse",
    ),
    "sse-starlette": Suite(
        "sse-starlette",
        (
            *("asgi-lifespan", "fastapi", "granian", "httpx", "httpx2", "psutil", "pytest"),
            *("pytest-asyncio", "pytest-timeout", "testcontainers", "uvicorn", "portend"),
            *("tenacity", "requests"),
        ),
        ("tests", "-m", "not integration and not experimentation", "--timeout=60"),
        "sse_starlette",
    ),
    "starlette": Suite(
        "starlette",
        (
            *("starlette[full]", "httpx2[zstd]", "blockbuster", "importlib-metadata", "pytest"),
            *("opentelemetry-sdk", "trio", "pytest-codspeed", "pytest-timeout"),
        ),
        ("tests", "--timeout=60"),
        "starlette",
    ),
    "fastapi": Suite(
        "fastapi",
        (
            *("fastapi[all]", "anyio[trio]", "dirty-equals", "inline-snapshot", "pytest"),
            *("pytest-timeout", "httpx2", "logfire", "sentry-sdk", "pyyaml", "pytest-codspeed"),
            *("opentelemetry-instrumentation-fastapi", "flask", "sqlmodel", "a2wsgi"),
        ),
        (
            *("tests/test_sse.py", "tests/test_stream_bare_type.py"),
            *("tests/test_stream_cancellation.py", "tests/test_stream_status_code.py"),
            *("tests/test_stream_json_validation_error.py", "tests/test_router_events.py"),
            *("tests/test_stream_non_finite_floats.py", "tests/test_tutorial/test_stream_data"),
            *("tests/test_dependency_after_yield_streaming.py", "-o", "timeout=60"),
            "tests/test_tutorial/test_server_sent_events",
        ),
        "fastapi",
    ),
    "httpx-sse": Suite(
        "httpx-sse",
        ("pytest", "pytest-asyncio", "httpx", "sse-starlette", "starlette"),
        ("tests", "-o", "addopts="),
    ),
    "mcp": Suite(
        "mcp",
        (
            *("mcp[cli,rich]", "pytest", "trio", "pytest-examples", "inline-snapshot"),
            *("dirty-equals", "logfire", "opentelemetry-sdk", "blockbuster", "pillow"),
            *("pytest-timeout", "coverage", "pydantic-settings"),
        ),
        (
            *("tests/shared/test_sse.py", "tests/shared/test_streamable_http.py"),
            *("tests/client/test_streamable_http.py", "tests/client/test_http_unicode.py"),
            *("tests/server/test_streamable_http_manager.py", "tests/server/test_sse_security.py"),
            *("tests/server/test_streamable_http_modern.py", "tests/transports"),
            *("--timeout=60", "-o", "log_cli=false", "-o", "addopts=-p anyio"),
        ),
    ),
    "flask": Suite(
        "flask", ("flask[async]", "asgiref", "greenlet", "pytest<9", "python-dotenv"), ("tests",)
    ),
    "werkzeug": Suite(
        "werkzeug",
        (
            *("cffi", "cryptography", "ephemeral-port-reserve", "pytest", "pytest-timeout"),
            *("watchdog", "flask"),
        ),
        ("tests", "--timeout=60"),
    ),
    "django": Suite(
        "django",
        ("jinja2", "pymemcache", "pyyaml", "sqlparse", "tzdata", "numpy", "pillow"),
        (
            *("--parallel", "1", "asgi", "wsgi", "handlers", "httpwrappers", "responses"),
            *("servers", "middleware", "gzip", "test_client", "async", "middleware_exceptions"),
        ),
        "django",
        runner="tests/runtests.py",
    ),
    "tornado": Suite(
        "tornado",
        ("pycares",),
        tuple(
            f"tornado.test.{name}_test"
            for name in (
                *("web", "wsgi", "httpserver", "routing", "simple_httpclient", "http1connection"),
                *("websocket", "httpclient"),
            )
        ),
        runner="tornado/test/runtests.py",
    ),
    "aiohttp": Suite(
        "aiohttp",
        (
            *("aiohttp[speedups]", "pytest", "pytest-mock", "pytest-timeout", "trustme"),
            *("freezegun", "proxy.py", "blockbuster", "pytest-xdist", "pytest-cov", "isal"),
            *("zlib_ng", "pytest-codspeed", "python-on-whales", "re-assert", "uvloop", "gunicorn"),
        ),
        (
            *("-o", "addopts=", "-m", "not dev_mode and not autobahn and not internal"),
            *("--timeout=60", "tests/test_web_functional.py", "tests/test_client_functional.py"),
            *("tests/test_web_sendfile_functional.py", "tests/test_web_middleware.py"),
        ),
        "aiohttp",
    ),
    "httpx": Suite(
        "httpx",
        (
            *("httpx[brotli,cli,http2,socks,zstd]", "chardet", "cryptography", "pytest"),
            *("pytest-timeout", "trio", "trustme", "uvicorn"),
        ),
        ("tests", "--timeout=60"),
        "httpx",
    ),
    "requests": Suite(
        "requests",
        (
            *("requests[socks]", "pytest", "pytest-httpbin", "pytest-mock", "pytest-timeout"),
            *("trustme", "pytest-cov"),
        ),
        ("tests", "--timeout=60", "-o", "addopts="),
    ),
    "urllib3": Suite(
        "urllib3",
        (
            *("urllib3[brotli,h2,socks,zstd]", "cryptography", "idna", "pyopenssl", "pytest"),
            *("pytest-timeout", "trustme", "hypercorn", "quart", "quart-trio", "requests"),
            *("pytest-socket", "httpx", "trio", "anyio", "coverage"),
        ),
        (
            *("test/test_response.py", "test/with_dummyserver/test_connectionpool.py"),
            *("test/with_dummyserver/test_chunked_transfer.py", "--timeout=60"),
        ),
    ),
    "uvicorn": Suite(
        "uvicorn",
        (
            *("uvicorn[standard]", "pytest", "pytest-mock", "pytest-timeout", "pytest-xdist"),
            *("pytest-codspeed", "trustme", "cryptography", "httpx2", "a2wsgi", "wsproto", "zttp"),
        ),
        ("tests", "--timeout=60", "-o", "addopts="),
        "uvicorn",
    ),
    "hypercorn": Suite(
        "hypercorn",
        (
            *("hypercorn[h3]", "httpx", "hypothesis", "mock", "pytest", "pytest-asyncio"),
            *("pytest-timeout", "pytest-trio", "trio"),
        ),
        ("tests", "--timeout=60", "-o", "addopts="),
    ),
    "gunicorn": Suite(
        "gunicorn",
        (
            *("gunicorn[gevent,http2,tornado]", "pytest", "pytest-asyncio", "pytest-timeout"),
            *("pytest-cov", "uvloop", "httpx[http2]", "inotify"),
        ),
        ("tests", "--timeout=60", "-o", "addopts="),
        "gunicorn",
    ),
    "waitress": Suite(
        "waitress", ("pytest", "pytest-timeout"), ("tests", "--timeout=60", "-o", "addopts=")
    ),
    "daphne": Suite(
        "daphne",
        ("django", "hypothesis", "pytest", "pytest-asyncio", "pytest-timeout"),
        # Their servers are not instrumented: each imports daphne.server once more, after a fork.
        ("tests", "--timeout=120"),
        "daphne",
    ),
    "a2wsgi": Suite(
        "a2wsgi",
        ("pytest", "pytest-asyncio", "pytest-timeout", "httpx", "starlette", "baize", "asgiref"),
        ("tests", "--timeout=60"),
        "a2wsgi",
    ),
    "sanic": Suite(
        "sanic",
        (
            *("sanic[http3]", "sanic-testing", "pytest", "pytest-timeout", "pytest-benchmark"),
            *("beautifulsoup4", "chardet<4", "docutils", "pygments", "uvicorn", "cryptography"),
            *("pytest-asyncio", "ruff", "bandit", "slotscheck"),
        ),
        ("tests", "--timeout=60"),
        "sanic",
    ),
    "launchdarkly-eventsource": Suite(
        "launchdarkly-eventsource",
        (
            *("launchdarkly-eventsource[async]", "mock", "pytest", "pytest-asyncio"),
            "pytest-timeout",
        ),
        ("--timeout=60", "ld_eventsource/testing"),
    ),
    "fastmcp": Suite(
        "fastmcp",
        (
            *("fastmcp[apps,openai]", "dirty-equals", "fastapi", "httpx", "opentelemetry-sdk"),
            *("inline-snapshot", "psutil", "pytest", "pytest-asyncio", "pytest-env"),
            *("pytest-retry", "pytest-timeout", "hypothesis", "pytest-examples", "pydocket"),
            "cryptography",
        ),
        (
            *("tests/server/http", "tests/server/auth", "tests/server/mount", "tests/client"),
            *("tests/server/providers/proxy", "tests/server/test_event_store.py"),
            *("tests/server/test_streamable_http_no_redirect.py", "tests/deprecated"),
            *("tests/integration_tests", "--timeout=60", "-o", "pythonpath=fastmcp_tasks"),
        ),
    ),
}


def _run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], check=True, **options)


def _uv(*arguments: str | Path) -> None:
    _run(Path(sys.executable).parent / "uv", *arguments, "--quiet")


def _prepare(name: str, suite: Suite, wheel: Path) -> tuple[Path, Path, str]:
    """The environment's Python, the unpacked source, and its version."""
    home = _HOME / name
    python = home / "bin/python"
    sources = home / "source"
    downloads = home / "download"
    if not (home / ".done").exists():
        shutil.rmtree(home, ignore_errors=True)
        _uv("venv", "--python", sys.executable, home)
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
        _run(*pip, "--no-binary", suite.project, "--dest", downloads, suite.project)
        (archive,) = downloads.glob("*.tar.gz")
        source = unpack(archive, sources)
        version = archive.name.removesuffix(".tar.gz").rpartition("-")[2]
        pinned = f"{suite.project}=={version}"
        sdk = "opentelemetry-sdk"
        _uv("pip", "install", "--python", python, pinned, *suite.needs, sdk, wheel)
        if suite.package is not None:
            shutil.rmtree(source / suite.package)
        (home / ".done").touch()
    _uv("pip", "install", "--python", python, "--offline", "--no-deps", "--reinstall", wheel)
    (source,) = sources.iterdir()
    configured = (source / each for each in ("pyproject.toml", "setup.cfg", "tox.ini"))
    if not any(each.exists() and _PYTEST_SECTION.search(each.read_text()) for each in configured):
        # Else pytest goes up to this project's own.
        (source / "pytest.ini").touch()
    return python, source, source.name.rpartition("-")[2]


def _take_every(python: Path, home: Path) -> None:
    """A copy of the installed package to which every response is an event stream."""
    (package,) = python.parents[1].glob("lib/python*/site-packages/otel_sse")
    shutil.rmtree(home / "every", ignore_errors=True)
    shutil.copytree(package, home / "every/otel_sse")
    changed = 0
    for module in (home / "every/otel_sse").rglob("*.py"):
        text = module.read_text()
        for old, new in _DETECTION:
            text, count = re.subn(old, new, text)
            changed += count
        module.write_text(text)
    if changed < _DETECTIONS:
        sys.exit(f"{changed} places that detect streams were found: _DETECTION is out of date")


def _outcomes(
    suite: Suite, python: Path, source: Path, way: str, tests: list[str] | None = None
) -> dict[str, Any]:
    """One run of the suite, or of ``tests``; what it printed is in a log beside the result."""
    home = source.parents[1]
    result = home / f"{way}.json"
    for each in (result, result.with_suffix(".children")):
        each.unlink(missing_ok=True)
    paths = [str(Path(__file__).parent), *([str(home / "every")] if way == "every" else [])]
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OTEL_", "PEERS_"))
        },
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "PEERS_RESULT": str(result),
        "PEERS_INSTRUMENTED": str(int(way != "without")),
    }
    program: tuple[str, ...]
    if suite.runner is not None:
        program = (str(Path(__file__).parent / "peer_plugin.py"), suite.runner)
        chosen = tuple(tests or suite.tests)
    else:
        program = _PYTEST
        options = tuple(each for each in suite.tests if not each.startswith("test"))
        chosen = (*options, *tests) if tests else suite.tests
    with (home / f"{way}{'-again' if tests else ''}.log").open("w") as log:
        try:
            subprocess.run(
                [python, *program, *chosen],
                cwd=source,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            print(f"  {way}: it did not end, see {log.name}", flush=True)
    if not result.exists():
        return {"outcomes": {}}
    return dict(json.loads(result.read_text()))


def _different(plain: dict[str, str], ours: dict[str, str]) -> list[str]:
    return sorted(test for test in {*plain, *ours} if plain.get(test) != ours.get(test))


def _compare(name: str, suite: Suite, wheel: Path) -> bool:
    """Runs a suite in each way and prints what differs; whether anything does."""
    python, source, version = _prepare(name, suite, wheel)
    _take_every(python, source.parents[1])
    print(f"{name} {version}", flush=True)
    runs = {way: _outcomes(suite, python, source, way) for way in _WAYS}
    plain = runs["without"]["outcomes"]
    differ = False
    for way, run in runs.items():
        counts = Counter(run["outcomes"].values())
        counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        streams = (
            f"; {run['streams']} streams, {run['messages']} messages" if "streams" in run else ""
        )
        print(f"  {way}: {counted or 'no result'}{streams}", flush=True)
        differing = _different(plain, run["outcomes"])
        pairs = [(plain, run["outcomes"])]
        for _ in range(_AGAIN if 0 < len(differing) <= 100 else 0):
            again = [
                _outcomes(suite, python, source, each, differing)["outcomes"]
                for each in ("without", way)
            ]
            pairs.append((again[0], again[1]))
        for test in differing:
            seen = [(one.get(test), other.get(test)) for one, other in pairs]
            steady = len(set(seen)) == 1
            differ |= steady
            shown = ", ".join(f"{one}/{other}" for one, other in seen)
            print(f"    {'differs' if steady else 'unsteady'}: {test} ({shown})", flush=True)
        for text, count in Counter(run.get("warnings", ())).items():
            print(f"    logged {count} times: {text}", flush=True)
    return differ or not plain


def main() -> int:
    wheel = next((_ROOT / ".build").glob("*.whl"), None)
    if wheel is None:
        sys.exit("there is no wheel in .build: run `make peers`")
    names = sys.argv[1:] or list(_SUITES)
    unknown = set(names) - _SUITES.keys()
    if unknown:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(_SUITES)}")
    differ = []
    for name in names:
        try:
            if _compare(name, _SUITES[name], wheel):
                differ.append(name)
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error}", flush=True)
            differ.append(name)
    print(f"differences in {', '.join(differ)}" if differ else "no differences")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main())
