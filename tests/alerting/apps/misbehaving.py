"""A streaming server that misbehaves on request."""

import asyncio
import mmap
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from opentelemetry import metrics
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import otel_sse

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples"))

from server.meters import Meters

_MIB = 2**20
# The counters of the reference server, which this one counts in as if it refused and failed.
_meters = Meters()
# As a server does whose pool holds so many streams.
metrics.get_meter("misbehaving").create_observable_gauge(
    "sse.server.connection.limit", [lambda _: [metrics.Observation(8)]], "{connection}"
)
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


async def _lossy() -> AsyncIterator[str]:
    while True:
        otel_sse.current().record_dropped(1, "slow_client")
        _meters.rejected.add(1, {"reason": "connections"})
        _meters.errors.add(1, {"class": "timeout", "pattern": "frequent"})
        yield "data: x\n\n"
        await asyncio.sleep(0.1)


async def lossy(_: Request) -> Response:
    """A stream that drops a message, and counts a refusal and an error, ten times a second."""
    return StreamingResponse(_lossy(), media_type="text/event-stream")


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
        Route("/lossy", lossy),
        Route("/silent", silent),
        Route("/large", large),
        Route("/broken", broken),
        Route("/leak", leak, methods=["POST"]),
        Route("/stop", stop, methods=["POST"]),
    ]
)
