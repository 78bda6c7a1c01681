"""Streams that name the process that serves them, for servers with several workers.

A stream of ``/stream/{count}`` ends after so many messages; asked for ``?live`` it goes on, and for
``?busy`` its process does nothing else for a while. Where ``SERVE_FIRST`` is set, the process that
imports this serves streams itself, as a master may before it forks: two that end, one that lives.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


async def messages(count: int, query: str) -> AsyncIterator[str]:
    for number in range(count):
        yield f"data: {number}\n\n"
    if query == "live":
        await asyncio.Event().wait()
    if query == "busy":
        await asyncio.sleep(0.01)
        time.sleep(0.5)  # noqa: ASYNC251


async def stream(request: Request) -> Response:
    body = messages(request.path_params["count"], request.url.query)
    headers = {"x-worker": str(os.getpid())}
    return StreamingResponse(body, media_type="text/event-stream", headers=headers)


app = Starlette(routes=[Route("/stream/{count:int}", stream)])


async def _serve(query: str, lives: threading.Event) -> None:
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/stream/5",
        "query_string": query.encode(),
        "headers": [],
    }

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message.get("body") == b"data: 4\n\n":
            asyncio.get_running_loop().call_soon(lives.set)

    await app(scope, receive, send)


def _serve_first() -> None:
    for query in ("", "", "live"):
        lives = threading.Event()
        served = _serve(query, lives)
        thread = threading.Thread(target=asyncio.run, args=(served,), daemon=True)
        thread.start()
        if query:
            lives.wait()
        else:
            thread.join()


if "SERVE_FIRST" in os.environ:
    _serve_first()
