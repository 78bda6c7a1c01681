"""Streams for a process that is killed: each message bears the time at which it was made."""

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route


async def _messages(count: int, *, then_silent: bool) -> AsyncIterator[str]:
    for _ in range(count):
        yield f"data: {time.time_ns()}\n\n"
        await asyncio.sleep(0.02)
    if then_silent:
        await asyncio.Event().wait()


async def _stream(request: Request) -> StreamingResponse:
    count, silent = request.path_params["count"], "silent" in request.query_params
    return StreamingResponse(_messages(count, then_silent=silent), media_type="text/event-stream")


app = Starlette(routes=[Route("/stream/{count:int}", _stream)])
