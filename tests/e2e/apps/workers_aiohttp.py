"""The streams of ``workers_starlette``, served by aiohttp."""

import os
from typing import Any

from aiohttp import web
from workers_starlette import messages


async def stream(request: web.Request) -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream", "X-Worker": str(os.getpid())}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    async for message in messages(int(request.match_info["count"]), request.query_string):
        await response.write(message.encode())
    return response


app: Any = web.Application()
app.router.add_get("/stream/{count}", stream)
