"""Tornado's requests around their streams: parents, closes, clients that leave or do not read."""

import asyncio
import contextlib
import gc
import logging
import weakref
from functools import partial
from typing import Any

import pytest
from aiohttp import web as aiohttp_web
from helpers import oracle
from helpers.aiohttp_apps import aiohttp_app, start_stream
from helpers.backend import Backend
from helpers.coexistence import Caller, Http, NoHttp, Work, assert_placed, together
from helpers.framework_cases import Instrument
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp
from helpers.streams import STREAM, Reply, assert_reported, closed, fetch
from helpers.tornado_apps import Streaming, serve_tornado, tornado_app
from helpers.waiting import until
from opentelemetry import context
from opentelemetry.instrumentation.tornado import TornadoInstrumentor
from opentelemetry.sdk.trace import ReadableSpan
from tornado import web
from tornado.iostream import StreamClosedError

import otel_sse
from otel_sse.frameworks import SSETornadoInstrumentor

ORDER = pytest.mark.parametrize("first", ["theirs", "ours"])
CHUNK = b"data: " + b"x" * 60_000 + b"\n\n"


class ContribTornado(Http):
    instrumentor = TornadoInstrumentor


class Room(Streaming):
    async def get(self, room: str) -> None:
        await self.write_stream(self)


class Prepared(Room):
    async def prepare(self) -> None:
        await self.write_stream(self)
        self.finish()


def rooms_app(write_stream: Any, kind: type[Room] = Room) -> web.Application:
    return web.Application([("/rooms/([^/]+)", kind, {"write_stream": write_stream})])


async def ask(app: Any, caller: Caller) -> Reply:
    async with serve_tornado(app) as port:
        return await fetch(port, "/rooms/blue", *caller.headers)


@ORDER
@pytest.mark.parametrize("handler", [Room, Prepared])
@pytest.mark.parametrize("kind", [NoHttp, ContribTornado])
async def test_tornado_instrumentation_and_ours(
    kind: type[Http],
    handler: type[Room],
    first: str,
    backend: Backend,
    instrument: Instrument,
    no_warnings: None,
) -> None:
    """Contrib's server span is what it is without us; ours is one and below it, or else below the
    caller's; and what a handler does once it has flushed its headers is below ours.
    """

    def build(work: Work) -> web.Application:
        async def write_stream(handler: web.RequestHandler) -> None:
            await handler.flush()
            async for piece in work.pieces():
                handler.write(piece)
                await handler.flush()

        return rooms_app(write_stream, handler)

    http = kind(backend)
    connection, caller, work = await together(http, first, build, ask, backend, instrument)
    assert_placed(connection, caller, backend, makes_spans=http.makes_spans)
    work.assert_within(connection)


@ORDER
async def test_a_span_of_the_handlers_own_is_not_the_parent(
    first: str, backend: Backend, instrument: Instrument, no_warnings: None
) -> None:
    """Where a handler has one current at its first flush, the stream is below contrib's all the
    same, and the handler's work stays below its own.
    """
    own: list[ReadableSpan] = []

    def build(work: Work) -> web.Application:
        async def write_stream(handler: web.RequestHandler) -> None:
            with backend.tracer.start_as_current_span("own") as span:
                own.append(span)  # type: ignore[arg-type]
                async for piece in work.pieces():
                    handler.write(piece)
                    await handler.flush()

        return rooms_app(write_stream)

    http = ContribTornado(backend)
    connection, caller, work = await together(http, first, build, ask, backend, instrument)
    assert_placed(connection, caller, backend, makes_spans=True)
    work.assert_within(own[-1])


async def test_another_task_that_sends_keeps_its_context(
    backend: Backend, instrument: Instrument
) -> None:
    """As a broadcast to many handlers: neither stream becomes the parent of its spans, and no
    current span is left in it.
    """
    instrument()
    waiting: list[web.RequestHandler] = []
    done = asyncio.Event()

    async def write_stream(handler: web.RequestHandler) -> None:
        waiting.append(handler)
        await done.wait()

    async def broadcast() -> list[Any]:
        seen = []
        for handler in waiting:
            handler.write(STREAM)
            await handler.flush()
            seen.append(context.get_current())
        return seen

    async with serve_tornado(tornado_app("/events", write_stream)) as port:
        replies = [asyncio.create_task(fetch(port, "/events")) for _ in range(2)]
        await until(lambda: len(waiting) == 2)
        before = context.get_current()
        assert await broadcast() == [before, before]
        assert context.get_current() is before
        done.set()
        assert [reply.body for reply in await asyncio.gather(*replies)] == [STREAM] * 2
    await until(lambda: len(backend.spans("SSE")) == 2)
    messages, _ = oracle.read(STREAM)
    assert backend.value("sse.server.messages") == 2 * len(messages)


async def test_a_handler_that_does_not_stream_has_the_context_that_it_has_without_us(
    backend: Backend, instrument: Instrument
) -> None:
    """The very same object."""
    seen: list[Any] = []

    class Other(web.RequestHandler):
        def get(self) -> None:
            seen.append(context.get_current())
            self.write("no stream")

    instrument()
    async with serve_tornado(web.Application([("/", Other)])) as port:
        assert (await fetch(port, "/")).body == b"no stream"
    assert seen == [context.get_current()]
    assert seen[0] is context.get_current()


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("compressed", [True, False])
async def test_trace_comments_are_there_where_configured(
    propagate: bool, compressed: bool, backend: Backend, instrument: Instrument
) -> None:
    """Off, not one byte differs; on, the messages are the same behind one comment more each, below
    the compression; neither its comments nor their bytes are counted.
    """
    instrument(propagate=propagate)

    async def write_stream(handler: web.RequestHandler) -> None:
        handler.write(STREAM[:500])
        await handler.flush()
        await handler.finish(STREAM[500:])

    app = tornado_app("/events", write_stream, compress_response=compressed)
    async with serve_tornado(app) as port:
        stream = (await fetch(port, "/events", "Accept-Encoding: gzip")).stream
    messages, comments = oracle.read(STREAM)
    again, more = oracle.read(stream)
    assert again == messages
    assert more - comments == stream.count(b": otel traceparent=00-")
    assert (more > comments) is propagate
    assert (stream == STREAM) is not propagate
    await assert_reported(backend, STREAM, route="/events")


@pytest.mark.parametrize("header", ["Content-Length", "Content-Encoding"])
async def test_a_body_of_a_settled_length_or_coding_is_unmodified(
    header: str, backend: Backend, instrument: Instrument
) -> None:
    """More bytes than the headers announce would break the response; a coded body's messages are
    not read.
    """
    instrument(propagate=True)

    async def write_stream(handler: web.RequestHandler) -> None:
        handler.set_header(header, len(STREAM) if header == "Content-Length" else "rot13")
        handler.write(STREAM)
        await handler.flush()

    async with serve_tornado(tornado_app("/events", write_stream)) as port:
        assert (await fetch(port, "/events")).body == STREAM
    await until(lambda: backend.spans("SSE"))
    assert backend.value("sse.server.io") == len(STREAM)
    assert bool(backend.value("sse.server.messages")) is (header == "Content-Length")


class QuotaError(Exception):
    """An error of the application's."""


async def raise_midway(handler: web.RequestHandler) -> None:
    raise QuotaError


async def raise_http_error(handler: web.RequestHandler) -> None:
    raise web.HTTPError(409)


async def raise_after_the_end(handler: web.RequestHandler) -> None:
    await handler.finish()
    raise QuotaError


async def time_out(handler: web.RequestHandler) -> None:
    await asyncio.wait_for(asyncio.Event().wait(), 0.01)


async def write_too_much(handler: web.RequestHandler) -> None:
    handler.write(b"data: beyond what was declared\n\n")
    await handler.flush()


async def set_a_reason(handler: web.RequestHandler) -> None:
    otel_sse.current().set_close_reason("server_shutdown")


@pytest.mark.parametrize(
    ("end", "reason", "error"),
    [
        (raise_midway, "error", f"{__name__}.QuotaError"),
        (raise_http_error, "error", "tornado.web.HTTPError"),
        (raise_after_the_end, "error", f"{__name__}.QuotaError"),
        (time_out, "timeout", "TimeoutError"),
        (write_too_much, "error", "tornado.httputil.HTTPOutputError"),
        (set_a_reason, "server_shutdown", None),
    ],
)
async def test_why_a_stream_ends(
    end: Any,
    reason: str,
    error: str | None,
    backend: Backend,
    instrument: Instrument,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What leaves the handler, or what it says itself; what it logs is Tornado's own."""
    caplog.set_level(logging.CRITICAL, "tornado")
    instrument()

    async def write_stream(handler: web.RequestHandler) -> None:
        if end is write_too_much:
            handler.set_header("Content-Length", 10)
        handler.write(b"data: 1\n\n")
        await handler.flush()
        await end(handler)

    async with serve_tornado(tornado_app("/events", write_stream)) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: 1\n\n")
        await until(lambda: backend.spans("SSE"))
        await client.close()
    if error == "TimeoutError":
        error = (
            asyncio.TimeoutError.__name__
            if asyncio.TimeoutError is TimeoutError
            else ("asyncio.exceptions.TimeoutError")
        )
    assert closed(backend) == (reason, error)


@pytest.mark.parametrize("leave", ["close", "reset"])
async def test_a_client_that_leaves_is_what_ends_its_stream(
    leave: str, backend: Backend, instrument: Instrument, caplog: pytest.LogCaptureFixture
) -> None:
    """By its next flush or, where the handler listens to that, by ``on_connection_close``; the live
    stream is in the list of the process until then.
    """
    caplog.set_level(logging.CRITICAL, "tornado")
    instrument()
    left: list[bool] = []

    class Listening(Streaming):
        def on_connection_close(self) -> None:
            left.append(True)

    async def write_stream(handler: web.RequestHandler) -> None:
        with contextlib.suppress(StreamClosedError):
            while True:
                handler.write(b"data: 1\n\n")
                await handler.flush()
                await asyncio.sleep(0.01)

    app = web.Application([("/events", Listening, {"write_stream": write_stream})])
    async with serve_tornado(app) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: 1\n\n")
        (live,) = otel_sse.connections()
        assert live.route == "/events"
        assert backend.value("sse.server.active_connections") == 1
        if leave == "close":
            await client.close()
        else:
            client.reset()
        await until(lambda: backend.spans("SSE"))
    assert left == [True]
    assert closed(backend) == ("client_disconnect", None)
    assert otel_sse.connections() == []


async def test_an_error_of_a_handler_that_finds_its_client_gone_is_not_the_streams(
    backend: Backend, instrument: Instrument, caplog: pytest.LogCaptureFixture
) -> None:
    """Also before Tornado has called back that the connection is closed."""
    caplog.set_level(logging.CRITICAL, "tornado")
    instrument()

    async def write_stream(handler: web.RequestHandler) -> None:
        handler.write(b"data: 1\n\n")
        await handler.flush()
        connection: Any = handler.request.connection
        while not connection.stream.closed():  # noqa: ASYNC110
            await asyncio.sleep(0)
        raise QuotaError

    async with serve_tornado(tornado_app("/events", write_stream)) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: 1\n\n")
        await client.close()
        await until(lambda: backend.spans("SSE"))
    assert closed(backend) == ("client_disconnect", None)


async def test_a_stream_whose_handler_has_returned_ends_with_its_client(
    backend: Backend, instrument: Instrument
) -> None:
    """A handler that does not finish its response by itself: nothing else would end it."""
    instrument()

    class Late(Streaming):
        async def get(self) -> None:
            self._auto_finish = False
            self.write(b"data: 1\n\n")
            await self.flush()

    app = web.Application([("/events", Late, {"write_stream": None})])
    async with serve_tornado(app) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: 1\n\n")
        assert backend.value("sse.server.active_connections") == 1
        await client.close()
        await until(lambda: backend.spans("SSE"))
    assert closed(backend) == ("client_disconnect", None)


async def test_a_client_that_stops_reading_is_seen(
    backend: Backend, instrument: Instrument
) -> None:
    """Its backlog while it does, and the wait of the flush that it keeps waiting."""
    instrument(slow_send_seconds=0.05)

    async def write_stream(handler: web.RequestHandler) -> None:
        while True:
            handler.write(CHUNK)
            await asyncio.wait_for(handler.flush(), 0.5)

    async with serve_tornado(tornado_app("/events", write_stream)) as port:
        client = await RawClient.get(port, "/events", limit=1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: backend.value("sse.server.backlog.max") >= len(CHUNK))
        (live,) = otel_sse.connections()
        assert live.backlog is not None
        assert live.backlog >= len(CHUNK)
        await until(lambda: backend.spans("SSE"))
        client.reset()
    reason, _ = closed(backend)
    assert reason == "timeout"
    (span,) = backend.spans("SSE")
    assert span.attributes is not None
    assert span.attributes["sse.send.max_duration"] >= 0.4  # type: ignore[operator]
    assert backend.value("sse.server.slow_sends") >= 1


async def test_flushes_that_nobody_awaits_have_not_waited(
    backend: Backend, instrument: Instrument
) -> None:
    """Tornado buffers them without limit: all are counted at once, and the backlog shows them."""
    instrument()
    seen, finished = asyncio.Event(), asyncio.Event()

    async def write_stream(handler: web.RequestHandler) -> None:
        for _ in range(199):
            handler.write(CHUNK)
            handler.flush()
        await seen.wait()
        await asyncio.sleep(1)
        handler.write(CHUNK)
        handler.flush()
        handler.finish()
        finished.set()

    async with serve_tornado(tornado_app("/events", write_stream)) as port:
        client = await RawClient.get(port, "/events", "Connection: close", limit=1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: backend.value("sse.server.backlog.max") >= len(CHUNK))
        assert backend.value("sse.server.messages") >= 198
        seen.set()
        await finished.wait()
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await client.reader.read(-1)).endswith(b"\r\n0\r\n\r\n")
        await client.close()
    assert closed(backend) == ("completed", None)
    assert backend.value("sse.server.io") == 200 * len(CHUNK)
    (span,) = backend.spans("SSE")
    assert span.attributes is not None
    assert span.attributes["sse.send.max_duration"] < 1  # type: ignore[operator]


async def test_a_server_that_closes_its_connections_is_what_ends_their_streams(
    backend: Backend, instrument: Instrument
) -> None:
    """Also where a handler waits for ever, which nothing cancels."""
    instrument()

    async def write_stream(handler: web.RequestHandler) -> None:
        handler.write(b"data: 1\n\n")
        await handler.flush()
        await asyncio.Event().wait()

    async with serve_tornado(tornado_app("/events", write_stream)) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: 1\n\n")
    assert closed(backend) == ("server_shutdown", None)
    await client.close()


async def test_a_stream_that_is_live_at_uninstrument_is_reported_whole(backend: Backend) -> None:
    """And a request after that is not observed; nothing stays in its handler."""
    instrumentor = SSETornadoInstrumentor()
    instrumentor.instrument(**backend.providers)
    go_on = asyncio.Event()
    handlers: list[web.RequestHandler] = []

    async def write_stream(handler: web.RequestHandler) -> None:
        handlers.append(handler)
        handler.write(STREAM[:1000])
        await handler.flush()
        await go_on.wait()
        handler.write(STREAM[1000:])
        await handler.flush()

    try:
        async with serve_tornado(tornado_app("/events", write_stream)) as port:
            reply = asyncio.create_task(fetch(port, "/events"))
            await until(lambda: handlers)
            instrumentor.uninstrument()
            go_on.set()
            assert (await reply).body == STREAM
            assert (await fetch(port, "/events")).body == STREAM
    finally:
        instrumentor.uninstrument()
    (span,) = backend.spans("SSE")
    assert span.attributes is not None
    assert span.attributes["sse.io"] == len(STREAM)
    assert span.attributes["sse.close.reason"] == "completed"
    for handler in handlers:
        assert not {"detach", "_handle_request_exception"} & set(vars(handler))
        assert handler._transforms == []
        assert not {"write", "write_headers"} & set(vars(handler.request.connection))


@pytest.mark.parametrize("late", [False, True])
async def test_a_connection_that_the_handler_takes_over(
    late: bool, backend: Backend, instrument: Instrument
) -> None:
    """What it sends by itself is not seen, nor why it ends; its stream ends with the handler, or
    where that has returned, and keeps nothing.
    """
    instrument()
    handlers: list[weakref.ref[web.RequestHandler]] = []
    tasks: list[asyncio.Task[None]] = []

    class Detaching(Streaming):
        async def get(self) -> None:
            handlers.append(weakref.ref(self))
            self._auto_finish = not late
            self.write(b"data: 1\n\n")
            await self.flush()
            if late:
                tasks.append(asyncio.create_task(self.take_over()))
            else:
                await self.take_over()

        async def take_over(self) -> None:
            stream = self.detach()
            await stream.write(b"data: 2\n\n")
            stream.close()

    app = web.Application([("/events", Detaching, {"write_stream": None})])
    async with serve_tornado(app) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: 2\n\n")
        await client.close()
        await until(lambda: backend.spans("SSE"))
        assert closed(backend) == ("unknown", None)
        assert backend.value("sse.server.messages") == 1
        tasks.clear()
        await until(lambda: gc.collect() >= 0 and handlers[0]() is None)


class EmptyError(Exception):
    """An error that is false, as one that holds a list of errors may be."""

    def __len__(self) -> int:
        return 0


class AmbiguousError(Exception):
    """An error that has no truth value, as an array has none."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


@pytest.mark.parametrize("server", ["tornado", "aiohttp"])
@pytest.mark.parametrize("kind", [EmptyError, AmbiguousError])
async def test_an_error_that_is_not_true_is_one(
    kind: type[Exception],
    server: str,
    backend: Backend,
    instrument: Instrument,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In aiohttp.web, too: nothing asks for its truth."""
    caplog.set_level(logging.CRITICAL)
    instrument()

    async def tornado(handler: web.RequestHandler) -> None:
        handler.write(b"data: 1\n\n")
        await handler.flush()
        raise kind

    async def aiohttp(request: aiohttp_web.Request) -> aiohttp_web.StreamResponse:
        await (await start_stream(request)).write(b"data: 1\n\n")
        raise kind

    serving = {
        "tornado": partial(serve_tornado, tornado_app("/events", tornado)),
        "aiohttp": partial(serve_aiohttp, aiohttp_app("/events", aiohttp)),
    }
    async with serving[server]() as port:
        client = await RawClient.get(port, "/events")
        await until(lambda: backend.spans("SSE"))
        await client.close()
    assert closed(backend) == ("error", f"{__name__}.{kind.__name__}")
