"""Workers with real sockets: the CPU of a serving process, for each message or request.

The peers, processes of their own, read all the time. The sockets are Unix ones by default. On TCP,
what the kernel takes for a write depends on how the writes of a variant happen to be timed (0.8 or
4 us here, changing within a run), which hides a difference of 2 us that is none of the kernel's.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import variants
from turns import Micros, Streams, by_turns
from variants import OURS, PLAIN

# Messages of a turn.
_SIZE = 250

Connect = Callable[[str], None]


def starlette_streams(variant: str, rounds: int, *, tcp: bool = False) -> Micros:
    """A plain stream and one of ``variant``, of Starlette on uvicorn with uvloop and httptools."""
    import uvicorn

    reader = variants.provide()
    streams = Streams(_SIZE)
    apps = {
        f"/{number}": variants.starlette_app(name, partial(streams.source, name))
        for number, name in enumerate((PLAIN, variant))
    }

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await apps[scope["path"]]({**scope, "path": "/stream"}, receive, send)

    async def run() -> Micros:
        config = uvicorn.Config(
            app, loop="uvloop", http="httptools", log_level="critical", lifespan="off"
        )
        server = uvicorn.Server(config)
        async with _listening(tcp=tcp) as (listener, connect):
            serving = asyncio.create_task(server.serve([listener]))
            found = await _in_turn(streams, variant, connect, "starlette", rounds)
            server.should_exit = server.force_exit = True
            await serving
        return found

    return _checked(run(), reader, streams)


def aiohttp_streams(variant: str, rounds: int, *, tcp: bool = False) -> Micros:
    """The same of aiohttp.web on uvloop."""
    from aiohttp import web

    reader = variants.provide()
    streams = Streams(_SIZE)
    app = variants.aiohttp_app(lambda number: streams.source((PLAIN, variant)[int(number)]))

    async def run() -> Micros:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        async with _listening(tcp=tcp) as (listener, connect):
            await web.SockSite(runner, listener).start()
            found = await _in_turn(streams, variant, connect, "aiohttp", rounds)
            await runner.cleanup()
        return found

    return _checked(run(), reader, streams)


def _checked(run: Coroutine[Any, Any, Micros], reader: Any, streams: Streams) -> Micros:
    import uvloop

    found: Micros = uvloop.run(run)
    if streams.sent[OURS]:
        variants.check(reader, streams.sent[OURS])
    return found


async def _in_turn(
    streams: Streams, variant: str, connect: Connect, framework: str, rounds: int
) -> Micros:
    connect("/0")
    await streams.begun()
    # The plain stream has begun without it.
    if variant == OURS:
        variants.instrument(framework)
    connect("/1")
    await streams.begun()
    return await by_turns((PLAIN, variant), streams.turn, rounds)


@asynccontextmanager
async def _listening(*, tcp: bool) -> AsyncIterator[tuple[socket.socket, Connect]]:
    """A listener, and what has a new peer read a path of it; the peers go with the block."""
    drain = str(Path(__file__).with_name("drain.py"))
    peers: list[subprocess.Popen[bytes]] = []
    with TemporaryDirectory() as folder:
        if tcp:
            listener = socket.create_server(("127.0.0.1", 0))
            address = str(listener.getsockname()[1])
        else:
            address = str(Path(folder, "socket"))
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address)
            listener.listen()
        try:
            yield (
                listener,
                lambda path: peers.append(subprocess.Popen([sys.executable, drain, address, path])),
            )
        finally:
            for peer in peers:
                peer.kill()
                peer.wait()
