"""aiohttp-sse's response in an aiohttp application; takes its listening socket's number."""

import asyncio
import socket
import sys

from aiohttp import web
from aiohttp_sse import EventSourceResponse, sse_response


async def ticks(request: web.Request, response: EventSourceResponse) -> None:
    n = int(request.query["n"])
    await response.write(f": {n} to come\r\n\r\n".encode())
    for number in range(n):
        await response.send(f"{number}\nx", event="tick", id=str(number))
    await response.send("[DONE]", retry=100)


async def finite(request: web.Request) -> web.StreamResponse:
    async with sse_response(request, allow_all_methods=True) as response:
        await ticks(request, response)
    return response


async def endless(request: web.Request) -> web.StreamResponse:
    async with sse_response(request) as response:
        await ticks(request, response)
        await asyncio.Event().wait()
    return response


def application() -> web.Application:
    rooms = web.Application()
    rooms.router.add_get("/rooms/{room}/events", finite)
    rooms.router.add_post("/rooms/{room}/events", finite)
    rooms.router.add_get("/rooms/{room}/endless", endless)
    app = web.Application()
    app.add_subapp("/api", rooms)
    return app


if __name__ == "__main__":
    # A handler is cancelled when its client disconnects, as on other servers.
    web.run_app(
        application(),
        sock=socket.socket(fileno=int(sys.argv[1])),
        handler_cancellation=True,
        shutdown_timeout=1,
        print=None,
    )
