"""The messages of a stream that ends in each way, for the applications of ASGI frameworks."""

import asyncio
import json
from collections.abc import AsyncIterator

from opentelemetry import trace

BEGUN = b"data: begun\n\n"
TYPE = "text/event-stream"
PLAIN = "text/plain"
tracer = trace.get_tracer(__name__)


async def messages(ending: str) -> AsyncIterator[bytes]:
    if ending == "raises-first":
        raise LookupError(ending)
    yield BEGUN
    if ending == "ends":
        with tracer.start_as_current_span("work"):
            yield b"event: tick\ndata: 1\n\n"
            with tracer.start_as_current_span("step"):
                pass
        yield b": ping\n\n"
    elif ending == "raises-midway":
        json.loads("{")
    elif ending in ("silent", "times-out"):
        await asyncio.Event().wait()
    elif ending == "closes":
        for _ in range(40):
            await asyncio.sleep(0.05)
            yield b"data: more\n\n"
    elif ending == "stopped":
        while True:
            await asyncio.sleep(0.05)
            yield b"data: more\n\n"
