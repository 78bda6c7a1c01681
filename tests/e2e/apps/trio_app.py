"""Streams of an application that runs on trio alone."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route


async def _completed() -> AsyncIterator[str]:
    for number in range(3):
        yield f"data: {number}\n\n"
        await trio.sleep(0.01)


async def _raises() -> AsyncIterator[str]:
    yield "data: 1\n\n"
    raise LookupError("on purpose")


async def _too_slow() -> AsyncIterator[str]:
    yield "data: 1\n\n"
    with trio.fail_after(0.1):
        await trio.sleep_forever()


async def _silent() -> AsyncIterator[str]:
    yield "data: 1\n\n"
    await trio.sleep_forever()


def _endpoint(stream: Callable[[], AsyncIterator[str]]) -> Callable[[Any], Any]:
    async def endpoint(_: Any) -> StreamingResponse:
        return StreamingResponse(stream(), media_type="text/event-stream")

    return endpoint


app = Starlette(
    routes=[
        Route("/completed", _endpoint(_completed)),
        Route("/raises", _endpoint(_raises)),
        Route("/too-slow", _endpoint(_too_slow)),
        Route("/silent", _endpoint(_silent)),
    ]
)
