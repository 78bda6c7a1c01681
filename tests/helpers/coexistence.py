"""Applications beside other instrumentation, and the place of their spans."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import fastapi
import opentelemetry.instrumentation.asgi as contrib_asgi
import starlette.applications
import starlette.middleware.opentelemetry as starlettes_own
from aiohttp import web
from fastapi.sse import EventSourceResponse, ServerSentEvent
from opentelemetry import baggage
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

from helpers.aiohttp_apps import write_stream
from helpers.backend import Backend
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import PIECES, Reply, assert_reported, fetch

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
    """Asks an application with theirs alone and then with ours too, and compares the
    two: same bytes, same server spans, same baggage; gives our span.
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
    connection = await assert_reported(backend, seen.body, route="/rooms/{room}")
    assert both.servers(backend) == theirs
    assert work.tenants == work_alone.tenants
    assert set(work.tenants) == ({"acme"} if http.bears_baggage else {None})
    return connection, both, work


def rooms_app(handler: Any) -> web.Application:
    """Rebuilt each time: contrib's replaces the class, and wants its middlewares in a list."""
    app = web.Application(middlewares=[])
    app.router.add_get("/rooms/{room}", handler)
    return app


def writing(work: Work) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await write_stream(request, work.pieces())

    return handler


def generating(work: Work) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=work.pieces(), headers={"Content-Type": SSE})

    return handler


async def ask_aiohttp(app: web.Application, caller: Caller) -> Reply:
    async with serve_aiohttp(app) as port:
        return await fetch(port, "/rooms/blue", *caller.headers)
