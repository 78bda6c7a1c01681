"""FastAPI's native Server-Sent Events: an operation that yields."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

router = APIRouter(prefix="/rooms/{room}")


async def ticks(n: int) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(comment=f"{n} to come")
    for number in range(n):
        yield ServerSentEvent(data={"n": number}, event="tick", id=str(number))
    yield ServerSentEvent(raw_data="[DONE]", retry=100)


@router.get("/events", response_class=EventSourceResponse)
async def finite(room: str, n: int) -> AsyncIterator[ServerSentEvent]:
    async for tick in ticks(n):
        yield tick


@router.post("/events", response_class=EventSourceResponse)
async def posted(room: str, n: int) -> AsyncIterator[ServerSentEvent]:
    async for tick in ticks(n):
        yield tick


@router.get("/endless", response_class=EventSourceResponse)
async def endless(room: str, n: int) -> AsyncIterator[ServerSentEvent]:
    async for tick in ticks(n):
        yield tick
    await asyncio.Event().wait()


app = FastAPI()
app.include_router(router, prefix="/api")
