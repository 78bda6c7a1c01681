"""Workers with real sockets: the CPU of a serving process, for each message or request.

CPU is ``time.process_time`` of the whole process, every thread of the SDK included, from the end
of a warm-up to the last message. The peer, another process, reads all the time.

The sockets are Unix ones by default. On TCP, what the kernel takes for a write depends on how the
writes of a variant happen to be timed (0.8 or 4 us here, changing within a run), which hides a
difference of 2 us that is none of the kernel's.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import variants

_WARM_UP = 0.1

Serve = Callable[[socket.socket, "subprocess.Popen[bytes]"], Coroutine[Any, Any, None]]


class Meter:
    """CPU between the end of the warm-up and the last of ``count`` messages or requests."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.warm = int(count * _WARM_UP)
        self._seen = 0
        self._began = self._ended = 0.0

    def tick(self) -> None:
        """Notes a request."""
        self._seen += 1
        if self._seen == self.warm:
            self._began = process_time()
        elif self._seen == self.warm + self.count:
            self._ended = process_time()

    async def messages(self) -> AsyncIterator[bytes]:
        messages = cycle(variants.MESSAGES)
        for message in islice(messages, self.warm):
            yield message
        self._began = process_time()
        for message in islice(messages, self.count):
            yield message
        self._ended = process_time()

    def micros(self) -> float:
        """CPU for each of them, in microseconds."""
        return (self._ended - self._began) / self.count * 1e6


def starlette_stream(variant: str, messages: int, *, tcp: bool = False) -> dict[str, float]:
    """One stream of Starlette on uvicorn, uvloop and httptools, as fast as it goes."""
    import uvicorn

    reader = variants.set_up(variant, "starlette")
    meter = Meter(messages)
    app = variants.starlette_app(variant, meter.messages)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", log_level="warning", lifespan="off"
    )
    server = uvicorn.Server(config)

    async def serve(listener: socket.socket, peer: subprocess.Popen[bytes]) -> None:
        serving = asyncio.create_task(server.serve([listener]))
        await asyncio.to_thread(peer.wait)
        server.should_exit = True
        await serving

    _run(serve, "/stream", 1, tcp=tcp)
    variants.check(reader, variant, meter.warm + messages)
    return {"us": meter.micros()}


def aiohttp_stream(variant: str, messages: int, *, tcp: bool = False) -> dict[str, float]:
    """One stream of aiohttp.web on uvloop, as fast as it goes."""
    return _aiohttp(variant, "/stream", messages, 1, tcp)


def aiohttp_json(variant: str, requests: int, *, tcp: bool = False) -> dict[str, float]:
    """Pipelined requests that aiohttp.web answers with a little JSON."""
    return _aiohttp(variant, "/json", requests, requests + int(requests * _WARM_UP), tcp)


def _aiohttp(variant: str, path: str, count: int, requests: int, tcp: bool) -> dict[str, float]:
    from aiohttp import web

    reader = variants.set_up(variant, "aiohttp")
    meter = Meter(count)
    app: Any = variants.aiohttp_app(meter.messages, meter.tick)

    async def serve(listener: socket.socket, peer: subprocess.Popen[bytes]) -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        await asyncio.to_thread(peer.wait)
        await runner.cleanup()

    _run(serve, path, requests, tcp=tcp)
    if path == "/stream":
        variants.check(reader, variant, meter.warm + count)
    return {"us": meter.micros()}


def _run(serve: Serve, path: str, requests: int, *, tcp: bool) -> None:
    """Has ``serve`` serve a listener until the peer, which is told to read ``path``, has ended."""
    import uvloop

    with TemporaryDirectory() as folder:
        if tcp:
            listener = socket.create_server(("127.0.0.1", 0))
            address = str(listener.getsockname()[1])
        else:
            address = str(Path(folder, "socket"))
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address)
            listener.listen()
        drain = str(Path(__file__).with_name("drain.py"))
        with subprocess.Popen([sys.executable, drain, address, path, str(requests)]) as peer:
            uvloop.run(serve(listener, peer))
