"""Fixtures: a backend in memory, and instrumentors that report to it."""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.client_readers import instrumented
from helpers.client_streams import StreamServer, serving
from helpers.otlp import Receiver
from opentelemetry import context
from opentelemetry.context import Context

import otel_sse
from otel_sse.frameworks import (
    SSEAiohttpServerInstrumentor,
    SSESanicInstrumentor,
    SSEStarletteInstrumentor,
    SSETornadoInstrumentor,
)
from otel_sse.instrumentor import SSEInstrumentor

# Before a test imports it.
pytest.register_assert_rewrite("applications.promises")

_TESTS = Path(__file__).resolve().parent
_CHECKOUT = _TESTS.parent
# The files that take longest, the longest first; then all others, then the unit tests. In another
# order one worker would still run a long file when the others have finished.
_LONGEST = (
    "applications/test_litellm.py",
    "applications/test_mcp.py",
    "applications/test_gradio.py",
    "applications/test_fastmcp.py",
    "storm/test_storm.py",
    "alerting/test_delivery.py",
    "e2e/test_doctor.py",
    "e2e/test_workers.py",
    "e2e/test_leaks.py",
    "e2e/test_endings.py",
    "e2e/test_shutdown.py",
    "e2e/test_client_sdks.py",
    "collector/test_configs.py",
    "browser/test_monitor.py",
    "alerting/test_rules.py",
    "e2e/test_client_waiting.py",
    "e2e/test_client_garbage.py",
    "e2e/test_client_reading.py",
    "collector/test_backends.py",
    "e2e/test_lifecycle.py",
    "unit/wire/test_parser.py",
    "e2e/test_hostile.py",
)


def pytest_configure() -> None:
    """Tests run as in the foreground of a terminal, also where a shell has started them in its
    background or nohup has: they and the processes that they start do not ignore SIGINT.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart() -> None:
    """The built wheel is tested, unless a variable asks for the checkout."""
    package = Path(otel_sse.__file__).resolve().parent
    if package.parent == _CHECKOUT and "OTEL_SSE_TEST_CHECKOUT" not in os.environ:
        pytest.exit("otel_sse is imported from the checkout; run `make test`", returncode=4)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Closes the socket that pytest-rerunfailures opens beside pytest-xdist, and leaves open."""
    if (reruns := getattr(config, "failures_db", None)) is not None and hasattr(reruns, "sock"):
        reruns.sock.close()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the files; within a file the order stays random. What starts other processes runs once
    more where it fails: these share the machine with each other, and with whatever else it does.
    """

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(_TESTS).as_posix()
        if name in _LONGEST:
            return _LONGEST.index(name)
        return len(_LONGEST) + name.startswith("unit/")

    items.sort(key=rank)
    for item in items:
        if not item.path.is_relative_to(_TESTS / "unit"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(autouse=True)
def _no_context_is_left() -> Iterator[None]:
    """Fails if a test leaves an OpenTelemetry context attached, in which the next one would run."""
    yield
    left = context.get_current()
    if left:
        context.attach(Context())
        pytest.fail(f"left attached: {dict(left)}")


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def instrument(backend: Backend) -> Iterator[Callable[..., None]]:
    """Switches the instrumentors on with the given options, and off after the test."""
    used: list[SSEInstrumentor] = []

    kinds = (
        SSEStarletteInstrumentor,
        SSEAiohttpServerInstrumentor,
        SSETornadoInstrumentor,
        SSESanicInstrumentor,
    )

    def on(**options: Any) -> None:
        for kind in kinds:
            instrumentor = kind()
            instrumentor.instrument(**backend.providers, **options)
            used.append(instrumentor)

    yield on
    for instrumentor in used:
        instrumentor.uninstrument()


@pytest.fixture
def telemetry(backend: Backend) -> Iterator[Backend]:
    """The backend, to which every client instrumentor reports."""
    with instrumented(backend):
        yield backend


@pytest.fixture
async def server() -> AsyncIterator[StreamServer]:
    """A server that answers each path in its own way, for clients that read."""
    async with serving() as server:
        yield server


@pytest.fixture
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails if anything is logged as a warning: a context that cannot be detached, a span that has
    ended, an instrument made twice.
    """
    caplog.set_level(logging.WARNING)
    yield
    for when in ("setup", "call"):
        assert [record.getMessage() for record in caplog.get_records(when)] == []
