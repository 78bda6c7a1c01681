"""A web server with pages, the bundle and streams that a test writes; it can be restarted."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

Write = Callable[[bytes], Awaitable[None]]
Stream = Callable[[web.Request, Write], Awaitable[None]]
Answer = Callable[[web.Request], web.Response]
_PAGE = "<!doctype html><title>page</title><link rel=icon href=data:,>"


class Site:
    """``streams`` maps paths to what writes there; ``answers`` to plain answers, taken in turn, or
    to what makes them.
    """

    def __init__(self, dist: Path) -> None:
        self.streams: dict[str, Stream] = {}
        self.answers: dict[str, list[web.Response] | Answer] = {}
        self.requests: list[web.Request] = []
        self._dist = dist
        self._port = 0

    async def start(self) -> None:
        """Listens, after a stop on the same port again."""
        app = web.Application()
        app.router.add_static("/dist", self._dist)
        app.router.add_get("/", self._page)
        app.router.add_route("*", "/{path:.*}", self._stream)
        # A stream whose reader has disconnected is cancelled; else it would wait indefinitely.
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        # A reload of the page may still hold the port's last connections.
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Ends as a killed process does: no stream comes to its end."""
        self.cut()
        await self._runner.cleanup()

    def cut(self) -> None:
        """Breaks off every stream."""
        for request in self.requests:
            if request.transport is not None:
                request.transport.abort()

    @property
    def url(self) -> str:
        return f"http://localhost:{self._port}"

    def asked(self, path: str) -> list[web.Request]:
        return [request for request in self.requests if request.path == path]

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text=_PAGE, content_type="text/html")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        await request.read()
        if answers := self.answers.get(request.path):
            return answers(request) if callable(answers) else answers.pop(0)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        try:
            await self.streams[request.path](request, response.write)
        except ConnectionError:
            pass  # The reader has disconnected.
        return response


async def forever() -> None:
    """For a stream that stays open."""
    await asyncio.Event().wait()
