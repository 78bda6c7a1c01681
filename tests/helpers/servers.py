"""Real servers on real sockets, in the test's own event loop."""

import asyncio
import contextlib
import random
import socket
import socketserver
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
import uvicorn
from aiohttp import web

from helpers.waiting import until

# Below those that Linux and others hand out; each process that tests takes them in its own order.
_ports = iter(random.SystemRandom().sample(range(10_000, 32_000), 20_000))
# It is bound and does not listen.
_refusing = socket.socket()

AIOHTTP_SSE_3 = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="aiohttp-sse 3, which this speaks to, needs Python 3.11"
)


@contextlib.asynccontextmanager
async def serve_asgi(app: Any, **config: Any) -> AsyncIterator[int]:
    """Runs an ASGI application under uvicorn in this loop; yields its port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = {"log_level": "critical", "lifespan": "off", "timeout_graceful_shutdown": 1, **config}
    server = uvicorn.Server(uvicorn.Config(app, **config))
    with _no_signals(server):
        task = asyncio.create_task(server.serve([listener]))
        try:
            await until(lambda: server.started, running=task)
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            await task
            listener.close()


@contextlib.contextmanager
def _no_signals(server: uvicorn.Server) -> Iterator[None]:
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    yield


@contextlib.asynccontextmanager
async def serve_wsgi(app: Any) -> AsyncIterator[int]:
    """Runs a WSGI application under the standard library's server, a thread for each connection;
    yields its port.
    """
    with make_server("127.0.0.1", 0, app, _ThreadingServer, _QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            await asyncio.to_thread(server.shutdown)
            thread.join()


class _ThreadingServer(socketserver.ThreadingMixIn, WSGIServer):
    """It waits for its threads when it closes."""


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.asynccontextmanager
async def serve_aiohttp(app: web.Application, **options: Any) -> AsyncIterator[int]:
    """Runs an aiohttp application in this loop; yields its port."""
    runner = web.AppRunner(app, shutdown_timeout=1, access_log=None, **options)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


@cache
def refusing_port() -> int:
    """A port at which nothing listens, and nothing will while this process lives: it is bound."""
    _refusing.bind(("127.0.0.1", 0))
    return int(_refusing.getsockname()[1])


def free_port() -> int:
    """A port for a server that cannot be given port 0.

    Not one that the kernel hands out, which a client's connection might have got before the server
    starts; nor one that this process has been given.
    """
    for port in _ports:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")
