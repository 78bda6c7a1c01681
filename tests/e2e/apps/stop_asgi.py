"""Streams for servers that are asked to stop: one that never ends, one that ends after a second."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route


async def _endless(_: Any) -> StreamingResponse:
    return StreamingResponse(_messages(None), media_type="text/event-stream")


async def _short(_: Any) -> StreamingResponse:
    return StreamingResponse(_messages(1.0), media_type="text/event-stream")


async def _messages(seconds: float | None) -> AsyncIterator[str]:
    yield "data: 1\n\n"
    if seconds is None:
        await asyncio.Event().wait()
    await asyncio.sleep(seconds or 0)
    yield "data: 2\n\n"


app = Starlette(routes=[Route("/endless", _endless), Route("/short", _short)])
