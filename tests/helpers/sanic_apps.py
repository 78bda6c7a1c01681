"""Event streams that a Sanic handler writes, and Sanic's own server."""

import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sanic import Request, Sanic
from sanic.log import LOGGING_CONFIG_DEFAULTS
from sanic.response import BaseHTTPResponse

from helpers.waiting import until

TYPED = {"content_type": "text/event-stream"}
Respond = Callable[[Request], Awaitable[Any]]

# Without it, a process can start only one application.
Sanic.test_mode = True
_names = (f"test{number}" for number in itertools.count())


def sanic_app(path: str | None = None, handler: Respond | None = None) -> Sanic:
    """An application, with one route for every method if one is given."""
    # Every name is registered, and no two may be the same.
    app: Sanic = Sanic(next(_names), configure_logging=False, log_config=LOGGING_CONFIG_DEFAULTS)
    app.config.MOTD = False
    if path is not None and handler is not None:
        app.add_route(handler, path, methods=["GET", "POST", "HEAD"])
    return app


async def start_stream(request: Request, **options: Any) -> BaseHTTPResponse:
    return await request.respond(**{**TYPED, **options})


@contextlib.asynccontextmanager
async def serve_sanic(app: Sanic) -> AsyncIterator[int]:
    """Runs an application on Sanic's own server in this loop; yields its port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = await app.create_server(sock=listener, access_log=False)
    assert server is not None
    try:
        await server.startup()
        await server.before_start()
        await server.after_start()
        yield int(listener.getsockname()[1])
    finally:
        server.close()
        for connection in list(server.connections):
            connection.close_if_idle()
            connection.abort()
        await until(lambda: not server.connections)
        Sanic.unregister_app(app)
