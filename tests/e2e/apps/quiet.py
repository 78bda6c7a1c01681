"""Applications that have no stream, or whose lifespan leaves nothing to run in, for their end.

As ASGI applications: ``shut`` waits for its default executor's end in its lifespan, ``full`` fills
it with what never ends, ``trio_full`` does so with trio's limiter. Run as a program, it computes in
C code until it is killed; with an argument, ``fork``, a child does that, which was forked while the
process served a stream.
"""

import asyncio
import contextlib
import hashlib
import os
import queue
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from otel_sse import SSEMiddleware

SSE = [(b"content-type", b"text/event-stream")]


@contextlib.asynccontextmanager
async def _shut_down(_: Starlette) -> AsyncIterator[None]:
    yield
    await asyncio.get_running_loop().shutdown_default_executor()


async def _blocking(_: Any) -> StreamingResponse:
    async def messages() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        yield f"data: {await asyncio.to_thread(queue.Queue().get)}\n\n"

    return StreamingResponse(messages(), media_type="text/event-stream")


async def _blocking_on_trio(_: Any) -> StreamingResponse:
    import trio

    async def messages() -> AsyncIterator[str]:
        limiter = trio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = 1
        yield "data: 1\n\n"
        await trio.to_thread.run_sync(queue.Queue().get, abandon_on_cancel=True)

    return StreamingResponse(messages(), media_type="text/event-stream")


async def _ends(_: Any) -> StreamingResponse:
    async def messages() -> AsyncIterator[str]:
        yield "data: 1\n\n"

    return StreamingResponse(messages(), media_type="text/event-stream")


shut = Starlette(routes=[Route("/events", _ends)], lifespan=_shut_down)
full = Starlette(routes=[Route("/events", _blocking)])
trio_full = Starlette(routes=[Route("/events", _blocking_on_trio)])


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await asyncio.Event().wait()


async def _serve() -> None:
    async def nothing(*_: Any) -> Any:
        await asyncio.sleep(0)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    task = asyncio.create_task(SSEMiddleware(_app)(scope, nothing, nothing))
    await asyncio.sleep(0.05)
    if os.fork() == 0:
        _compute()
    await task


def _compute() -> None:
    print(os.getpid(), flush=True)
    # Some minutes in C code, as numpy, sqlite or a model: no Python handler runs meanwhile.
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 300_000_000)
    time.sleep(1000)


if __name__ == "__main__":
    if sys.argv[1:] == ["fork"]:
        asyncio.run(_serve())
    else:
        _compute()
