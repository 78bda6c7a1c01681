"""As stop_asgi, with aiohttp; run as a program it takes the port and the seconds of its grace."""

import asyncio
import sys

from aiohttp import web


async def _endless(request: web.Request) -> web.StreamResponse:
    return await _stream(request, None)


async def _short(request: web.Request) -> web.StreamResponse:
    return await _stream(request, 1.0)


async def _stream(request: web.Request, seconds: float | None) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: 1\n\n")
    if seconds is None:
        await asyncio.Event().wait()
    await asyncio.sleep(seconds or 0)
    await response.write(b"data: 2\n\n")
    return response


app = web.Application()
app.router.add_get("/endless", _endless)
app.router.add_get("/short", _short)

if __name__ == "__main__":
    port, grace = map(int, sys.argv[1:])
    web.run_app(app, host="127.0.0.1", port=port, shutdown_timeout=grace, print=None)
