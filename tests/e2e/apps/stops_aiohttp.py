"""Endless streams of aiohttp.web, whose clean-up awaits, for a server that is asked to stop.

Run as a program it takes a port, and ``run_app`` or ``cleanup``: its runner is cleaned up at
SIGUSR1, without a signal that stops.
"""

import asyncio
import signal
import sys

from aiohttp import web
from aiohttp_sse import sse_response

TYPED = {"Content-Type": "text/event-stream"}


async def _plain(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=TYPED)
    await response.prepare(request)
    await response.write(b"data: 1\n\n")
    await asyncio.Event().wait()
    return response


async def _cleaning(request: web.Request) -> web.StreamResponse:
    try:
        return await _plain(request)
    finally:
        await asyncio.sleep(0.2)


async def _writing(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=TYPED)
    await response.prepare(request)
    await response.write(b"data: 1\n\n")
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.2)
        await response.write(b"data: 2\n\n")
    return response


async def _aiohttp_sse(request: web.Request) -> web.StreamResponse:
    async with sse_response(request, sep="\n") as response:
        await response.send("1")
        await asyncio.Event().wait()
    return response


async def _other(_: web.Request) -> web.Response:
    return web.Response(text="no stream")


app = web.Application()
app.router.add_get("/other", _other)
app.router.add_get("/plain", _plain)
app.router.add_get("/cleaning", _cleaning)
app.router.add_get("/writing", _writing)
app.router.add_get("/aiohttp-sse", _aiohttp_sse)


async def _until_a_line(port: int) -> None:
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stop.set)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    if sys.argv[2] == "cleanup":
        asyncio.run(_until_a_line(int(sys.argv[1])))
    else:
        web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), shutdown_timeout=0.5, print=None)
