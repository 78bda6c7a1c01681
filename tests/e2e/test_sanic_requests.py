"""Sanic's requests around their streams: parents, closes, clients that leave or do not read."""

import asyncio
import logging
from time import perf_counter
from typing import Any

import pytest
from helpers import oracle
from helpers.backend import Backend
from helpers.coexistence import Caller, Work, assert_placed
from helpers.framework_cases import Instrument
from helpers.raw_client import RawClient
from helpers.sanic_apps import TYPED, sanic_app, serve_sanic, start_stream
from helpers.servers import serve_asgi
from helpers.streams import STREAM, assert_reported, closed, fetch
from helpers.waiting import until
from opentelemetry import context
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.propagate import extract
from opentelemetry.trace import SpanKind, set_span_in_context
from sanic import Request, Sanic
from sanic.response import BaseHTTPResponse, HTTPResponse, text

import otel_sse
from otel_sse.frameworks import SSESanicInstrumentor

CHUNK = b"data: " + b"x" * 60_000 + b"\n\n"
SERVERS = pytest.mark.parametrize("server", ["native", "asgi"])


def serve(server: str, app: Sanic) -> Any:
    return serve_sanic(app) if server == "native" else serve_asgi(app, lifespan="on")


def working(work: Work) -> Any:
    async def handler(request: Request, room: str) -> None:
        response = await start_stream(request)
        await response.send(b"")
        async for piece in work.pieces():
            await response.send(piece)

    return handler


@SERVERS
async def test_a_stream_is_below_its_caller(
    server: str, backend: Backend, instrument: Instrument, no_warnings: None
) -> None:
    """And what a handler does once it has sent its headers is below the stream."""
    caller, work = Caller(), Work(backend)
    instrument()
    async with serve(server, sanic_app("/rooms/<room:str>", working(work))) as port:
        reply = await fetch(port, "/rooms/blue", *caller.headers)
    assert reply.body == STREAM
    connection = await assert_reported(backend, STREAM, route="/rooms/<room:str>")
    assert_placed(connection, caller, backend, makes_spans=False)
    work.assert_within(connection)


async def test_a_stream_is_below_the_span_of_another_instrumentation(
    backend: Backend, instrument: Instrument, no_warnings: None
) -> None:
    """One that makes its server span current in a middleware of Sanic's."""
    caller, work = Caller(), Work(backend)
    app = sanic_app("/rooms/<room:str>", working(work))

    @app.on_request
    async def start_span(request: Request) -> None:
        span = backend.tracer.start_span(
            "GET", extract(dict(request.headers)), kind=SpanKind.SERVER
        )
        request.ctx.span = span
        context.attach(set_span_in_context(span))

    @app.signal("http.lifecycle.response")
    async def end_span(request: Request, response: BaseHTTPResponse) -> None:
        request.ctx.span.end()

    instrument()
    async with serve_sanic(app) as port:
        reply = await fetch(port, "/rooms/blue", *caller.headers)
    assert reply.body == STREAM
    connection = await assert_reported(backend, STREAM, route="/rooms/<room:str>")
    assert_placed(connection, caller, backend, makes_spans=True)
    work.assert_within(connection)


async def test_a_stream_is_below_contribs_span_where_sanic_is_an_asgi_application(
    backend: Backend, instrument: Instrument, no_warnings: None
) -> None:
    """One stream, and contrib's span is the caller's server span."""
    caller, work = Caller(), Work(backend)
    app = OpenTelemetryMiddleware(
        sanic_app("/rooms/<room:str>", working(work)),
        tracer_provider=backend.tracer_provider,
        meter_provider=backend.meter_provider,
    )
    instrument()
    async with serve_asgi(app, lifespan="on") as port:
        reply = await fetch(port, "/rooms/blue", *caller.headers)
    assert reply.body == STREAM
    connection = await assert_reported(backend, STREAM, route="/rooms/<room:str>")
    assert_placed(connection, caller, backend, makes_spans=True)
    ((_, kind, parent),) = caller.servers(backend)
    assert (kind, parent) == (SpanKind.SERVER, "caller")
    work.assert_within(connection)


async def test_the_next_request_of_a_connection_finds_nothing_of_a_stream(
    backend: Backend, instrument: Instrument
) -> None:
    """Sanic serves all requests of a connection in one task: each has its own stream, and one that
    is none has the context that the task began with.
    """
    seen: list[Any] = []

    async def events(request: Request) -> None:
        response = await start_stream(request)
        await response.send(b"data: 1\n\n")

    async def other(request: Request) -> HTTPResponse:
        seen.append(context.get_current())
        return text("no stream")

    app = sanic_app("/events", events)
    app.add_route(other, "/other")
    instrument()
    before = context.get_current()
    async with serve_sanic(app) as port:
        client = await RawClient.get(port, "/events")
        for path in ("/other", "/events", "/other"):
            await client.until(b"0\r\n\r\n" if path == "/other" else b"no stream")
            client.writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await client.until(b"no stream")
        await client.close()
    assert [each is before for each in seen] == [True, True]
    first, second = backend.spans("SSE")
    assert first.get_span_context().trace_id != second.get_span_context().trace_id
    assert (first.parent, second.parent) == (None, None)


async def test_another_task_that_sends_keeps_its_context(
    backend: Backend, instrument: Instrument
) -> None:
    """As a broadcast to many clients: no stream is left current in it."""
    instrument()
    waiting: list[BaseHTTPResponse] = []
    done = asyncio.Event()

    async def handler(request: Request) -> None:
        waiting.append(await start_stream(request))
        await done.wait()

    async with serve_sanic(sanic_app("/events", handler)) as port:
        replies = [asyncio.create_task(fetch(port, "/events")) for _ in range(2)]
        await until(lambda: len(waiting) == 2)
        before = context.get_current()
        for response in waiting:
            await response.send(STREAM)
            assert context.get_current() is before
        done.set()
        assert [reply.body for reply in await asyncio.gather(*replies)] == [STREAM] * 2
    await until(lambda: len(backend.spans("SSE")) == 2)
    messages, _ = oracle.read(STREAM)
    assert backend.value("sse.server.messages") == 2 * len(messages)


@SERVERS
@pytest.mark.parametrize("propagate", [True, False])
async def test_trace_comments_are_there_where_configured(
    server: str, propagate: bool, backend: Backend, instrument: Instrument
) -> None:
    """Off, not one byte differs; on, the messages are the same behind one comment more each, and
    neither its comments nor their bytes are counted.
    """
    instrument(propagate=propagate)

    async def handler(request: Request) -> None:
        response = await start_stream(request)
        await response.send(STREAM[:500])
        await response.send(STREAM[500:], end_stream=True)

    async with serve(server, sanic_app("/events", handler)) as port:
        stream = (await fetch(port, "/events")).body
    messages, comments = oracle.read(STREAM)
    again, more = oracle.read(stream)
    assert again == messages
    assert more - comments == stream.count(b": otel traceparent=00-")
    assert (more > comments) is propagate
    assert (stream == STREAM) is not propagate
    await assert_reported(backend, STREAM, route="/events")


@pytest.mark.parametrize("how", ["length", "coding", "whole"])
async def test_a_body_of_a_settled_length_or_coding_is_unmodified(
    how: str, backend: Backend, instrument: Instrument
) -> None:
    """More bytes than the headers announce would break the response; a coded body's messages are
    not read.
    """
    instrument(propagate=True)
    headers = {
        "length": {"content-length": str(len(STREAM))},
        "coding": {"content-encoding": "rot13"},
        "whole": {},
    }

    async def handler(request: Request) -> HTTPResponse | None:
        if how == "whole":
            return HTTPResponse(STREAM, **TYPED)
        response = await start_stream(request, headers=headers[how])
        await response.send(STREAM)
        return None

    async with serve_sanic(sanic_app("/events", handler)) as port:
        assert (await fetch(port, "/events")).body == STREAM
    await until(lambda: backend.spans("SSE"))
    assert backend.value("sse.server.io") == len(STREAM)
    assert bool(backend.value("sse.server.messages")) is (how != "coding")


class QuotaError(Exception):
    """An error of the application's, for which it has a handler."""


async def raise_midway(response: BaseHTTPResponse) -> None:
    raise QuotaError


async def raise_after_the_end(response: BaseHTTPResponse) -> None:
    await response.eof()
    raise QuotaError


async def time_out(response: BaseHTTPResponse) -> None:
    await asyncio.wait_for(asyncio.Event().wait(), 0.01)


async def set_a_reason(response: BaseHTTPResponse) -> None:
    otel_sse.current().set_close_reason("server_shutdown")


@SERVERS
@pytest.mark.parametrize(
    ("end", "reason", "error"),
    [
        (raise_midway, "error", f"{__name__}.QuotaError"),
        (raise_after_the_end, "error", f"{__name__}.QuotaError"),
        (time_out, "timeout", f"{asyncio.TimeoutError.__module__}.TimeoutError"),
        (set_a_reason, "server_shutdown", None),
    ],
)
async def test_why_a_stream_ends(
    end: Any,
    reason: str,
    error: str | None,
    server: str,
    backend: Backend,
    instrument: Instrument,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What leaves the handler, also where the application handles that, or what it says itself."""
    caplog.set_level(logging.CRITICAL, "sanic")
    instrument()

    async def handler(request: Request) -> None:
        response = await start_stream(request)
        await response.send(b"data: 1\n\n")
        await end(response)

    app = sanic_app("/events", handler)

    @app.exception(QuotaError)
    async def answer(request: Request, error: Exception) -> HTTPResponse:
        return text("too much", status=429)

    async with serve(server, app) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: 1\n\n")
        await until(lambda: backend.spans("SSE"))
        await client.close()
    assert closed(backend) == (reason, error and error.removeprefix("builtins."))


async def test_sanics_own_response_timeout_is_a_timeout(
    backend: Backend, instrument: Instrument
) -> None:
    """It cancels a handler that has sent nothing for that long."""
    instrument()

    async def handler(request: Request) -> None:
        response = await start_stream(request)
        await response.send(b"data: 1\n\n")
        await asyncio.Event().wait()

    app = sanic_app("/events", handler)
    app.config.RESPONSE_TIMEOUT = 0.2
    async with serve_sanic(app) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: 1\n\n")
        await until(lambda: backend.spans("SSE"))
        await client.close()
    assert closed(backend) == ("timeout", "TimeoutError")


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("silent", [True, False])
async def test_a_client_that_leaves_is_what_ends_its_stream(
    silent: bool, leave: str, backend: Backend, instrument: Instrument
) -> None:
    """Sanic cancels its handler at once. What that does then is not the stream's; the live stream
    is in the list of the process until then.
    """
    instrument()
    cleaned_from: list[float] = []

    async def handler(request: Request) -> None:
        response = await start_stream(request)
        try:
            while True:
                await response.send(b"data: 1\n\n")
                await (asyncio.Event().wait() if silent else asyncio.sleep(0.01))
        finally:
            cleaned_from.append(perf_counter())
            await asyncio.sleep(0.1)
            raise QuotaError

    began = perf_counter()
    async with serve_sanic(sanic_app("/events", handler)) as port:
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
    assert closed(backend) == ("client_disconnect", None)
    (span,) = backend.spans("SSE")
    assert span.attributes is not None
    assert span.attributes["sse.connection.duration"] <= cleaned_from[0] - began  # type: ignore[operator]
    assert otel_sse.connections() == []


async def test_a_client_that_stops_reading_is_seen(
    backend: Backend, instrument: Instrument, caplog: pytest.LogCaptureFixture
) -> None:
    """Its backlog while it does, and the wait of the send that it keeps waiting."""
    caplog.set_level(logging.CRITICAL, "sanic")
    instrument(slow_send_seconds=0.05)

    async def handler(request: Request) -> None:
        response = await start_stream(request)
        while True:
            await asyncio.wait_for(response.send(CHUNK), 0.5)

    async with serve_sanic(sanic_app("/events", handler)) as port:
        client = await RawClient.get(port, "/events", limit=1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: backend.value("sse.server.backlog.max") >= len(CHUNK))
        (live,) = otel_sse.connections()
        assert live.backlog is not None
        assert live.backlog >= len(CHUNK)
        await until(lambda: backend.spans("SSE"))
        client.reset()
    assert closed(backend)[0] == "timeout"
    (span,) = backend.spans("SSE")
    assert span.attributes is not None
    assert span.attributes["sse.send.max_duration"] >= 0.4  # type: ignore[operator]
    assert backend.value("sse.server.slow_sends") >= 1


async def test_a_server_that_cuts_its_connections_is_what_ends_their_streams(
    backend: Backend, instrument: Instrument
) -> None:
    """As Sanic does when its ``GRACEFUL_SHUTDOWN_TIMEOUT`` is over."""
    instrument()

    async def handler(request: Request) -> None:
        response = await start_stream(request)
        await response.send(b"data: 1\n\n")
        await asyncio.Event().wait()

    async with serve_sanic(sanic_app("/events", handler)) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: 1\n\n")
    await until(lambda: backend.spans("SSE"))
    assert closed(backend) == ("server_shutdown", None)
    await client.close()


async def test_a_stream_that_is_live_at_uninstrument_is_reported_whole(backend: Backend) -> None:
    """And a request after that is not observed."""
    instrumentor = SSESanicInstrumentor()
    instrumentor.instrument(**backend.providers)
    go_on = asyncio.Event()
    asked: list[Request] = []

    async def handler(request: Request) -> None:
        response = await start_stream(request)
        await response.send(STREAM[:1000])
        asked.append(request)
        await go_on.wait()
        await response.send(STREAM[1000:])

    try:
        async with serve_sanic(sanic_app("/events", handler)) as port:
            reply = asyncio.create_task(fetch(port, "/events"))
            await until(lambda: asked)
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
