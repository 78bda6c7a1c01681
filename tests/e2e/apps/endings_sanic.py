"""Every ending of a stream in a Sanic application. Run as a program, it takes a port, and how many
worker processes are to serve it; with none the program does itself.

The path is ``/sanic/<ending>``; see ``ENDINGS`` in ``e2e/endings.py``.
"""

import asyncio
import json
import sys
from typing import Any

from e2e.endings import ENDINGS
from sanic import Request, Sanic
from sanic.response import BaseHTTPResponse

PATIENCE = 1.0


async def handler(request: Request) -> None:
    ending = request.path.rpartition("/")[2]
    if ending == "raises-before":
        raise LookupError("on purpose")
    status = int(ending) if ending.isdigit() else 200
    # Sanic leaves the header out of a 204, so it is set.
    typed = {"content-type": "text/event-stream"}
    response = await request.respond(status=status, headers=typed)
    if status in (204, 304) or request.method == "HEAD":
        return
    await response.send(b"")
    if ending == "raises-first":
        raise LookupError("on purpose")
    await response.send(b"data: begun\n\n")
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
            await send_later(response)
    elif ending in ("stopped", "endless"):
        while True:
            await send_later(response)
    elif ending.startswith("cleanup-"):
        await send_and_clean_up(response, ending)
    if ending != "returns":
        await response.eof()


async def send_later(response: BaseHTTPResponse) -> None:
    await asyncio.sleep(0.1)
    await response.send(b"data: more\n\n")


async def send_and_clean_up(response: BaseHTTPResponse, ending: str) -> None:
    try:
        while True:
            await send_later(response)
    except asyncio.CancelledError:
        if ending == "cleanup-awaits":
            await asyncio.sleep(0.3)
        elif ending == "cleanup-raises":
            raise LookupError("on purpose, in the clean-up") from None
        elif ending == "cleanup-swallows":
            return
        raise


async def flood(response: BaseHTTPResponse) -> None:
    while True:
        await response.send(b"data: %s\n\n" % (b"x" * 2**18))
        await asyncio.sleep(0.01)


app: Sanic = Sanic("endings")
# A client reads to the end of a response that breaks off.
app.config.KEEP_ALIVE = False
app.config.GRACEFUL_SHUTDOWN_TIMEOUT = 1
for each in ENDINGS:
    app.add_route(handler, f"/sanic/{each.path}", name=each.path, methods=["GET", "HEAD"])

if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    how: dict[str, Any] = {"workers": workers} if workers else {"single_process": True}
    app.run("127.0.0.1", port, motd=False, access_log=False, **how)
