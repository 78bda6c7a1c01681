"""What a reader misses, counted: Starlette with sse-starlette.

    pip install '../..[otlp]' sse-starlette uvicorn
    OTEL_SERVICE_NAME=prices opentelemetry-instrument uvicorn prices:app --port 8000

Read it by ``curl -N 'http://127.0.0.1:8000/prices/ACME?count=5'``; without a count it never ends.

The price changes every 10 ms, and a reader gets it ten times a second. Only the application knows
what it leaves out, so it calls ``record_dropped`` of ``otel_sse.current()``, and
``sse.server.dropped_messages`` counts it with ``sse.drop.reason`` = ``conflated``.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import otel_sse


class Market:
    """A price, and the number of its latest change."""

    number = 0
    price = 100.0

    async def move(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.number += 1
            self.price *= random.uniform(0.99, 1.01)


market = Market()


async def sampled(count: int | None) -> AsyncIterator[ServerSentEvent]:
    seen = market.number - 1
    for _ in itertools.count() if count is None else range(count):
        missed = market.number - seen - 1
        if missed > 0:
            otel_sse.current().record_dropped(missed, "conflated")
        seen = market.number
        yield ServerSentEvent(event="price", id=str(seen), data=f"{market.price:.2f}")
        await asyncio.sleep(0.1)


async def prices(request: Request) -> Response:
    count = request.query_params.get("count", "")
    if count and not count.isdecimal():
        return PlainTextResponse("count takes a whole number", 400)
    return EventSourceResponse(sampled(int(count) if count else None))


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    moving = asyncio.create_task(market.move())
    yield
    moving.cancel()


app = Starlette(routes=[Route("/prices/{symbol}", prices)], lifespan=lifespan)
