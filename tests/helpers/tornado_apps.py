"""Event streams that a Tornado handler writes, and their server."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tornado import web
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

Write = Callable[["Streaming"], Awaitable[None]]


class Streaming(web.RequestHandler):
    """A handler that writes an event stream by its ``write_stream``."""

    def initialize(self, write_stream: Write, **_: Any) -> None:
        self.write_stream = write_stream
        self.set_header("Content-Type", "text/event-stream")

    async def get(self, *_: str, **__: str) -> None:
        await self.write_stream(self)

    post = head = get


def tornado_app(path: str, write_stream: Write, **settings: Any) -> web.Application:
    """An application with one route."""
    return web.Application([(path, Streaming, {"write_stream": write_stream})], **settings)


@contextlib.asynccontextmanager
async def serve_tornado(app: Any) -> AsyncIterator[int]:
    """Runs a Tornado application in this loop; yields its port."""
    listener, port = bind_unused_port()
    server = HTTPServer(app)
    server.add_sockets([listener])
    try:
        yield port
    finally:
        server.stop()
        await server.close_all_connections()
