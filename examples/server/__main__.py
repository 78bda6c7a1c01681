"""``opentelemetry-instrument python -m server``, with settings in the environment."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from typing import Final

from aiohttp import web

from server.app import HEADS, SETTINGS, STREAMS, build, warn_of_open_doors
from server.connections import BadRequests
from server.quiet import NoCollector
from server.settings import load

# Objects between two collections of garbage, and how many of these between two of older ones.
# Ten thousand streams are a million objects. To look at all of them takes 0.7 s, in which no client
# is served, and at Python's own numbers every third message to all clients did that.
_GARBAGE: Final = (50_000, 20, 20)
# Seconds between two requests of a connection; HAProxy closes those that it keeps before.
_KEEP_ALIVE: Final = 75.0


async def serve(app: web.Application) -> None:
    """Serves until SIGTERM or SIGINT, and then as long as it takes to end in order."""
    settings = app[SETTINGS]
    # A client that disconnects ends its handler at once, not at the next heartbeat.
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.5,
        keepalive_timeout=_KEEP_ALIVE,
    )
    await runner.setup()
    assert runner.server is not None
    sweeper = asyncio.create_task(app[HEADS].sweep(runner.server))
    try:
        await web.TCPSite(runner, settings.host, settings.port, backlog=1024).start()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        host, port = runner.addresses[0][:2]
        logging.getLogger("server").info("Listening on http://%s:%d", host, port)
        await stop.wait()
        await app[STREAMS].drain()
    finally:
        sweeper.cancel()
        await runner.cleanup()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("aiohttp.server").addFilter(BadRequests())
    for handler in logging.getLogger().handlers:
        handler.addFilter(NoCollector())
    try:
        settings = load()
        app = build(settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    warn_of_open_doors(settings)
    gc.set_threshold(*_GARBAGE)
    try:
        asyncio.run(serve(app))
    except OSError as error:
        print(f"Cannot listen on {settings.host}:{settings.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
