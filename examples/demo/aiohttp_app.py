"""An ordinary aiohttp application with event streams; it knows of no telemetry."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

ANSWER = "A stream is one response that goes on for as long as there is something to say ."


async def ticker(_: web.Request) -> AsyncIterator[str]:
    """A temperature, again and again."""
    while True:
        yield f"event: temperature\ndata: {random.gauss(20, 2):.1f}\n\n"
        await asyncio.sleep(random.uniform(0.2, 0.6))


async def chat(_: web.Request) -> AsyncIterator[str]:
    """An answer, word by word, as a language model gives it."""
    await asyncio.sleep(random.uniform(0.4, 1.2))
    for word in ANSWER.split():
        yield f"event: token\ndata: {word}\n\n"
        await asyncio.sleep(random.expovariate(20))
    yield "event: done\ndata: [DONE]\n\n"


async def room(request: web.Request) -> AsyncIterator[str]:
    """A quiet room: seldom a word, and a comment every second to keep the connection open."""
    while True:
        yield f"id: 1\ndata: somebody speaks in {request.match_info['room']}\n\n"
        for _ in range(8):
            await asyncio.sleep(1)
            yield ": keep-alive\n\n"


async def broken(_: web.Request) -> AsyncIterator[str]:
    """A stream whose source fails midway."""
    for count in range(10):
        yield f"data: {count}\n\n"
        await asyncio.sleep(0.1)
    raise LookupError("the source is gone")


async def firehose(_: web.Request) -> AsyncIterator[str]:
    """More than a slow reader can take."""
    message = f"data: {'x' * 32_000}\n\n"
    while True:
        yield message
        await asyncio.sleep(0.002)


def stream(
    source: Callable[[web.Request], AsyncIterator[str]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for text in source(request):
            await response.write(text.encode())
        await response.write_eof()
        return response

    return handler


app = web.Application()
app.add_routes(
    [
        web.get("/ticker", stream(ticker)),
        web.post("/chat", stream(chat)),
        web.get("/rooms/{room}", stream(room)),
        web.get("/broken", stream(broken)),
        web.get("/firehose", stream(firehose)),
    ]
)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), shutdown_timeout=1, print=None)
