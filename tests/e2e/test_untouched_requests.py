"""A request that is no stream: nothing of ours is in its context, and no parent changes."""

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from aiohttp import web
from fastapi import FastAPI
from helpers.asgi import TRACEPARENT
from helpers.backend import Backend
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import fetch
from helpers.waiting import until
from opentelemetry import baggage, context, trace
from opentelemetry.context import Context
from opentelemetry.context.context import _RuntimeContext
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

Instrument = Callable[..., None]
HEADER = "traceparent: " + TRACEPARENT[1].decode()


async def json(request: Request) -> Response:
    return JSONResponse({})


async def test_an_endpoint_has_the_context_that_it_has_without_us(
    instrument: Instrument, backend: Backend
) -> None:
    """The very same object, in Starlette and in aiohttp."""
    mine = baggage.set_baggage("mine", "1")
    seen: list[Context] = []

    async def note(request: Request) -> Response:
        seen.append(context.get_current())
        return JSONResponse({})

    async def attaching(scope: Any, receive: Any, send: Any) -> None:
        token = context.attach(mine)
        try:
            await Starlette(routes=[Route("/", note)])(scope, receive, send)
        finally:
            context.detach(token)

    async def handler(request: web.Request) -> web.Response:
        seen.append(context.get_current())
        return web.Response()

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        token = context.attach(mine)
        try:
            answer: web.StreamResponse = await handler(request)
            return answer
        finally:
            context.detach(token)

    instrument()
    async with serve_asgi(attaching) as port:
        await fetch(port, "/")
    app = web.Application(middlewares=[middleware])
    app.router.add_get("/", handler)
    async with serve_aiohttp(app) as port:
        await fetch(port, "/")
    assert [each is mine for each in seen] == [True, True]


async def test_baggage_shows_nobody_a_span_of_ours(
    instrument: Instrument, backend: Backend
) -> None:
    """Set between two routers: contrib's server span inside stays in the caller's trace."""
    inner = OpenTelemetryMiddleware(
        Starlette(routes=[Route("/json", json)]), tracer_provider=backend.tracer_provider
    )

    async def tenant(scope: Any, receive: Any, send: Any) -> None:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        try:
            await inner(scope, receive, send)
        finally:
            context.detach(token)

    def servers() -> list[Any]:
        return [span for span in backend.spans("GET") if " http " not in span.name]

    instrument()
    async with serve_asgi(Starlette(routes=[Mount("/sub", tenant)])) as port:
        await fetch(port, "/sub/json", HEADER)
        await until(servers)
    spans = [(span.name, span.kind, span.parent and span.parent.span_id) for span in servers()]
    assert spans == [("GET /sub/json", SpanKind.SERVER, 0xBBBBBBBBBBBBBBBB)]


async def test_a_local_parent_that_does_not_record(
    instrument: Instrument, backend: Backend
) -> None:
    """As a bridge from another tracer leaves one: the application's spans keep it."""
    parent = SpanContext(0xA1, 0xB1, is_remote=False, trace_flags=TraceFlags(1))
    app = FastAPI()

    @app.get("/json")
    async def work() -> dict[str, str]:
        with backend.tracer.start_as_current_span("work"):
            return {}

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def body() -> Any:
            yield "data: 1\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    async def bridged(scope: Any, receive: Any, send: Any) -> None:
        token = context.attach(trace.set_span_in_context(NonRecordingSpan(parent)))
        try:
            await app(scope, receive, send)
        finally:
            context.detach(token)

    instrument()
    async with serve_asgi(bridged) as port:
        await fetch(port, "/json")
        await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    (work_span,), (stream,) = backend.spans("work"), backend.spans("SSE")
    for span in (work_span, stream):
        assert span.parent is not None
        assert (span.parent.trace_id, span.parent.span_id) == (0xA1, 0xB1)


class ForeignContext(_RuntimeContext):
    """A runtime context whose tokens are its own, as ddtrace's are."""

    def __init__(self) -> None:
        self._current: ContextVar[Context | None] = ContextVar("foreign", default=None)

    def attach(self, context: Context) -> Any:
        previous = self._current.get()
        self._current.set(context)
        return ("token", previous)

    def get_current(self) -> Context:
        return self._current.get() or Context()

    def detach(self, token: Any) -> None:
        _, previous = token
        self._current.set(previous)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_RUNTIME_CONTEXT", ForeignContext())


@pytest.mark.usefixtures("foreign")
async def test_a_runtime_context_with_tokens_of_its_own(
    instrument: Instrument, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Streams and other requests are served, and the work within a stream is its segment's."""

    async def events(request: Request) -> Response:
        async def body() -> Any:
            with backend.tracer.start_as_current_span("query"):
                yield "data: 1\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    instrument()
    app = Starlette(routes=[Route("/events", events), Route("/json", json)])
    async with serve_asgi(app) as port:
        assert (await fetch(port, "/events")).body == b"data: 1\n\n"
        assert (await fetch(port, "/json")).status == 200
        await until(lambda: backend.spans("SSE"))
    (stream,), (query,) = backend.spans("SSE"), backend.spans("query")
    assert query.parent is not None
    assert query.parent.span_id == stream.context.span_id
    assert caplog.records == []


class View(web.View):
    async def get(self) -> web.Response:
        return web.Response()


class Api:
    async def get(self, request: web.Request) -> web.Response:
        return web.Response()


async def public(request: web.Request, user: str = "nobody") -> web.Response:
    return web.Response(text=user)


async def test_a_middleware_of_aiohttp_finds_the_handler_that_it_gets(
    instrument: Instrument,
) -> None:
    """The innermost one, as one that asks for a password unless it knows the handler: by looking it
    up, by its object or by its class, which is the very one.
    """
    api = Api()
    found: list[Any] = []

    @web.middleware
    async def innermost(request: web.Request, handler: Any) -> web.StreamResponse:
        if inspect.isclass(handler):
            found.append((handler is View, issubclass(handler, web.View)))
        else:
            owner = getattr(handler, "__self__", None)
            found.append((handler in {public}, handler == api.get, owner is api))
            assert inspect.iscoroutinefunction(handler)
        answer: web.StreamResponse = await handler(request)
        return answer

    instrument()
    app = web.Application(middlewares=[innermost])
    app.router.add_get("/public", public)
    app.router.add_get("/api", api.get)
    app.router.add_view("/view", View)
    async with serve_aiohttp(app) as port:
        for path in ("/public", "/api", "/view"):
            assert (await fetch(port, path)).status == 200
    assert found == [(True, False, False), (False, True, True), (True, True)]


async def test_a_middleware_of_aiohttp_calls_its_handler_with_more(
    instrument: Instrument,
) -> None:
    """As one does that passes a user to it."""

    @web.middleware
    async def innermost(request: web.Request, handler: Any) -> web.StreamResponse:
        answer: web.StreamResponse = await handler(request, user="ada")
        return answer

    instrument()
    app = web.Application(middlewares=[innermost])
    app.router.add_get("/", public)
    async with serve_aiohttp(app) as port:
        assert (await fetch(port, "/")).body == b"ada"
