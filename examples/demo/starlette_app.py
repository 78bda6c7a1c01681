"""An ordinary Starlette application with event streams; it knows of no telemetry."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

ANSWER = "A stream is one response that goes on for as long as there is something to send ."


async def ticker(_: Request) -> AsyncIterator[str]:
    """A price, again and again."""
    price = 100.0
    while True:
        price += random.uniform(-1, 1)
        yield f"event: price\ndata: {price:.2f}\n\n"
        await asyncio.sleep(random.uniform(0.1, 0.4))


async def chat(_: Request) -> AsyncIterator[str]:
    """An answer, word by word, as a language model gives it."""
    await asyncio.sleep(random.uniform(0.2, 0.8))
    for word in ANSWER.split():
        yield f"event: token\ndata: {word}\n\n"
        await asyncio.sleep(random.expovariate(30))
    yield "event: done\ndata: [DONE]\n\n"


async def room(request: Request) -> AsyncIterator[str]:
    """A quiet room: seldom a message, and a comment every second to keep the connection open."""
    while True:
        yield f"id: 1\ndata: a message in {request.path_params['room']}\n\n"
        for _ in range(8):
            await asyncio.sleep(1)
            yield ": keep-alive\n\n"


async def broken(_: Request) -> AsyncIterator[str]:
    """A stream whose source fails midway."""
    for count in range(10):
        yield f"data: {count}\n\n"
        await asyncio.sleep(0.1)
    raise LookupError("the source is gone")


async def firehose(_: Request) -> AsyncIterator[str]:
    """More than a slow reader can take."""
    message = f"data: {'x' * 32_000}\n\n"
    while True:
        yield message
        await asyncio.sleep(0.002)


def stream(source: Callable[[Request], AsyncIterator[str]]) -> Callable[..., StreamingResponse]:
    def endpoint(request: Request) -> StreamingResponse:
        return StreamingResponse(source(request), media_type="text/event-stream")

    return endpoint


app = Starlette(
    routes=[
        Route("/ticker", stream(ticker)),
        Route("/chat", stream(chat), methods=["POST"]),
        Route("/rooms/{room}", stream(room)),
        Route("/broken", stream(broken)),
        Route("/firehose", stream(firehose)),
    ]
)
