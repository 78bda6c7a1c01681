"""A job's progress, resumed where its reader lost it: Litestar's own ServerSentEvent.

    pip install '../..[otlp]' litestar uvicorn
    OTEL_SERVICE_NAME=backup opentelemetry-instrument uvicorn --port 8000 backup:app

Read it by ``curl -N http://127.0.0.1:8000/backups/7/progress``. Litestar's handler knows the route,
``/backups/{number}/progress``. A reader that comes back with ``Last-Event-ID`` is counted by
``sse.server.connections`` with ``sse.resumed`` = true.
"""

import asyncio
from collections.abc import AsyncIterator

from litestar import Litestar, Request, get
from litestar.datastructures import State
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage

STEPS = 10


async def progress(after: int) -> AsyncIterator[ServerSentEventMessage]:
    for step in range(after + 1, STEPS + 1):
        await asyncio.sleep(0.1)
        yield ServerSentEventMessage(event="step", id=step, data=f"{step} of {STEPS}")


@get("/backups/{number:int}/progress")
async def stream(request: Request[object, object, State]) -> ServerSentEvent:
    last = request.headers.get("last-event-id", "")
    return ServerSentEvent(progress(int(last) if last.isascii() and last.isdigit() else 0))


app = Litestar([stream])
