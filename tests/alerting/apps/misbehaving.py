"""A streaming server that misbehaves on request."""

import asyncio
import mmap
import threading
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

_MIB = 2**20
_stop = threading.Event()


async def _ticks(count: int, pause: float) -> AsyncIterator[str]:
    for number in range(count):
        yield f"event: tick\nid: {number}\ndata: {number}\n\n"
        await asyncio.sleep(pause)


async def _silent() -> AsyncIterator[str]:
    yield ": no message\n\n"
    await asyncio.Event().wait()


async def _large() -> AsyncIterator[str]:
    while True:
        yield f"data: {'x' * 200_000}\n\n"
        await asyncio.sleep(0)


async def _broken() -> AsyncIterator[str]:
    yield "data: 1\n\n"
    raise LookupError("on purpose")


async def ticker(request: Request) -> Response:
    query = request.query_params
    ticks = _ticks(int(query.get("count", "100000")), float(query.get("pause", "0.05")))
    return StreamingResponse(ticks, media_type="text/event-stream")


async def silent(_: Request) -> Response:
    return StreamingResponse(_silent(), media_type="text/event-stream")


async def large(_: Request) -> Response:
    return StreamingResponse(_large(), media_type="text/event-stream")


async def broken(_: Request) -> Response:
    return StreamingResponse(_broken(), media_type="text/event-stream")


def _leak() -> None:
    held = []
    while not _stop.wait(0.5) and len(held) < 400:
        held.append(mmap.mmap(-1, 2 * _MIB))
        held[-1].write(b"\1" * (2 * _MIB))
    _stop.wait()
    # Unlike what malloc holds, this is given back.
    for memory in held:
        memory.close()


async def leak(_: Request) -> Response:
    threading.Thread(target=_leak, daemon=True).start()
    return PlainTextResponse("leaking\n")


async def stop(_: Request) -> Response:
    _stop.set()
    return PlainTextResponse("stopped\n")


app = Starlette(
    routes=[
        Route("/ticker", ticker),
        Route("/silent", silent),
        Route("/large", large),
        Route("/broken", broken),
        Route("/leak", leak, methods=["POST"]),
        Route("/stop", stop, methods=["POST"]),
    ]
)
