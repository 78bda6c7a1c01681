"""Runs pytest in a fork of this process, which has imported what tests import beside the package.

Starting Python and importing frameworks takes longer than the tests that notice most mutants.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

# Never otel_sse: each fork imports its own.
_MODULES: Final = (
    "aiohttp.web",
    "fastapi",
    "httpx",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.instrumentation.auto_instrumentation",
    "opentelemetry.sdk._logs.export",
    "opentelemetry.sdk.metrics.export",
    "opentelemetry.sdk.trace.export",
    "pytest_asyncio",
    "requests",
    "sse_starlette",
    "starlette.testclient",
    "uvicorn",
    "hypothesis",
)


def warm_up() -> None:
    for name in _MODULES:
        with suppress(ImportError):
            importlib.import_module(name)
    assert not any(name.partition(".")[0] == "otel_sse" for name in sys.modules)


class _Chosen:
    """Runs the tests of these ids in this order; all where there are none."""

    def __init__(self, ids: list[str]) -> None:
        self._places = {name: place for place, name in enumerate(ids)}

    @staticmethod
    def pytest_configure() -> None:
        from hypothesis import Phase, settings

        # A property that fails does so at once: no smaller example is sought.
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", phases=phases, database=None)
        settings.load_profile("mutants")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Iterator[None]:
        yield
        if places := self._places:
            items[:] = [item for item in items if item.nodeid in places]
            items.sort(key=lambda item: places[item.nodeid])


def failure(copy: Path, tests: list[str], ids: list[str], limit: float) -> str | None:
    """What fails first in ``tests`` with the package in ``copy``, in a line.

    Args:
        copy: a folder with the package.
        tests: files and folders, and options of pytest.
        ids: the tests of them to run, in this order; empty: all.
        limit: seconds after which there is no more waiting for an end.

    """
    output = copy / "output.txt"
    process = os.fork()
    if not process:
        code = 99
        try:
            os.setsid()
            code = _run(copy, tests, ids, output)
        finally:
            os._exit(code)
    deadline = time.monotonic() + limit
    ended = status = 0
    while not ended and time.monotonic() < deadline:
        time.sleep(0.02)
        ended, status = os.waitpid(process, os.WNOHANG)
    # Servers that a test has started, too.
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    if not ended:
        os.waitpid(process, 0)
        return f"no end within {limit} s"
    if not status:
        return None
    lines = output.read_text(errors="replace").splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return (failed or lines[-1:] or [f"exit status {status}"])[0]


def _run(copy: Path, tests: list[str], ids: list[str], output: Path) -> int:
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # For processes that tests start, and for this one.
    os.environ["PYTHONPATH"] = str(copy)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["COLUMNS"] = "200"
    sys.dont_write_bytecode = True
    sys.path[0] = str(copy)
    options = ["-x", "-q", "--tb=no", "-m", "not slow", "-p", "no:cacheprovider"]
    options += ["-p", "no:randomly", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*options, *tests], plugins=[_Chosen(ids)])
    package = sys.modules.get("otel_sse")
    assert package is None or str(package.__file__).startswith(str(copy)), package
    return int(code)
