"""Connections that cost more than they are worth: that send no request, or do not read.

aiohttp ends a connection that is kept open between two requests, and waits without a limit for the
first. A client that sends a byte now and then would hold a file descriptor each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from typing import Any, Final

from aiohttp import http_exceptions, web
from aiohttp.typedefs import Handler

from server.settings import KERNEL_BUFFER_BYTES, WRITE_BUFFER_BYTES

# Seconds for the head of a request, and for the body of one that is published.
HEAD_SECONDS: Final = 10.0
BODY_SECONDS: Final = 10.0
SWEEP_SECONDS: Final = 1.0


class Heads:
    """Disconnects clients whose first request does not come in time."""

    def __init__(self) -> None:
        # Protocols of aiohttp's, which take no weak reference: the sweep forgets those that ended.
        self._asked: set[Any] = set()
        self._seen: dict[Any, float] = {}

    @property
    def middleware(self) -> Any:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._asked.add(request.protocol)
            return await handler(request)

        return middleware

    async def sweep(self, server: web.Server) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            live = set(server.connections)
            self._asked &= live
            self._seen = {each: self._seen.get(each, now) for each in live - self._asked}
            for each, since in self._seen.items():
                if now - since > HEAD_SECONDS:
                    each.force_close()
                    if each.transport is not None:
                        each.transport.abort()


def bound_buffers(transport: asyncio.BaseTransport) -> None:
    """Lets the kernel take no more for the client than it can soon send: else it takes megabytes
    for each client that does not read, beyond every limit of this server.
    """
    sock = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if sock is not None and option is not None and sock.family != getattr(socket, "AF_UNIX", None):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, KERNEL_BUFFER_BYTES)
    if isinstance(transport, asyncio.WriteTransport):
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)


class BadRequests(logging.Filter):
    """Makes of aiohttp's report of a request that is no HTTP, or has an over-long URL or header,
    one line: its traceback shows aiohttp's parser and nothing of the sender's.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, http_exceptions.BadHttpMessage):
            record.msg = "A request was refused: %s"
            text = " ".join(str(error.message).split())
            record.args = (ascii(text)[1:-1][:200],)
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
