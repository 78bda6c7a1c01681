"""Endless streams of several frameworks, for servers that stop in unusual ways.

Run as a program it takes a port, and serves by uvicorn: in a ``thread``, with a SIGTERM that is the
program's own, or in the ``main`` thread. It sets ``should_exit`` at SIGTERM, or at SIGUSR1.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from otel_sse import SSEMiddleware

SSE = [(b"content-type", b"text/event-stream")]


async def _messages() -> AsyncIterator[str]:
    yield "data: 1\n\n"
    while True:
        await asyncio.sleep(0.05)
        yield ": ping\n\n"


async def _plain(_: Request) -> StreamingResponse:
    return StreamingResponse(_messages(), media_type="text/event-stream")


async def _cleaning(_: Request) -> StreamingResponse:
    async def messages() -> AsyncIterator[str]:
        try:
            async for message in _messages():
                yield message
        finally:
            await asyncio.shield(asyncio.sleep(0.2))

    return StreamingResponse(messages(), media_type="text/event-stream")


async def _sse_starlette(_: Request) -> EventSourceResponse:
    async def events() -> AsyncIterator[dict[str, str]]:
        yield {"data": "1"}
        await asyncio.Event().wait()

    return EventSourceResponse(events(), sep="\n")


async def _twice(request: Request) -> Response:
    """As the legacy transport of the MCP SDK: the stream is sent by hand, a response returned."""
    stream = await _sse_starlette(request)
    await stream(request.scope, request.receive, request._send)
    return Response()


async def _other(_: Request) -> Response:
    return Response("no stream")


app = Starlette(
    routes=[
        Route("/plain", _plain),
        Route("/cleaning", _cleaning),
        Route("/sse-starlette", _sse_starlette),
        Route("/twice", _twice),
        Route("/other", _other),
    ]
)


async def _raw(scope: Any, receive: Any, send: Any) -> None:
    """An application without a lifespan."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await asyncio.Event().wait()


raw = SSEMiddleware(_raw)


def _serve(port: int, where: str) -> None:
    config = uvicorn.Config(app, port=port, timeout_graceful_shutdown=1, log_level="warning")
    server = uvicorn.Server(config)
    stop = threading.Event()
    signal.signal(signal.SIGTERM if where == "thread" else signal.SIGUSR1, lambda *_: stop.set())
    thread = threading.Thread(target=_stop, args=(server, stop), daemon=True)
    if where == "thread":
        thread = threading.Thread(target=server.run)
        thread.start()
        _stop(server, stop)
        thread.join()
    else:
        thread.start()
        server.run()


def _stop(server: uvicorn.Server, stop: threading.Event) -> None:
    stop.wait()
    server.should_exit = True


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
