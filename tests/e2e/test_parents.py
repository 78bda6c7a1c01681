"""An application's own spans around its streams stay the parents that they are without us."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
import sse_starlette
from aiohttp import web
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import fetch
from helpers.waiting import until
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Instrument = Callable[..., None]


class AppError(Exception):
    """An error of the application."""


@pytest.mark.parametrize("fails", [False, True])
async def test_a_middlewares_work_after_an_aiohttp_handler(
    fails: bool, instrument: Instrument, backend: Backend
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
    app.router.add_get("/events", events)
    instrument()
    async with serve_aiohttp(app) as port:
        client = await RawClient.get(port, "/events")
        await until(lambda: backend.spans("SSE"))
        await client.close()
    (stream,), (inside,), (after,) = map(backend.spans, ("SSE", "inside", "after"))
    assert inside.parent == stream.context
    assert after.parent is None
    assert stream.attributes["sse.close.reason"] == ("error" if fails else "completed")


async def test_a_routes_own_span_around_a_data_sender(
    instrument: Instrument, backend: Backend
) -> None:
    """sse-starlette's sender starts before its response; a span that a middleware of the route has
    made current is its parent.
    """

    class Around:
        def __init__(self, app: Any) -> None:
            self.app = app

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
