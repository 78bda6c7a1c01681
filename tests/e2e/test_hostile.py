"""Hostile streams and requests: memory and series stay bounded."""

import asyncio
import contextlib
import gc
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from helpers.aiohttp_apps import aiohttp_app, start_stream
from helpers.asgi import START, Stream, http_scope
from helpers.asgi_messages import END, MESSAGE, body, never, nowhere
from helpers.backend import Backend
from helpers.otlp import Receiver
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.waiting import until
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from otel_sse import SSEMiddleware
from otel_sse.wire import parser

MEBIBYTE = 2**20


@contextlib.contextmanager
def traced() -> Iterator[tuple[Callable[[], int], Callable[[], int]]]:
    """Gives two functions: the most bytes that the block has allocated, and those it holds yet."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    def peak() -> int:
        return tracemalloc.get_traced_memory()[1] - before

    def held() -> int:
        gc.collect()  # empties the interpreter's free lists too
        return tracemalloc.get_traced_memory()[0] - before

    try:
        yield peak, held
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("field", [b"data: ", b"event: ", b": ", b"id: "])
async def test_a_line_of_a_gigabyte_takes_no_memory(field: bytes, backend: Backend) -> None:
    """A line of 1 GiB, sent in pieces without a server, is counted and not kept."""
    chunk, count = b"x" * MEBIBYTE, 1024

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(field))
        for _ in range(count):
            await send(body(chunk))
        await send(body(b"\ndata: end\n\n", False))

    middleware = SSEMiddleware(app, **backend.providers, capture_event_id=True)
    with traced() as (peak, _):
        await middleware(http_scope(), never, nowhere)
        assert peak() < MEBIBYTE
    assert backend.value("sse.server.messages") == 1
    assert backend.value("sse.server.comments") == (field == b": ")
    assert backend.value("sse.server.io") == count * MEBIBYTE + len(field) + len("\ndata: end\n\n")
    (message,) = backend.spans("SSE")[0].events
    assert message.attributes["sse.message.size"] >= (0 if field == b": " else count * MEBIBYTE)


@pytest.mark.parametrize("detail", ["edges", "all"])
async def test_a_long_id_is_cut(detail: str, backend: Backend) -> None:
    """Span events and log events keep the same 64 characters of it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body(b"id: 7-" + b"x" * 1000 + b"\ndata\n\n", False))

    middleware = SSEMiddleware(
        app,
        **backend.providers,
        capture_event_id=True,
        message_events="span,log",
        message_event_detail=detail,
    )
    await middleware(http_scope(), never, nowhere)
    (span_event,) = backend.spans("SSE")[0].events
    (log_event,) = backend.events("sse.message")
    wanted = "7-" + "x" * 62
    assert [each.attributes["sse.event.id"] for each in (span_event, log_event)] == [wanted] * 2


async def test_a_long_line_on_a_socket_takes_no_memory(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """A line of 64 MiB that aiohttp streams to a real client takes no more than its buffers."""
    instrument()
    chunk, count = b"x" * MEBIBYTE, 64

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(b"data: ")
        for _ in range(count):
            await response.write(chunk)
        await response.write(b"\n\n")
        return response

    def drain(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            buffer = bytearray(2**16)
            while peer.recv_into(buffer):
                pass

    app = aiohttp_app("/events", handler)
    async with serve_aiohttp(app) as port:
        with traced() as (peak, _):
            await asyncio.to_thread(drain, port)
            assert peak() < 8 * MEBIBYTE
    assert backend.value("sse.server.messages") == 1
    assert backend.value("sse.server.io") == count * MEBIBYTE + 8


async def test_ten_thousand_event_types_are_eighteen(backend: Backend) -> None:
    """Series and memory do not grow with the types; every message is counted."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for number in range(first, first + 10_000):
            # Types in UTF-8, types that are not, and types longer than any that is recorded.
            name = (b"type-%d", b"\xff-%d", b"%d" + b"x" * 300)[number % 3] % number
            await send(body(b"event: %s\ndata: x\n\n" % name))
        await send(END)

    # Spans in memory would be what grows.
    middleware = SSEMiddleware(app, meter_provider=backend.meter_provider)
    first = 0
    await middleware(http_scope(), never, nowhere)
    first = 10_000
    with traced() as (_, held):
        await middleware(http_scope(), never, nowhere)
        assert held() < 64 * 1024
    points = {a["sse.event.type"]: p.value for a, p in backend.points("sse.server.messages")}
    assert len(points) == 17
    assert points.pop("_OTHER") == 20_000 - 16
    assert set(points.values()) == {1}
    assert len(parser._known_lines) <= 128


async def test_different_paths_clients_and_ids_take_no_memory() -> None:
    """However many paths, clients, Last-Event-IDs, user agents and routes come by, the series are
    those of the first 200 routes, and memory stays as it was. ``benchmarks/million.py`` does that
    with a million.
    """
    reader = InMemoryMetricReader()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(MESSAGE)
        await send(END)

    middleware = SSEMiddleware(
        app,
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider([reader], shutdown_on_exit=False),
        logger_provider=LoggerProvider(shutdown_on_exit=False),
    )

    async def distinct_clients(numbers: range) -> None:
        for number in numbers:
            template = {"path_template": f"/{number}/{{id}}"} if number % 2 else {}
            headers = [
                (b"host", b"%d.example" % number),
                (b"last-event-id", b"%d" % number),
                (b"user-agent", b"agent/%d" % number),
            ]
            scope = http_scope(
                path=f"/{number}/x", client=(f"client-{number}", 1), headers=headers, **template
            )
            await middleware(scope, never, nowhere)

    await distinct_clients(range(1000))
    with traced() as (_, held):
        await distinct_clients(range(1000, 4000))
        # Events beyond the throttle's limit wait for its thread.
        await until(lambda: held() < 128 * 1024)
    data: Any = reader.get_metrics_data()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        routes = {point.attributes.get("http.route") for point in metric.data.data_points}
        assert len(routes) <= 202, metric.name
        if metric.name == "sse.server.connections":
            assert sum(point.value for point in metric.data.data_points) == 4000


# A response's content types, and whether it is a stream: the last one counts.
CONTENT_TYPES = [
    ([b"text/event-stream", b"text/html"], False),
    ([b"text/html", b"text/event-stream"], True),
    ([b"text/event-stream;charset=\xff\xfe"], True),
    ([b"text/event-stream;" + b"x" * 100_000], True),
    ([b" TEXT/Event-Stream ; a=b"], True),
    ([b"text/event-stream, text/event-stream"], True),
    ([b"text/event-streams"], False),
    ([b"\xff\x80"], False),
    ([b""], False),
    ([], False),
]


@pytest.mark.parametrize(("types", "is_stream"), CONTENT_TYPES)
async def test_a_false_content_type_changes_nothing(
    types: list[bytes], is_stream: bool, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """An odd content type reaches the client as it is, and nothing is logged."""
    headers = [(b"Content-Type", value) for value in types]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "headers": headers})
        await send(MESSAGE)
        await send(END)

    raw = []
    for each in (app, SSEMiddleware(app, **backend.providers)):
        async with serve_asgi(each, date_header=False) as port:
            client = await RawClient.get(port, "/", "Connection: close")
            raw.append(await client.reader.read(-1))
            await client.close()
    assert raw[0] == raw[1]
    assert backend.value("sse.server.connections") == is_stream
    assert not [each for each in caplog.records if each.name.startswith("otel_sse")]


# Request headers with false or broken values.
FALSE_HEADERS = [
    b"User-Agent: \xff\xfe\x80 \xed\xa0\x80",
    b"User-Agent: " + b"x" * 7000,
    b"User-Agent: " + "😀".encode() * 1500,
    b"Last-Event-ID: \x80\x81\xff",
    b"Last-Event-ID: " + b"9" * 7000,
    b"Last-Event-ID:",
    b"traceparent: 00-\xff-\xff-01",
    b"traceparent: 00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
    b"tracestate: " + b"a=b," * 1500,
    b"baggage: \xff=\xfe;;;=,,",
    b"Accept: application/json",
    b"X-Forwarded-For: \xff",
]


async def _asgi_stream(request: Request) -> StreamingResponse:
    return StreamingResponse(iter([b"data: 1\n\n"]), media_type="text/event-stream")


async def _aiohttp_stream(request: web.Request) -> web.StreamResponse:
    response = await start_stream(request)
    await response.write(b"data: 1\n\n")
    return response


def _starlette(**config: Any) -> Any:
    return serve_asgi(Starlette(routes=[Route("/events/{name}", _asgi_stream)]), **config)


def _aiohttp() -> Any:
    return serve_aiohttp(aiohttp_app("/events/{name}", _aiohttp_stream))


FRAMEWORKS = {
    "uvicorn-h11": lambda: _starlette(http="h11"),
    "uvicorn-httptools": lambda: _starlette(http="httptools"),
    "aiohttp": _aiohttp,
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_hostile_request_costs_no_other_streams_telemetry(
    framework: str,
    backend: Backend,
    instrument: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever an untrusted client sends in a header or a path, each stream is exported with all
    its attributes, none is longer than 512 bytes, and no exporter logs a failure.
    """
    with Receiver() as receiver:
        exporter = OTLPSpanExporter(f"{receiver.endpoint}/v1/traces")
        backend.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
        instrument()
        paths = [b"/events/%FF%ED%A0%80", b"/events/" + b"%F0%9F%98%80" * 500]
        requests = [(b"/events/x", header) for header in FALSE_HEADERS]
        requests += [(path, b"User-Agent: a") for path in paths]
        async with FRAMEWORKS[framework]() as port:
            for path, header in requests:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                head = [b"GET " + path + b" HTTP/1.1", b"Host: x", b"Connection: close", header]
                writer.write(b"\r\n".join([*head, b"", b""]))
                assert b"data: 1\n\n" in await asyncio.wait_for(reader.read(-1), 60), header[:40]
                writer.close()
        exporter.shutdown()
        spans = receiver.spans("SSE")
        assert len(spans) == len(requests)
        agents = [span.attributes.get("user_agent.original") for span in spans]
        assert sum(agent is not None for agent in agents) == len(paths) + 3
        assert all("url.path" in span.attributes for span in spans)
        for span in spans:
            for name, value in span.attributes.items():
                assert len(str(value).encode()) <= 512, name
    assert backend.value("sse.server.connections", sse__resumed=True) == 3
    ours = ("otel_sse", "opentelemetry.exporter", "opentelemetry.sdk")
    assert not [each for each in caplog.records if each.name.startswith(ours)]


async def test_a_drop_reason_may_be_any_text(backend: Backend) -> None:
    """An application's text is cut, and holds nothing that an exporter cannot encode."""
    import otel_sse

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        otel_sse.current().record_dropped(1, "\udcff" + "x" * MEBIBYTE)
        await send(END)

    await Stream(SSEMiddleware(app, **backend.providers)).task
    ((attributes, _),) = backend.points("sse.server.dropped_messages")
    assert len(attributes["sse.drop.reason"].encode()) <= 512


async def test_peers_of_a_unix_socket_are_not_one_client(
    backend: Backend, instrument: Callable[..., None], tmp_path: Path
) -> None:
    """They have an empty address in aiohttp: behind a proxy on such a socket, no client
    counts as that of all.
    """
    instrument()
    done = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(b"data: x\n\n")
        await done.wait()
        return response

    app = aiohttp_app("/", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, tmp_path / "socket").start()
    writers = []
    for _ in range(3):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "socket")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"data: x")
        writers.append(writer)
    assert backend.value("sse.server.active_connections") == 3
    assert backend.value("sse.server.connections_per_client.max") == 0
    done.set()
    await until(lambda: len(backend.spans("SSE")) == 3)
    assert "client.address" not in backend.spans("SSE")[0].attributes
    for writer in writers:
        writer.close()
    await runner.cleanup()
