"""The applications that ``soak.py`` serves: streams of a given shape, and what the process holds.

``/stream?messages=N&delay=S`` sends N messages of all sizes, S seconds apart, the first at once;
``/held`` answers with numbers that grow where something leaks. Each is served in a process of its
own: ``uvicorn soaked:starlette_app``, ``gunicorn soaked:flask_app``, ``python soaked.py PORT`` for
aiohttp.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any


def messages(count: int) -> Iterator[bytes]:
    for number in range(count):
        size = (10, 200, 3000)[number % 3]
        yield b"id: %d\nevent: tick\ndata: %s\n\n" % (number, b"x" * size)


def held() -> dict[str, int]:
    """What this process holds: objects of the package and all, KiB, descriptors, threads."""
    gc.collect()
    with suppress(AttributeError):
        # What is freed goes back to the system, by glibc.
        ctypes.CDLL(None).malloc_trim(0)
    objects = gc.get_objects()
    ours = sum(str(type(each).__module__).startswith("otel_sse") for each in objects)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "our objects": ours,
        "objects": len(objects),
        "blocks": sys.getallocatedblocks(),
        "KiB": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


async def slowly(count: int, delay: float) -> AsyncIterator[bytes]:
    for message in messages(count):
        yield message
        await asyncio.sleep(delay)


def starlette_app() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def stream(request: Any) -> StreamingResponse:
        query = request.query_params
        body = slowly(int(query["messages"]), float(query["delay"]))
        return StreamingResponse(body, media_type="text/event-stream")

    async def answer(_: Any) -> JSONResponse:
        return JSONResponse(held())

    return Starlette(routes=[Route("/stream", stream), Route("/held", answer)])


def flask_app() -> Any:
    from flask import Flask, Response, jsonify, request

    app = Flask(__name__)

    @app.get("/stream")
    def stream() -> Response:
        count, delay = int(request.args["messages"]), float(request.args["delay"])

        def body() -> Iterator[bytes]:
            for message in messages(count):
                yield message
                time.sleep(delay)

        return Response(body(), mimetype="text/event-stream")

    @app.get("/held")
    def answer() -> Response:
        return jsonify(held())

    return app


def serve_aiohttp(port: int) -> None:
    from aiohttp import web

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for message in slowly(int(request.query["messages"]), float(request.query["delay"])):
            await response.write(message)
        return response

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(held())

    app = web.Application()
    app.add_routes([web.get("/stream", stream), web.get("/held", answer)])
    web.run_app(app, port=port, print=None)


if __name__ == "__main__":
    serve_aiohttp(int(sys.argv[1]))
