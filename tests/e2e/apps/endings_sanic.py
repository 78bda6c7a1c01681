"""Every ending of a stream in a Sanic application. Run as a program, it takes a port, and how many
worker processes are to serve it; with none the program does itself.

The path is ``/sanic/<ending>``; see ``ENDINGS`` in ``e2e/endings.py``.
"""

import sys
from typing import Any

from e2e.endings import ENDINGS
from endings_handlers import go_on
from sanic import Request, Sanic


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
    await go_on(ending, response.send)
    if ending != "returns":
        await response.eof()


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
