"""What a reader misses, told: Starlette with sse-starlette.

    pip install 'otel-sse[otlp]' sse-starlette uvicorn
    opentelemetry-instrument uvicorn prices:app --port 8000

Read it by ``curl -N 'http://127.0.0.1:8000/prices/ACME?count=5'``; without a count it never ends.

The price changes every 10 ms, and a reader is told ten times a second. Nobody but the application
knows what it left out, so it says so to ``otel_sse.current()``, and ``sse.server.dropped_messages``
counts it with ``sse.drop.reason`` = ``conflated``.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
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


async def told(count: int | None) -> AsyncIterator[ServerSentEvent]:
    seen = market.number - 1
    for _ in itertools.count() if count is None else range(count):
        missed = market.number - seen - 1
        if missed > 0:
            otel_sse.current().record_dropped(missed, "conflated")
        seen = market.number
        yield ServerSentEvent(event="price", id=str(seen), data=f"{market.price:.2f}")
        await asyncio.sleep(0.1)


async def prices(request: Request) -> EventSourceResponse:
    count = request.query_params.get("count")
    return EventSourceResponse(told(int(count) if count else None))


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    moving = asyncio.create_task(market.move())
    yield
    moving.cancel()


app = Starlette(routes=[Route("/prices/{symbol}", prices)], lifespan=lifespan)
