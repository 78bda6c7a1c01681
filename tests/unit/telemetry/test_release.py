"""What is reported after the last instrumentor has been removed."""

from collections.abc import Iterator

import httpx
import pytest
from helpers.asgi import Fed, Stream
from helpers.backend import Backend
from starlette.applications import Starlette
from starlette.routing import Mount

from otel_sse.frameworks import SSEHttpxInstrumentor, SSEStarletteInstrumentor

COUNTERS = ("sse.client.messages", "sse.client.connections", "sse.client.io")
GAUGES = {
    "sse.server.connection.idle.max",
    "sse.server.connection.age.max",
    "sse.server.connections_per_client.max",
}


@pytest.fixture
def instrumentor(backend: Backend) -> Iterator[SSEHttpxInstrumentor]:
    instrumentor = SSEHttpxInstrumentor()
    instrumentor.instrument(**backend.providers)
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    headers = {"content-type": "text/event-stream"}

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=headers, content=iter([b"data: 1\n\n"]))

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        yield client


def test_counts_since_the_last_export_are_reported(
    instrumentor: SSEHttpxInstrumentor, client: httpx.Client, backend: Backend
) -> None:
    """By each later collection, as the SDK's own counters are."""
    for _ in range(3):
        client.get("http://counted.test/")
    instrumentor.uninstrument()
    for _ in range(2):
        assert [backend.value(name) for name in COUNTERS] == [3, 3, 27]
        assert [point.value for _, point in backend.points("sse.client.active_connections")] == [0]


def test_a_stream_that_is_live_then_is_reported_to_its_end(
    instrumentor: SSEHttpxInstrumentor, client: httpx.Client, backend: Backend
) -> None:
    """Also that it is live no more."""
    with client.stream("GET", "http://live.test/") as response:
        instrumentor.uninstrument()
        assert backend.value("sse.client.active_connections") == 1
        response.read()
    assert [point.value for _, point in backend.points("sse.client.active_connections")] == [0]
    assert [backend.value(name) for name in COUNTERS] == [1, 1, 9]


async def test_gauges_are_reported_as_long_as_a_stream_is_live(
    backend: Backend,
) -> None:
    """They are those of live streams, so after the last one's end there are none."""
    SSEStarletteInstrumentor().instrument(**backend.providers)
    fed = Fed()
    stream = Stream(Starlette(routes=[Mount("/", fed)]))
    await fed.feed(b"data: 1\n\n")
    SSEStarletteInstrumentor().uninstrument()
    assert backend.metrics().keys() >= GAUGES
    fed.end()
    await stream.task
    assert backend.metrics().keys() & GAUGES == set()
    assert backend.value("sse.server.messages") == 1


def test_instrumented_again_counts_go_on(
    instrumentor: SSEHttpxInstrumentor, client: httpx.Client, backend: Backend
) -> None:
    """Nothing is reported twice, also where the event types are others."""
    client.get("http://again.test/")
    instrumentor.uninstrument()
    instrumentor.instrument(**backend.providers, event_types="tick")
    client.get("http://again.test/")
    assert [backend.value(name) for name in COUNTERS] == [2, 2, 18]
    assert backend.value("sse.client.messages", sse__event__type="message") == 2
    assert len(backend.points("sse.client.io")) == 1


def test_nothing_is_reported_where_no_stream_was_opened(
    instrumentor: SSEHttpxInstrumentor, backend: Backend
) -> None:
    """An instrumentor that was used for nothing leaves nothing."""
    instrumentor.uninstrument()
    assert backend.metrics() == {}
