"""An application's own spans around its streams stay the parents that they are without us."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
import sse_starlette
from aiohttp import web
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import fetch
from helpers.waiting import until
from opentelemetry.trace import get_current_span
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

Instrument = Callable[..., None]


class AppError(Exception):
    """An error of the application."""


class Pass:
    """A middleware that passes everything on."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def pass_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_middlewares_work_after_an_aiohttp_handler(
    fails: bool, view: bool, instrument: Instrument, backend: Backend
) -> None:
    """The handler has ended, by an error or without an end of the body: what a middleware does then
    is not below the stream, which is open yet.
    """

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        with backend.tracer.start_as_current_span("inside"):
            pass
        if fails:
            raise AppError
        return response

    class View(web.View):
        async def get(self) -> web.StreamResponse:
            return await events(self.request)

    @web.middleware
    async def absorb(request: web.Request, handler: Any) -> Any:
        try:
            return await handler(request)
        except AppError:
            return web.Response(status=500)
        finally:
            with backend.tracer.start_as_current_span("after"):
                pass

    app = web.Application(middlewares=[absorb])
    app.router.add_get("/events", View if view else events)
    instrument()
    async with serve_aiohttp(app) as port:
        client = await RawClient.get(port, "/events")
        await until(lambda: backend.spans("SSE"))
        await client.close()
    (stream,), (inside,), (after,) = map(backend.spans, ("SSE", "inside", "after"))
    assert inside.parent == stream.context
    assert after.parent is None
    assert stream.attributes["sse.close.reason"] == ("error" if fails else "completed")


@pytest.mark.parametrize("kind", ["function", "view", "view of a function"])
async def test_a_stream_inside_a_middlewares_span_of_aiohttp(
    kind: str, instrument: Instrument, backend: Backend
) -> None:
    """Its parent is that span, and not one that the handler has of its own; also where aiohttp had
    built its middlewares before it was instrumented.
    """

    async def events(request: web.Request) -> web.StreamResponse:
        with backend.tracer.start_as_current_span("own"):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: 1\n\n")
            return response

    class View(web.View):
        async def get(self) -> web.StreamResponse:
            return await events(self.request)

    async def delegate(request: web.Request) -> web.StreamResponse:
        with backend.tracer.start_as_current_span("delegating"):
            return await View(request)

    @web.middleware
    async def around(request: web.Request, handler: Any) -> web.StreamResponse:
        with backend.tracer.start_as_current_span("around"):
            answer: web.StreamResponse = await handler(request)
            return answer

    handlers: dict[str, Any] = {"function": events, "view": View, "view of a function": delegate}
    app = web.Application(middlewares=[around])
    app.router.add_get("/events", handlers[kind])
    app.router.add_get("/view", View)
    async with serve_aiohttp(app) as port:
        await fetch(port, "/events")
        instrument()
        await fetch(port, "/view")
        await fetch(port, "/events")
        (stream,) = await until(lambda: backend.spans("SSE /events"))
    assert stream.parent == backend.spans("around")[-1].context


async def test_a_routes_own_span_around_a_data_sender(
    instrument: Instrument, backend: Backend
) -> None:
    """sse-starlette's sender starts before its response; a span that a middleware of the route has
    made current is its parent.
    """

    class Around(Pass):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            with backend.tracer.start_as_current_span("around"):
                await self.app(scope, receive, send)

    async def events(request: Request) -> Response:
        send, receive = anyio.create_memory_object_stream[bytes](1)

        async def sender() -> None:
            async with send:
                with backend.tracer.start_as_current_span("inside"):
                    await send.send(b"data: 1\n\n")

        async def body() -> AsyncIterator[bytes]:
            async with receive:
                async for message in receive:
                    yield message

        return sse_starlette.EventSourceResponse(body(), data_sender_callable=sender)

    instrument()
    route = Route("/events", events, middleware=[Middleware(Around)])
    async with serve_asgi(Starlette(routes=[route])) as port:
        await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    (around,), (inside,) = map(backend.spans, ("around", "inside"))
    assert inside.parent == around.context


@pytest.mark.parametrize("outer", [0, 1, 2])
async def test_a_stream_inside_a_routes_own_middlewares(
    outer: int, instrument: Instrument, backend: Backend
) -> None:
    """A BaseHTTPMiddleware of the route, at any depth, runs the endpoint in a task of its own: what
    the stream's generator does is below the stream all the same.
    """

    async def events(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await asyncio.sleep(0)
            yield b"data: 2\n\n"
            with backend.tracer.start_as_current_span("inside"):
                yield b"data: 3\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    middlewares = [Middleware(Pass)] * outer + [Middleware(BaseHTTPMiddleware, dispatch=pass_on)]
    instrument()
    route = Route("/events", events, middleware=middlewares)
    async with serve_asgi(Starlette(routes=[route])) as port:
        await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    (stream,), (inside,) = map(backend.spans, ("SSE", "inside"))
    assert inside.parent == stream.context


async def test_head_of_fastapis_own_stream_sees_its_callers_span(
    instrument: Instrument, backend: Backend
) -> None:
    """It has no body and is no stream, so the span that is current is the application's own."""
    found = []

    class Around(Pass):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            with backend.tracer.start_as_current_span("around") as around:
                found.append(around)
                await self.app(scope, receive, send)

    app = FastAPI(middleware=[Middleware(Around)])

    @app.api_route("/events", methods=["GET", "HEAD"], response_class=EventSourceResponse)
    async def events(request: Request) -> AsyncIterator[ServerSentEvent]:
        found.append(get_current_span())
        yield ServerSentEvent(data=1)

    instrument()
    async with serve_asgi(app) as port:
        client = await RawClient.get(port, "/events", method="HEAD")
        await until(lambda: len(found) == 2)
        await client.close()
    assert found[1] is found[0]
