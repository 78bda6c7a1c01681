"""Every ending of a stream in an aiohttp application: ``app`` for a server that imports it.

The path is ``/aiohttp/<ending>``; see ``ENDINGS`` in ``e2e/endings.py``. Run as a
program, it takes a port, the loop, and "cancelled" where a handler is when its client disconnects.
"""

import asyncio
import json
import sys
from typing import Any

import uvloop
from aiohttp import web
from e2e.endings import ENDINGS

PATIENCE = 1.0


async def handler(request: web.Request) -> web.StreamResponse:
    ending = request.path.rpartition("/")[2]
    if ending == "raises-before":
        raise LookupError("on purpose")
    status = int(ending) if ending.isdigit() else 200
    response = web.StreamResponse(status=status, headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if ending == "raises-first":
        raise LookupError("on purpose")
    if status in (204, 304) or request.method == "HEAD":
        return response
    await response.write(b"data: begun\n\n")
    if ending == "raises-midway":
        json.loads("{")
    elif ending == "cancelled":
        task: asyncio.Task[Any] | None = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()
    elif ending == "silent":
        await asyncio.Event().wait()
    elif ending == "stops-reading":
        await asyncio.wait_for(flood(response), PATIENCE)
    elif ending.startswith("stalled-"):
        await flood(response)
    elif ending in ("closes", "resets"):
        for _ in range(20):
            await asyncio.sleep(0.1)
            await response.write(b"data: more\n\n")
    elif ending in ("stopped", "endless"):
        while True:
            await asyncio.sleep(0.1)
            await response.write(b"data: more\n\n")
    elif ending.startswith("cleanup-"):
        await write_and_clean_up(response, ending)
    if ending != "returns":
        await response.write_eof()
    return response


async def write_and_clean_up(response: web.StreamResponse, ending: str) -> None:
    try:
        while True:
            await asyncio.sleep(0.1)
            await response.write(b"data: more\n\n")
    except (asyncio.CancelledError, ConnectionError):
        if ending == "cleanup-awaits":
            await asyncio.sleep(0.3)
        elif ending == "cleanup-raises":
            raise LookupError("on purpose, in the clean-up") from None
        elif ending == "cleanup-swallows":
            return
        raise


async def flood(response: web.StreamResponse) -> None:
    while True:
        await response.write(b"data: %s\n\n" % (b"x" * 2**18))
        await asyncio.sleep(0.01)


app = web.Application()
for each in ENDINGS:
    app.router.add_get(f"/aiohttp/{each.path}", handler)

if __name__ == "__main__":
    port, loop, *cancellation = sys.argv[1:]
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(port),
        handler_cancellation=bool(cancellation),
        shutdown_timeout=1,
        loop=uvloop.new_event_loop() if loop == "uvloop" else asyncio.new_event_loop(),
        print=None,
    )
