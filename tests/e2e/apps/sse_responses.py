"""sse-starlette's response in a Starlette application, below a mount."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route


async def ticks(n: int) -> AsyncIterator[Any]:
    yield {"comment": f"{n} to come"}
    for number in range(n):
        yield ServerSentEvent(data=f"{number}\nx", event="tick", id=str(number))
    yield {"data": "[DONE]", "retry": 100}


async def finite(request: Request) -> Response:
    return EventSourceResponse(ticks(int(request.query_params["n"])))


async def endless(request: Request) -> Response:
    async def forever() -> AsyncIterator[Any]:
        async for tick in ticks(int(request.query_params["n"])):
            yield tick
        await asyncio.Event().wait()

    return EventSourceResponse(forever())


room = Mount(
    "/rooms/{room}",
    routes=[
        Route("/events", finite, methods=["GET", "POST"]),
        Route("/endless", endless),
    ],
)
app = Starlette(routes=[Mount("/api", routes=[room])])
