"""Beside other instrumentation: one span of ours in its right place, and theirs as ever."""

import asyncio
import logging
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp_sse
import fastapi
import opentelemetry.instrumentation.asgi as contrib_asgi
import pytest
import starlette.applications
import starlette.middleware.opentelemetry as starlettes_own
from aiohttp import web
from fastapi.sse import EventSourceResponse, ServerSentEvent
from helpers.asgi import http_scope
from helpers.backend import Backend
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import PIECES, STREAM, Reply, assert_told, fetch, parse
from helpers.waiting import until
from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.starlette import StarletteInstrumentor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route

from otel_sse import SSEMiddleware

SSE = "text/event-stream"
Instrument = Callable[..., None]


class Caller:
    """A request's trace: what the caller sends, and what has become of it."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.trace_id = secrets.token_hex(16)
        self.span_id = secrets.token_hex(8)
        self.headers = (
            f"traceparent: 00-{self.trace_id}-{self.span_id}-0{int(sampled)}",
            "baggage: tenant=acme",
        )

    def spans(self, backend: Backend) -> list[ReadableSpan]:
        return [
            span
            for span in backend.spans()
            if span.get_span_context().trace_id == int(self.trace_id, 16)
        ]

    def servers(self, backend: Backend) -> list[tuple[Any, ...]]:
        """Name, kind and parent of the HTTP server spans of other instrumentation."""
        return sorted(
            (span.name, span.kind, self.parent_of(span, backend))
            for span in self.spans(backend)
            if span.kind is SpanKind.SERVER and not span.name.startswith("SSE")
        )

    def parent_of(self, span: ReadableSpan, backend: Backend) -> str:
        """The parent's name, or ``caller``."""
        assert span.parent is not None
        names = {other.get_span_context().span_id: other.name for other in self.spans(backend)}
        return {int(self.span_id, 16): "caller", **names}[span.parent.span_id]


class Work:
    """What the application does while it streams: a span for each piece."""

    def __init__(self, backend: Backend) -> None:
        self._tracer = backend.tracer
        self.tenants: list[Any] = []
        self.spans: list[Any] = []

    async def piece(self, number: int) -> None:
        with self._tracer.start_as_current_span(f"work {number}") as span:
            self.spans.append(span)
            self.tenants.append(baggage.get_baggage("tenant"))
            await asyncio.sleep(0)

    async def pieces(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(PIECES):
            await self.piece(number)
            yield piece

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        for number in range(4):
            await self.piece(number)
            yield ServerSentEvent(data=number, event="tick")

    def assert_within(self, connection: ReadableSpan, spans: list[Any] | None = None) -> None:
        """All of it, or that much of it, was done below the connection's span."""
        spans = self.spans if spans is None else spans
        assert spans
        expected = connection.get_span_context()
        for span in spans:
            assert span.parent is not None, span.name
            assert (span.parent.trace_id, span.parent.span_id) == (
                expected.trace_id,
                expected.span_id,
            ), span.name


# --- applications ------------------------------------------------------------------------------
# Built through the module's attribute, which some instrumentation replaces.


def starlette_app(work: Work, middleware: list[Middleware], options: Any) -> Any:
    async def endpoint(request: Request) -> Response:
        return StreamingResponse(work.pieces(), media_type=SSE)

    route = Mount("/rooms", routes=[Route("/{room}", endpoint)])
    return starlette.applications.Starlette(routes=[route], middleware=middleware)


def base_http_app(work: Work, middleware: list[Middleware], options: Any) -> Any:
    async def dispatch(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    below = Middleware(BaseHTTPMiddleware, dispatch=dispatch)
    return starlette_app(work, [*middleware, below], options)


def fastapi_app(work: Work, middleware: list[Middleware], options: Any) -> Any:
    app = fastapi.FastAPI(middleware=middleware, telemetry=options)

    @app.get("/rooms/{room}")
    async def endpoint(room: str) -> Response:
        return StreamingResponse(work.pieces(), media_type=SSE)

    return app


def native_app(work: Work, middleware: list[Middleware], options: Any) -> Any:
    app = fastapi.FastAPI(middleware=middleware, telemetry=options)

    @app.get("/rooms/{room}", response_class=EventSourceResponse)
    async def endpoint(room: str) -> AsyncIterator[ServerSentEvent]:
        async for event in work.events():
            yield event

    return app


def included_app(work: Work, middleware: list[Middleware], options: Any) -> Any:
    router = fastapi.APIRouter()

    @router.get("/{room}", response_class=EventSourceResponse)
    async def endpoint(room: str) -> AsyncIterator[ServerSentEvent]:
        async for event in work.events():
            yield event

    app = fastapi.FastAPI(middleware=middleware, telemetry=options)
    app.include_router(router, prefix="/rooms")
    return app


# --- what makes HTTP server spans --------------------------------------------------------------


SILENT = {"tracing": False, "metrics": False, "logs": False}


class Http:
    """Something that makes a server span of each request; ``on`` and ``off`` as often as liked."""

    makes_spans = True
    # Whether it attaches the request's baggage too.
    bears_baggage = True
    instrumentor: Any = None

    def __init__(self, backend: Backend) -> None:
        self.providers = {
            "tracer_provider": backend.tracer_provider,
            "meter_provider": backend.meter_provider,
        }
        self._is_on = False

    def on(self) -> None:
        if self.instrumentor is not None and not self._is_on:
            self.instrumentor().instrument(**self.providers)
            self._is_on = True

    def off(self) -> None:
        if self._is_on:
            self.instrumentor().uninstrument()
            self._is_on = False

    def build(self, app: Any, work: Work) -> Any:
        return app(work, [], SILENT)


class NoHttp(Http):
    makes_spans = bears_baggage = False


class ContribAsgi(Http):
    def build(self, app: Any, work: Work) -> Any:
        return contrib_asgi.OpenTelemetryMiddleware(super().build(app, work), **self.providers)


class ContribAsgiInside(Http):
    def build(self, app: Any, work: Work) -> Any:
        middleware = Middleware(contrib_asgi.OpenTelemetryMiddleware, **self.providers)
        return app(work, [middleware], SILENT)


class ContribStarlette(Http):
    instrumentor = StarletteInstrumentor


class ContribFastAPI(Http):
    instrumentor = FastAPIInstrumentor


class ContribFastAPIApp(Http):
    def build(self, app: Any, work: Work) -> Any:
        built = super().build(app, work)
        FastAPIInstrumentor.instrument_app(built, **self.providers)
        return built


class FastAPIsOwn(Http):
    def build(self, app: Any, work: Work) -> Any:
        return app(work, [], self.providers)


class FastAPIsOwnAndContrib(FastAPIsOwn):
    instrumentor = FastAPIInstrumentor


class StarlettesOwn(Http):
    bears_baggage = False

    def build(self, app: Any, work: Work) -> Any:
        middleware = Middleware(starlettes_own.OpenTelemetryMiddleware, **self.providers)
        return app(work, [middleware], SILENT)


class ContribAiohttp(Http):
    bears_baggage = False
    instrumentor = AioHttpServerInstrumentor


PAIRS = [
    *((NoHttp, app) for app in (starlette_app, base_http_app, fastapi_app, native_app)),
    *((ContribAsgi, app) for app in (starlette_app, base_http_app, native_app)),
    *((ContribAsgiInside, app) for app in (starlette_app, native_app)),
    *((ContribStarlette, app) for app in (starlette_app, base_http_app)),
    *((ContribFastAPI, app) for app in (fastapi_app, native_app, included_app)),
    *((ContribFastAPIApp, app) for app in (fastapi_app,)),
    *((FastAPIsOwn, app) for app in (fastapi_app, native_app, included_app)),
    *((FastAPIsOwnAndContrib, app) for app in (fastapi_app, native_app)),
    *((StarlettesOwn, app) for app in (starlette_app, fastapi_app)),
]
ORDER = pytest.mark.parametrize("first", ["theirs", "ours"])


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test may make anybody complain: of contexts that cannot be detached, of spans that have
    ended, of instruments made twice.
    """
    caplog.set_level(logging.WARNING)
    yield
    for when in ("setup", "call"):
        assert [record.getMessage() for record in caplog.get_records(when)] == []


async def ask_asgi(app: Any, caller: Caller) -> Reply:
    async with serve_asgi(app, log_config=None, log_level="warning") as port:
        return await fetch(port, "/rooms/blue", *caller.headers)


def assert_placed(
    connection: ReadableSpan, caller: Caller, backend: Backend, *, makes_spans: bool
) -> None:
    """Ours is below their HTTP server span, which knows it, or else below the caller's."""
    assert connection.get_span_context().trace_id == int(caller.trace_id, 16)
    if not makes_spans:
        assert connection.kind is SpanKind.SERVER
        assert caller.parent_of(connection, backend) == "caller"
        return
    assert connection.kind is SpanKind.INTERNAL
    assert connection.parent is not None
    (server,) = [
        span
        for span in caller.spans(backend)
        if span.get_span_context().span_id == connection.parent.span_id
    ]
    assert server.kind is SpanKind.SERVER
    assert connection.attributes is not None
    assert server.attributes is not None
    wanted = connection.attributes["sse.connection.id"]
    assert server.attributes["sse.connection.id"] == wanted


async def together(
    http: Http,
    first: str,
    build: Callable[[Work], Any],
    ask: Callable[[Any, Caller], Any],
    backend: Backend,
    instrument: Instrument,
) -> tuple[ReadableSpan, Caller, Work]:
    """Asks an application with theirs alone and then with ours too, and holds the two against one
    another: same bytes, same server spans, same baggage; gives our span.
    """
    alone, both = Caller(), Caller()
    work_alone, work = Work(backend), Work(backend)
    try:
        http.on()
        plain = await ask(build(work_alone), alone)
        theirs = alone.servers(backend)
        if first == "theirs":
            app = build(work)
            instrument()
        else:
            http.off()
            instrument()
            http.on()
            app = build(work)
        seen = await ask(app, both)
    finally:
        http.off()
    assert [(kind, parent) for _, kind, parent in theirs] == (
        [(SpanKind.SERVER, "caller")] if http.makes_spans else []
    )
    assert seen.raw == plain.raw
    connection = await assert_told(backend, seen.body, route="/rooms/{room}")
    assert both.servers(backend) == theirs
    assert work.tenants == work_alone.tenants
    assert set(work.tenants) == ({"acme"} if http.bears_baggage else {None})
    return connection, both, work


@ORDER
@pytest.mark.parametrize(
    ("kind", "app"), PAIRS, ids=[f"{kind.__name__}-{app.__name__}" for kind, app in PAIRS]
)
async def test_asgi_instrumentation_and_ours(
    kind: type[Http], app: Any, first: str, backend: Backend, instrument: Instrument
) -> None:
    """Whatever makes HTTP server spans, and whoever was first: theirs are what they are without
    us, ours is one and in its place, counts are exact, bytes and baggage untouched, and what the
    generator does is below ours.
    """
    http = kind(backend)
    connection, caller, work = await together(
        http, first, lambda work: http.build(app, work), ask_asgi, backend, instrument
    )
    assert_placed(connection, caller, backend, makes_spans=http.makes_spans)
    # FastAPI runs its own kind of generator up to the first yield before the response starts.
    native = app in (native_app, included_app)
    work.assert_within(connection, work.spans[1:] if native else work.spans)


@pytest.mark.parametrize("kind", [ContribFastAPI, FastAPIsOwn])
async def test_the_first_work_of_a_native_fastapi_stream_is_in_its_trace(
    kind: type[Http], backend: Backend, instrument: Instrument
) -> None:
    """FastAPI runs a native generator up to its first yield before there is a response: that
    work is below the HTTP span, as the stream is; all later work is below the stream.
    """
    http = kind(backend)
    connection, _, work = await together(
        http, "theirs", lambda work: http.build(native_app, work), ask_asgi, backend, instrument
    )
    assert work.spans[0].parent == connection.parent
    work.assert_within(connection, work.spans[1:])


# --- aiohttp -----------------------------------------------------------------------------------


def aiohttp_app(handler: Any) -> web.Application:
    """Rebuilt each time: contrib's replaces the class, and wants its middlewares in a list."""
    app = web.Application(middlewares=[])
    app.router.add_get("/rooms/{room}", handler)
    return app


def writing(work: Work) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": SSE})
        await response.prepare(request)
        async for piece in work.pieces():
            await response.write(piece)
        return response

    return handler


def sending(work: Work) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        async with aiohttp_sse.sse_response(request) as response:
            for number in range(4):
                await work.piece(number)
                await response.send(str(number))
        return response

    return handler


def generating(work: Work) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=work.pieces(), headers={"Content-Type": SSE})

    return handler


async def ask_aiohttp(app: web.Application, caller: Caller) -> Reply:
    async with serve_aiohttp(app) as port:
        return await fetch(port, "/rooms/blue", *caller.headers)


@ORDER
@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")
@pytest.mark.parametrize("kind", [NoHttp, ContribAiohttp])
@pytest.mark.parametrize("handler", [writing, sending])
async def test_aiohttp_instrumentation_and_ours(
    handler: Any, kind: type[Http], first: str, backend: Backend, instrument: Instrument
) -> None:
    """Contrib's server span is what it is without us; ours is one and below it, or else below the
    caller's; and what a handler does once the response is prepared is below ours.
    """
    http = kind(backend)
    connection, caller, work = await together(
        http, first, lambda work: aiohttp_app(handler(work)), ask_aiohttp, backend, instrument
    )
    assert_placed(connection, caller, backend, makes_spans=http.makes_spans)
    work.assert_within(connection)


@ORDER
@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")
@pytest.mark.parametrize("kind", [NoHttp, ContribAiohttp])
async def test_an_aiohttp_body_that_is_a_generator_and_ours(
    kind: type[Http], first: str, backend: Backend, instrument: Instrument
) -> None:
    """Such a body starts when the handler, and contrib's span, are over. So ours is the server
    span, in the caller's trace, and what the generator does is below it.
    """
    http = kind(backend)
    connection, caller, work = await together(
        http, first, lambda work: aiohttp_app(generating(work)), ask_aiohttp, backend, instrument
    )
    assert_placed(connection, caller, backend, makes_spans=False)
    work.assert_within(connection)


# --- applications in applications --------------------------------------------------------------


class ContribBoth(Http):
    """contrib's on every Starlette and on every FastAPI, as the auto-instrumentation does it."""

    def on(self) -> None:
        if not self._is_on:
            StarletteInstrumentor().instrument(**self.providers)
            FastAPIInstrumentor().instrument(**self.providers)
            self._is_on = True

    def off(self) -> None:
        if self._is_on:
            StarletteInstrumentor().uninstrument()
            FastAPIInstrumentor().uninstrument()
            self._is_on = False


def mounted(inner: Any) -> Any:
    return starlette.applications.Starlette(routes=[Mount("/", inner)])


@ORDER
@pytest.mark.parametrize("kind", [ContribBoth, ContribFastAPI, ContribFastAPIApp, FastAPIsOwn])
async def test_an_instrumented_application_below_a_mount_and_ours(
    kind: type[Http], first: str, backend: Backend, instrument: Instrument
) -> None:
    """A mounted application may make its server span inside of our outermost router. It is what it
    is without us; and what the generator does is below ours all the same.
    """
    http = kind(backend)
    connection, caller, work = await together(
        http,
        first,
        lambda work: mounted(http.build(fastapi_app, work)),
        ask_asgi,
        backend,
        instrument,
    )
    assert connection.get_span_context().trace_id == int(caller.trace_id, 16)
    work.assert_within(connection)


@pytest.mark.parametrize("kind", [ContribAsgi, ContribStarlette, StarlettesOwn])
async def test_the_middleware_around_an_application_that_is_instrumented(
    kind: type[Http], backend: Backend
) -> None:
    """Outermost, where other instrumentation runs inside, ours does not stand in its way: theirs
    is still the server span of the caller, and so is ours.
    """
    http, caller, work = kind(backend), Caller(), Work(backend)
    try:
        http.on()
        app = http.build(starlette_app, work)
        reply = await ask_asgi(SSEMiddleware(app, **backend.providers), caller)
    finally:
        http.off()
    assert reply.body == STREAM
    connection = await assert_told(backend, STREAM, route=None)
    ((_, server, parent),) = caller.servers(backend)
    assert (server, parent) == (SpanKind.SERVER, "caller")
    assert_placed(connection, caller, backend, makes_spans=False)
    assert set(work.tenants) == ({"acme"} if http.bears_baggage else {None})


async def test_the_middleware_below_a_middleware_that_makes_spans(backend: Backend) -> None:
    """Innermost, ours is below theirs, and the application's work below ours."""
    caller, work = Caller(), Work(backend)

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", SSE.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in work.pieces():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    app = contrib_asgi.OpenTelemetryMiddleware(
        SSEMiddleware(raw, **backend.providers),
        tracer_provider=backend.tracer_provider,
        meter_provider=backend.meter_provider,
    )
    reply = await ask_asgi(app, caller)
    assert reply.body == STREAM
    connection = await assert_told(backend, STREAM, route=None)
    assert_placed(connection, caller, backend, makes_spans=True)
    assert set(work.tenants) == {"acme"}
    work.assert_within(connection)


@pytest.mark.parametrize("kind", [NoHttp, ContribAsgi, ContribStarlette, StarlettesOwn])
async def test_the_servers_context_is_as_it_was(
    kind: type[Http], backend: Backend, instrument: Instrument
) -> None:
    """What a server runs next in the same task finds nothing of the request before."""
    http, work = kind(backend), Work(backend)
    instrument()
    before = otel_context.get_current()
    try:
        http.on()
        stream = http.build(starlette_app, work)
        for _ in range(2):
            await answer(stream)
            assert otel_context.get_current() is before
    finally:
        http.off()
    assert len(backend.spans("SSE")) == 2


async def answer(app: Any) -> None:
    """Runs a request in this task, as a server without tasks would."""
    forever = asyncio.Event()

    async def receive() -> Any:
        await forever.wait()

    async def send(message: Any) -> None:
        assert message["type"].startswith("http.response.")

    await app(http_scope("/rooms/blue"), receive, send)


# --- not sampled -------------------------------------------------------------------------------


async def assert_unsampled(backend: Backend, caller: Caller, route: str) -> None:
    """Metrics and events are whole; of spans there is none."""
    opened, closed = await until(lambda: backend.events("sse.connection.")[1:] and backend.events())
    assert closed.attributes["sse.messages"] == 8
    for event in (opened, closed):
        assert event.trace_id == int(caller.trace_id, 16)
        assert not event.trace_flags.sampled
        assert event.attributes["http.route"] == route
    assert backend.spans() == []
    assert backend.value("sse.server.messages") == 8
    assert backend.value("sse.server.io") == len(STREAM)
    assert backend.value("sse.server.connections") == 1
    assert backend.value("sse.server.active_connections") == 0
    assert backend.value("sse.server.connection.duration", sse__close__reason="completed") == 1


@pytest.mark.parametrize("kind", [NoHttp, ContribAsgi, ContribStarlette])
async def test_a_request_that_is_not_sampled_is_counted_all_the_same(
    kind: type[Http], backend: Backend, instrument: Instrument
) -> None:
    """Where the caller's trace is not sampled there are no spans; metrics and events are exact."""
    http, caller, work = kind(backend), Caller(sampled=False), Work(backend)
    instrument()
    try:
        http.on()
        reply = await ask_asgi(http.build(starlette_app, work), caller)
    finally:
        http.off()
    assert reply.body == STREAM
    await assert_unsampled(backend, caller, "/rooms/{room}")


@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")
@pytest.mark.parametrize("kind", [NoHttp, ContribAiohttp])
@pytest.mark.parametrize("handler", [writing, generating])
async def test_an_aiohttp_request_that_is_not_sampled_is_counted_all_the_same(
    kind: type[Http], handler: Any, backend: Backend, instrument: Instrument
) -> None:
    """The same for aiohttp.web."""
    http, caller, work = kind(backend), Caller(sampled=False), Work(backend)
    instrument()
    try:
        http.on()
        reply = await ask_aiohttp(aiohttp_app(handler(work)), caller)
    finally:
        http.off()
    assert reply.body == STREAM
    await assert_unsampled(backend, caller, "/rooms/{room}")


# --- several requests on one socket ------------------------------------------------------------


async def converse(port: int, callers: list[Caller], *, pipelined: bool) -> list[Reply]:
    """Sends a request for each caller on one socket, all at once or one after another."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    requests = [
        "\r\n".join(["GET /rooms/blue HTTP/1.1", "Host: localhost", *caller.headers, "", ""])
        for caller in callers
    ]
    replies = []
    try:
        for number, request in enumerate(requests):
            if not pipelined:
                writer.write(request.encode())
            elif not number:
                writer.write("".join(requests).encode())
            raw = await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), 60)
            replies.append(parse(raw))
    finally:
        writer.close()
    return replies


async def assert_apart(
    backend: Backend, callers: list[Caller], work: Work, *, makes_spans: bool
) -> None:
    spans = await until(lambda: backend.spans("SSE")[len(callers) - 1 :] and backend.spans("SSE"))
    assert len(spans) == len(callers)
    assert backend.value("sse.server.messages") == 8 * len(callers)
    for caller in callers:
        (connection,) = [span for span in caller.spans(backend) if span.name.startswith("SSE")]
        assert_placed(connection, caller, backend, makes_spans=makes_spans)
        mine = [span for span in work.spans if span.context.trace_id == int(caller.trace_id, 16)]
        assert len(mine) == len(PIECES)
        work.assert_within(connection, mine)


@pytest.mark.parametrize("pipelined", [False, True], ids=["one by one", "pipelined"])
@pytest.mark.parametrize("app", [starlette_app, base_http_app])
@pytest.mark.parametrize("http_implementation", ["h11", "httptools"])
async def test_requests_on_one_socket_do_not_meet(
    app: Any, http_implementation: str, pipelined: bool, backend: Backend, instrument: Instrument
) -> None:
    """A server may start a request within the context of the one before; its stream is in its own
    caller's trace, and so is its work.
    """
    callers, work = [Caller(), Caller(), Caller()], Work(backend)
    instrument()
    built = NoHttp(backend).build(app, work)
    async with serve_asgi(built, http=http_implementation) as port:
        replies = await converse(port, callers, pipelined=pipelined)
    assert [reply.body for reply in replies] == [STREAM] * 3
    await assert_apart(backend, callers, work, makes_spans=False)


@pytest.mark.parametrize("kind", [ContribAsgi, StarlettesOwn])
async def test_requests_on_one_socket_do_not_meet_below_others_spans(
    kind: type[Http], backend: Backend, instrument: Instrument
) -> None:
    """The same where something makes server spans."""
    callers, work = [Caller(), Caller(), Caller()], Work(backend)
    instrument()
    async with serve_asgi(kind(backend).build(starlette_app, work)) as port:
        replies = await converse(port, callers, pipelined=False)
    assert [reply.body for reply in replies] == [STREAM] * 3
    await assert_apart(backend, callers, work, makes_spans=True)


@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")
@pytest.mark.parametrize("pipelined", [False, True], ids=["one by one", "pipelined"])
@pytest.mark.parametrize("kind", [NoHttp, ContribAiohttp])
@pytest.mark.parametrize("handler", [writing, generating])
async def test_aiohttp_requests_on_one_socket_do_not_meet(
    handler: Any, kind: type[Http], pipelined: bool, backend: Backend, instrument: Instrument
) -> None:
    """Aiohttp serves all requests of a socket in one task; nothing of one is left to the next."""
    http, callers, work = kind(backend), [Caller(), Caller(), Caller()], Work(backend)
    instrument()
    try:
        http.on()
        async with serve_aiohttp(aiohttp_app(handler(work))) as port:
            replies = await converse(port, callers, pipelined=pipelined)
    finally:
        http.off()
    assert [reply.body for reply in replies] == [STREAM] * 3
    makes_spans = http.makes_spans and handler is writing
    await assert_apart(backend, callers, work, makes_spans=makes_spans)


# --- the order of instrumentors ----------------------------------------------------------------

BOTH_IN_ORDER = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    module, _, kind = name.partition(":")
    getattr(import_module(module), kind)().instrument(
        skip_dep_check=True, raise_exception_on_conflict=True
    )
from starlette.applications import Starlette
from starlette.routing import Router
print(Starlette.__name__, Starlette.__call__.__module__, Router.__call__.__module__)
"""
CONTRIBS = "opentelemetry.instrumentation.starlette:StarletteInstrumentor"
OURS = "otel_sse.starlette:SSEStarletteInstrumentor"


@pytest.mark.parametrize("order", [(CONTRIBS, OURS), (OURS, CONTRIBS)], ids=["theirs", "ours"])
def test_instrumentors_load_in_any_order(order: tuple[str, str], tmp_path: Path) -> None:
    """``opentelemetry-instrument`` loads entry points in the order in which it finds their
    distributions, so ours may be imported when contrib's has replaced the classes already.
    """
    done = subprocess.run(
        [sys.executable, "-c", BOTH_IN_ORDER, *order],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.split() == [
        "_InstrumentedStarlette",
        "starlette.applications",
        "starlette.routing",
    ]
