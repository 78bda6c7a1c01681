"""The instrumentation scope, and the API's switch that suppresses instrumentation."""

import httpx
from helpers.asgi import START, Stream, middleware
from helpers.asgi_messages import END, MESSAGE
from helpers.backend import Backend
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_sse import semconv
from otel_sse.frameworks import SSEHttpxInstrumentor


async def _app(scope: object, receive: object, send: object) -> None:
    for message in (START, MESSAGE, END):
        await send(message)  # type: ignore[operator]


async def test_the_scope_has_the_schema_of_the_upstream_attributes(backend: Backend) -> None:
    """Tracer, meter and logger have the same schema URL."""
    await Stream(middleware(backend, _app)).task
    (span,) = backend.spans("SSE")
    data = backend.reader.get_metrics_data()
    (scope,) = [
        scope.scope
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        if scope.scope.name == semconv.SCOPE
    ]
    records = [each.instrumentation_scope for each in backend._logs.get_finished_logs()]
    assert span.instrumentation_scope is not None
    found = {each.schema_url for each in (span.instrumentation_scope, scope, *records)}
    assert found == {semconv.SCHEMA_URL}
    assert semconv.SCHEMA_URL.startswith("https://opentelemetry.io/schemas/")


async def test_a_served_stream_can_be_suppressed(backend: Backend) -> None:
    """Within the block nothing is recorded; the stream is the same."""
    app = middleware(backend, _app)
    with suppress_instrumentation():
        suppressed = Stream(app)
        await suppressed.task
    assert suppressed.body == MESSAGE["body"]
    assert backend.spans() == []
    await Stream(app).task
    assert backend.value("sse.server.connections") == 1


def test_a_stream_that_is_read_can_be_suppressed(backend: Backend) -> None:
    """The same on the client's side."""
    headers = {"content-type": "text/event-stream"}
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, headers=headers, content=iter([b"data: 1\n\n"]))
    )
    instrumentor = SSEHttpxInstrumentor()
    instrumentor.instrument(**backend.providers)
    try:
        with httpx.Client(transport=transport) as client:
            with suppress_instrumentation():
                client.get("http://suppressed.test/")
            assert backend.value("sse.client.connections") == 0
            with client.stream("GET", "http://recorded.test/") as response:
                assert response.read() == b"data: 1\n\n"
        assert backend.value("sse.client.connections") == 1
    finally:
        instrumentor.uninstrument()
