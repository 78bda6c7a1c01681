"""Every ending of a stream in an aiohttp application: ``app`` for a server that imports it.

The path is ``/aiohttp/<ending>``; see ``ENDINGS`` in ``e2e/endings.py``. Run as a
program, it takes a port, the loop, and "cancelled" where a handler is when its client disconnects.
"""

import asyncio
import sys

import uvloop
from aiohttp import web
from e2e.endings import ENDINGS
from endings_handlers import go_on


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
    await go_on(ending, response.write, ConnectionError)
    if ending != "returns":
        await response.write_eof()
    return response


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
