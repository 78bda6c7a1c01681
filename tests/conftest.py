"""Fixtures: a backend in memory, and each instrumentor on, telling it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from otlp import Receiver
from support import Backend

import otel_sse
from otel_sse.aiohttp_server import SSEAiohttpServerInstrumentor
from otel_sse.instrumentor import SSEInstrumentor
from otel_sse.starlette import SSEStarletteInstrumentor

# Their assertions tell what they compared; before anything imports them.
pytest.register_assert_rewrite("e2e.streams", "e2e.clients", "applications.promises")

_TESTS = Path(__file__).resolve().parent
_CHECKOUT = _TESTS.parent
# What takes longest, the longest first; a file that is not here comes before the small ones that
# lie beside this one. Whoever begins with the short ones waits for a long one in the end.
_LONGEST = (
    "applications/test_litellm.py",
    "applications/test_mcp.py",
    "applications/test_gradio.py",
    "applications/test_fastmcp.py",
    "alerting/test_delivery.py",
    "e2e/test_workers.py",
    "test_leaks.py",
    "e2e/test_endings.py",
    "e2e/test_shutdown.py",
    "e2e/test_client_sdks.py",
    "collector/test_configs.py",
    "browser/test_monitor.py",
    "alerting/test_rules.py",
    "e2e/test_clients.py",
    "collector/test_backends.py",
    "test_lifecycle.py",
    "test_scanner.py",
    "test_hostile.py",
)


def pytest_sessionstart() -> None:
    """What is tested is the built wheel, unless somebody asks for the checkout."""
    package = Path(otel_sse.__file__).resolve().parent
    if package.parent == _CHECKOUT and "OTEL_SSE_TEST_CHECKOUT" not in os.environ:
        pytest.exit("otel_sse is imported from the checkout; run `make test`", returncode=4)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the files; within them the order stays as it is, by chance."""

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(_TESTS).as_posix()
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST) + ("/" not in name)

    items.sort(key=rank)


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

    def on(**options: Any) -> None:
        for kind in (SSEStarletteInstrumentor, SSEAiohttpServerInstrumentor):
            instrumentor = kind()
            instrumentor.instrument(**backend.providers, **options)
            used.append(instrumentor)

    yield on
    for instrumentor in used:
        instrumentor.uninstrument()
