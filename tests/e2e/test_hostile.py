"""Hostile streams and requests: memory and series are bounded, a server's own errors unchanged."""

import array
import asyncio
import contextlib
import gc
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import pytest
from aiohttp import web
from helpers.asgi import SSE, START, Fed, Stream, http_scope
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

from otel_sse import SSEMiddleware, scanner

MEBIBYTE = 2**20


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {**START, "headers": [*SSE, *headers]}


def body(data: Any, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


MESSAGE = body(b"data: 1\n\n")
END = body(b"", False)


async def never() -> Any:
    await asyncio.Event().wait()


async def nowhere(_: Any) -> None:
    """A ``send`` that takes everything."""


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


# --- long lines, many values -----------------------------------------------------------------


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
    (told,) = backend.spans("SSE")[0].events
    assert told.attributes["sse.message.size"] >= (0 if field == b": " else count * MEBIBYTE)


async def test_a_long_line_on_a_socket_takes_no_memory(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """A line of 64 MiB that aiohttp streams to a real client takes no more than its buffers."""
    instrument()
    chunk, count = b"x" * MEBIBYTE, 64

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
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

    app = web.Application()
    app.router.add_get("/events", handler)
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
            # Types in UTF-8, types that are not, and types longer than any that is told.
            name = (b"type-%d", b"\xff-%d", b"%d" + b"x" * 300)[number % 3] % number
            await send(body(b"event: %s\ndata: x\n\n" % name))
        await send(END)

    # Spans that keep what they were told would be what grows.
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
    assert len(scanner._known_lines) <= 128


async def test_different_paths_clients_and_ids_leave_nothing_behind() -> None:
    """However many paths, clients, Last-Event-IDs, user agents and routes come by, the series are
    those of the first 200 routes, and memory stays as it was. ``soak.py`` does a million.
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

    async def strangers(numbers: range) -> None:
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

    await strangers(range(1000))
    with traced() as (_, held):
        await strangers(range(1000, 4000))
        assert held() < 128 * 1024
    data: Any = reader.get_metrics_data()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        routes = {point.attributes.get("http.route") for point in metric.data.data_points}
        assert len(routes) <= 202, metric.name
        if metric.name == "sse.server.connections":
            assert sum(point.value for point in metric.data.data_points) == 4000


# --- headers that lie ------------------------------------------------------------------------

# A response's content types, and whether it is told as a stream: the first one counts.
CONTENT_TYPES = [
    ([b"text/event-stream", b"text/html"], True),
    ([b"text/html", b"text/event-stream"], False),
    ([b"text/event-stream;charset=\xff\xfe"], True),
    ([b"text/event-stream;" + b"x" * 100_000], True),
    ([b" TEXT/Event-Stream ; a=b"], True),
    ([b"text/event-stream, text/event-stream"], False),
    ([b"text/event-streams"], False),
    ([b"\xff\x80"], False),
    ([b""], False),
    ([], False),
]


@pytest.mark.parametrize(("types", "told"), CONTENT_TYPES)
async def test_a_content_type_that_lies_changes_nothing(
    types: list[bytes], told: bool, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """A strange content type reaches the client as it is, and is no fault of anybody's."""
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
    assert backend.value("sse.server.connections") == told
    assert not [each for each in caplog.records if each.name.startswith("otel_sse")]


# Headers of a request that say nothing true.
LIES = [
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
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: 1\n\n")
    return response


def _starlette(**config: Any) -> Any:
    return serve_asgi(Starlette(routes=[Route("/events/{name}", _asgi_stream)]), **config)


def _aiohttp() -> Any:
    app = web.Application()
    app.router.add_get("/events/{name}", _aiohttp_stream)
    return serve_aiohttp(app)


FRAMEWORKS = {
    "uvicorn-h11": lambda: _starlette(http="h11"),
    "uvicorn-httptools": lambda: _starlette(http="httptools"),
    "aiohttp": _aiohttp,
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_request_that_lies_costs_nobody_elses_telemetry(
    framework: str,
    backend: Backend,
    instrument: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever a stranger writes in a header or a path, every stream is exported with all of its
    attributes, none is longer than 512 bytes, and no exporter logs a failure.
    """
    with Receiver() as receiver:
        exporter = OTLPSpanExporter(f"{receiver.endpoint}/v1/traces")
        backend.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
        instrument()
        paths = [b"/events/%FF%ED%A0%80", b"/events/" + b"%F0%9F%98%80" * 500]
        requests = [(b"/events/x", lie) for lie in LIES]
        requests += [(path, b"User-Agent: a") for path in paths]
        async with FRAMEWORKS[framework]() as port:
            for path, lie in requests:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                head = [b"GET " + path + b" HTTP/1.1", b"Host: x", b"Connection: close", lie]
                writer.write(b"\r\n".join([*head, b"", b""]))
                assert b"data: 1\n\n" in await asyncio.wait_for(reader.read(-1), 60), lie[:40]
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
    """An application's words are cut, and hold nothing that an exporter cannot encode."""
    import otel_sse

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        otel_sse.current().record_dropped(1, "\udcff" + "x" * MEBIBYTE)
        await send(END)

    await Stream(SSEMiddleware(app, **backend.providers)).task
    ((attributes, _),) = backend.points("sse.server.dropped_messages")
    assert len(attributes["sse.drop.reason"].encode()) <= 512


# --- what an application may send -------------------------------------------------------------


@contextlib.asynccontextmanager
async def serve_hypercorn(app: Any) -> AsyncIterator[int]:
    """Runs an ASGI application under Hypercorn in this loop; yields its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = hypercorn.config.Config()
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
        config.errorlog = config.accesslog = None
        config.graceful_timeout = 1
        stop = asyncio.Event()
        task = asyncio.create_task(
            hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait, mode="asgi")  # type: ignore[arg-type]
        )
        try:
            yield int(listener.getsockname()[1])
        finally:
            stop.set()
            await task


SERVERS: dict[str, Callable[[Any], Any]] = {
    "uvicorn-h11": lambda app: serve_asgi(app, http="h11", date_header=False),
    "uvicorn-httptools": lambda app: serve_asgi(app, http="httptools", date_header=False),
    "hypercorn": serve_hypercorn,
}
WIDE = memoryview(array.array("H", b"data: xy\n\n"))
GAPS = memoryview(b"d-a-t-a-:- -x-\n-\n-")[::2]

# What an application sends, by name.
SENDINGS: dict[str, list[Any]] = {
    "a body before the start": [MESSAGE],
    "two starts": [START, START],
    "a start within": [START, MESSAGE, START],
    "a body after the end": [START, MESSAGE, END, body(b"data: late\n\n")],
    "an end after the end": [START, MESSAGE, END, END],
    "trailers": [START, MESSAGE, END, {"type": "http.response.trailers", "headers": []}],
    "an unknown type": [START, MESSAGE, {"type": "http.nonsense"}],
    "an unknown type first": [{"type": "http.nonsense"}],
    "no status": [{"type": "http.response.start", "headers": SSE}],
    "None first": [None],
    "None": [START, MESSAGE, None],
    "no type": [START, MESSAGE, {}],
    "a type that is none": [START, MESSAGE, {"type": b"http.response.body"}],
    "a number": [START, MESSAGE, 7],
    "a list": [START, MESSAGE, []],
    "a text": [START, MESSAGE, "http.response.body"],
    "a str body": [START, MESSAGE, body("data: x\n\n")],
    "a number for a body": [START, MESSAGE, body(5)],
    "None for a body": [START, MESSAGE, body(None)],
    "a bytearray": [START, body(bytearray(b"data: x\n\n")), END],
    "a memoryview": [START, body(memoryview(b"data: x\n\n")), END],
    "a wide memoryview": [START, body(WIDE), END],
    "a memoryview with gaps": [START, body(GAPS), END],
    "no bytes": [START, body(b""), body(bytearray()), body(memoryview(b"")), MESSAGE, END],
    "more than its length": [start((b"content-length", b"4")), MESSAGE, END],
    "less than its length": [start((b"content-length", b"400")), MESSAGE, END],
    "no number for a length": [start((b"content-length", b"x")), MESSAGE, END],
    "headers of str": [{**START, "headers": [("content-type", "text/event-stream")]}, MESSAGE, END],
}


class Sender:
    """Sends what the path's name says, and keeps what that raised."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        name = scope["path"][1:]
        seen = self.seen[name] = []
        for message in SENDINGS[name]:
            try:
                await send(message)
            except BaseException as error:
                seen.append(repr(error))
                raise
            seen.append("taken")


async def _answers(serve: Callable[[Any], Any], app: Any) -> dict[str, bytes]:
    """The raw response to each name of ``SENDINGS``."""
    found = {}
    async with serve(app) as port:
        for name in SENDINGS:
            path = "/" + name.replace(" ", "%20")
            client = await RawClient.get(port, path, "Connection: close")
            raw = await asyncio.wait_for(client.reader.read(-1), 60)
            lines = raw.split(b"\r\n")
            found[name] = b"\r\n".join(x for x in lines if not x.lower().startswith(b"date:"))
            await client.close()
    return found


@pytest.mark.parametrize("server", SERVERS)
async def test_what_a_server_makes_of_strange_messages_stays_the_same(server: str) -> None:
    """Each response has the same bytes and the application gets the server's own error, as if
    nothing were instrumented; what is told of it is what went out, and it has one ending.
    """
    plain, told = Sender(), Sender()
    backends = {name: Backend() for name in SENDINGS}
    watched = {name: SSEMiddleware(told, **each.providers) for name, each in backends.items()}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await watched[scope["path"][1:]](scope, receive, send)

    answers = await _answers(SERVERS[server], plain)
    assert await _answers(SERVERS[server], app) == answers
    assert told.seen == plain.seen
    assert {"taken"} < {each for seen in plain.seen.values() for each in seen}

    for name, backend in backends.items():
        seen = plain.seen[name]
        sent = [
            bytes(message["body"])
            for message, result in zip(SENDINGS[name], seen, strict=False)
            if isinstance(message, dict)
            and isinstance(message.get("body"), (bytes, bytearray, memoryview))
            and result == "taken"
        ]
        began = name != "headers of str" and seen[0] == "taken" and len(seen) > 1
        assert backend.value("sse.server.connections") == began, name
        assert backend.value("sse.server.active_connections") == 0, name
        assert backend.value("sse.server.connection.duration") == began, name
        if began:
            assert backend.value("sse.server.io") == len(b"".join(sent)), name
            assert backend.value("sse.server.messages") == b"".join(sent).count(b"\n\n"), name
            (span,) = backend.spans("SSE")
            ended = END in SENDINGS[name] and len(seen) > SENDINGS[name].index(END)
            ended = ended and seen[SENDINGS[name].index(END)] == "taken"
            failed = seen[-1] != "taken" and not ended
            reason = "error" if failed else "completed" if ended else "unknown"
            told = span.attributes["sse.close.reason"]
            # The server may have closed the connection for it before the application returned.
            assert told == reason or (reason, told) == ("unknown", "client_disconnect"), name
            error = span.attributes.get("error.type", "").rpartition(".")[2]
            assert error == (seen[-1].partition("(")[0] if failed else ""), name


async def test_messages_that_are_none_pass_after_the_peer_has_left(backend: Backend) -> None:
    """Once the peer has left uvicorn looks at no message; nothing around it may raise either."""
    results: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(MESSAGE)
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        for message in (None, {}, 7, [], body(None), {"type": 3}, MESSAGE):
            await send(message)
            results.append(message)

    async with serve_asgi(SSEMiddleware(app, **backend.providers)) as port:
        client = await RawClient.get(port, "/")
        await client.until(b"data: 1")
        await client.close()
        await until(lambda: backend.spans("SSE"))
    assert len(results) == 7
    assert backend.spans("SSE")[0].attributes["sse.close.reason"] == "client_disconnect"
    assert backend.value("sse.server.messages") == 1


async def test_a_server_that_takes_anything_gets_the_very_objects(backend: Backend) -> None:
    """Every object that an application sends, of whatever kind, comes to the server as it is."""
    for sending in SENDINGS.values():

        async def app(scope: Any, receive: Any, send: Any, sending: Any = sending) -> None:
            for message in sending:
                await send(message)

        got: list[Any] = []

        async def take(message: Any, got: list[Any] = got) -> None:
            got.append(message)

        await SSEMiddleware(app, **backend.providers)(http_scope(), never, take)
        assert [id(each) for each in got] == [id(each) for each in sending]
    assert backend.value("sse.server.active_connections") == 0


@pytest.mark.parametrize("media_type", [b"application/json", b"text/event-stream"])
async def test_headers_that_are_read_once_are_the_servers_to_read(
    media_type: bytes, backend: Backend
) -> None:
    """ASGI allows any iterable: one that is exhausted by reading reaches the server whole."""
    headers = [(b"x-a", b"1"), (b"content-type", media_type), (b"set-cookie", b"b=2")]
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert asyncio.iscoroutinefunction(send)
        await send({**START, "headers": iter(headers)})
        await send(END)

    async def server(message: Any) -> None:
        got.extend(message.get("headers", ()))

    await SSEMiddleware(app, **backend.providers)(http_scope(), never, server)
    assert got == headers


async def test_a_send_that_shows_nothing_of_itself_is_told(
    backend: Backend,
) -> None:
    """A proxy may raise at every look for what is behind it: a stream is told all the same, and
    where hypercorn is asked whether it stops, nothing of that reaches the application.
    """
    fed = Fed()
    fed.end(b"data: x\n\n", None)
    mw = SSEMiddleware(fed, **backend.providers)

    class Proxy:
        def __init__(self, send: Any) -> None:
            self._call = send

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("outside of its context")

        async def __call__(self, message: Any) -> None:
            await self._call(message)

    stream = Stream(lambda scope, receive, send: mw(scope, receive, Proxy(send)))
    await stream.task
    assert stream.body == b"data: x\n\n"
    assert backend.value("sse.server.messages") == 1
    assert backend.value("sse.server.connection.duration", sse__close__reason="completed") == 1


async def test_peers_of_a_unix_socket_are_not_one_client(
    backend: Backend, instrument: Callable[..., None], tmp_path: Path
) -> None:
    """They have an empty address in aiohttp: behind a proxy on such a socket, nobody is told as the
    client of all.
    """
    instrument()
    done = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: x\n\n")
        await done.wait()
        return response

    app = web.Application()
    app.router.add_get("/", handler)
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


async def test_a_strange_lifespan_message_is_the_servers_to_judge(backend: Backend) -> None:
    """A lifespan's messages reach the server whatever they are."""
    sendings = (None, {}, 7, {"type": 7}, {"type": "lifespan.startup.complete"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in sendings:
            await send(message)

    got: list[Any] = []

    async def take(message: Any) -> None:
        got.append(message)

    await SSEMiddleware(app, **backend.providers)({"type": "lifespan"}, never, take)
    assert got == list(sendings)


# --- what a framework's application may write --------------------------------------------------

# What an application writes, and the bytes of it that are the stream's (None: not to be taken).
WRITES: dict[str, tuple[Any, bytes | None]] = {
    "str": ("data: x\n\n", None),
    "bytearray": (bytearray(b"data: x\n\n"), b"data: x\n\n"),
    "memoryview": (memoryview(b"data: x\n\n"), b"data: x\n\n"),
    "wide": (WIDE, b"data: xy\n\n"),
    "empty": (b"", b""),
    "number": (5, None),
    "none": (None, None),
}


async def _both(
    serve: Callable[[], Any], path: str, errors: list[str], instrument: Callable[..., None]
) -> tuple[bytes, list[str]]:
    """Asks the server plain and instrumented; gives what was the same both times."""
    outcomes = []
    for prepare in (None, instrument):
        if prepare is not None:
            prepare()
        errors.clear()
        async with serve() as port:
            client = await RawClient.get(port, path, "Connection: close")
            raw = await asyncio.wait_for(client.reader.read(-1), 60)
            await client.close()
        head, _, stream = raw.partition(b"\r\n\r\n")
        outcomes.append((head.partition(b"\r\n")[0], stream, list(errors)))
    assert outcomes[0] == outcomes[1]
    return outcomes[0][1], outcomes[0][2]


@pytest.mark.parametrize("length", [None, 4, 14])
@pytest.mark.parametrize("kind", WRITES)
async def test_aiohttp_writes_of_any_kind(
    kind: str, length: int | None, backend: Backend, instrument: Callable[..., None]
) -> None:
    """The framework's own error reaches the handler, and what it cuts at a length that lies does
    not count.
    """
    written, counted = WRITES[kind]
    errors: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.content_length = length
        await response.prepare(request)
        for data in (written, b"data: z\n\n"):
            try:
                await response.write(data)
            except Exception as error:
                errors.append(repr(error))
        return response

    def serve() -> Any:
        app = web.Application()
        app.router.add_get("/events", handler)
        return serve_aiohttp(app)

    _, raised = await _both(serve, "/events", errors, instrument)
    assert bool(raised) is (counted is None)
    await until(lambda: backend.spans("SSE"))
    stream = ((counted or b"") + b"data: z\n\n")[:length]
    assert backend.value("sse.server.io") == len(stream)
    assert backend.value("sse.server.messages") == stream.count(b"\n\n")
    assert backend.spans("SSE")[0].attributes["sse.close.reason"] == "completed"


@pytest.mark.parametrize("kind", WRITES)
async def test_starlette_chunks_of_any_kind(
    kind: str, backend: Backend, instrument: Callable[..., None]
) -> None:
    """A generator of ``str`` is Starlette's to encode; what it cannot send raises as ever."""
    written, _ = WRITES[kind]
    errors: list[str] = []

    async def chunks() -> AsyncIterator[Any]:
        yield written
        yield "data: z\n\n"

    async def endpoint(request: Request) -> StreamingResponse:
        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await Starlette(routes=[Route("/events", endpoint)])(scope, receive, send)
        except BaseException as error:
            errors.append(repr(error))
            raise

    raw, raised = await _both(lambda: serve_asgi(app), "/events", errors, instrument)
    assert bool(raised) is (kind in ("bytearray", "number", "none"))
    await until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == ("error" if raised else "completed")
    if raised:
        assert span.attributes["error.type"] == raised[0].partition("(")[0]
        assert span.attributes["sse.io"] == 0
    elif kind != "wide":  # whose chunk's length uvicorn gets wrong by itself
        assert backend.value("sse.server.messages") == raw.count(b"\n\n")
