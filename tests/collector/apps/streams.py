"""An ordinary Starlette application with event streams and one page. Of telemetry it knows only how
to record the messages that it drops.
"""

import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import otel_sse


def stream(messages: AsyncIterator[str]) -> Response:
    return StreamingResponse(messages, media_type="text/event-stream")


async def chat(_: Request) -> Response:
    async def tokens() -> AsyncIterator[str]:
        for number in range(20):
            yield f"event: token\ndata: {number}\n\n"

    return stream(tokens())


async def ticker(_: Request) -> Response:
    async def prices() -> AsyncIterator[str]:
        while True:
            yield "event: price\ndata: 100\n\n"
            await asyncio.sleep(0.05)

    return stream(prices())


async def broken(_: Request) -> Response:
    async def cut() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        raise LookupError("the source is gone")

    return stream(cut())


async def bursts(_: Request) -> Response:
    """First more than the sockets between server and client hold, then a little, for ever."""

    async def much_and_little() -> AsyncIterator[str]:
        for _ in range(64):
            yield f"data: {'x' * 500_000}\n\n"
        while True:
            yield "data: x\n\n"
            await asyncio.sleep(0.05)

    return stream(much_and_little())


async def lossy(_: Request) -> Response:
    """Of three messages it drops two."""

    async def every_third() -> AsyncIterator[str]:
        while True:
            otel_sse.current().record_dropped(2, "sampling")
            yield "data: x\n\n"
            await asyncio.sleep(0.05)

    return stream(every_third())


async def silent(_: Request) -> Response:
    async def nothing() -> AsyncIterator[str]:
        yield ": no message\n\n"
        await asyncio.Event().wait()

    return stream(nothing())


async def page(_: Request) -> Response:
    return PlainTextResponse("hello")


app = Starlette(
    routes=[
        Route("/chat", chat),
        Route("/ticker", ticker),
        Route("/broken", broken),
        Route("/bursts", bursts),
        Route("/lossy", lossy),
        Route("/silent", silent),
        Route("/page", page),
    ]
)
