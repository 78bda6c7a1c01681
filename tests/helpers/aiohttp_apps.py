"""Event streams that an aiohttp.web handler writes."""

from collections.abc import AsyncIterable, Iterable
from typing import Any

from aiohttp import web

TYPED = {"Content-Type": "text/event-stream"}


def aiohttp_app(path: str, handler: Any, **options: Any) -> web.Application:
    """An application with one route, for every method."""
    app = web.Application(**options)
    app.router.add_route("*", path, handler)
    return app


async def start_stream(request: web.Request, **headers: str) -> web.StreamResponse:
    """An event stream's response whose headers are sent."""
    response = web.StreamResponse(headers={**TYPED, **headers})
    await response.prepare(request)
    return response


async def write_stream(
    request: web.Request, chunks: AsyncIterable[bytes] | Iterable[bytes], **headers: str
) -> web.StreamResponse:
    """The response of a handler that writes these chunks and returns."""
    response = await start_stream(request, **headers)
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            await response.write(chunk)
    else:
        for chunk in chunks:
            await response.write(chunk)
    return response
