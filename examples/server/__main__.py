"""``opentelemetry-instrument python -m server``, with settings in the environment."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from typing import Final

from aiohttp import web

from server.app import SETTINGS, STREAMS, build
from server.settings import load

# Objects between two collections of garbage, and how many of these between two of older ones.
# Ten thousand streams are a million objects. To look at all of them takes 0.7 s, in which nobody
# is served, and at Python's own numbers every third message to all had it done.
_GARBAGE: Final = (50_000, 20, 20)


async def serve(app: web.Application) -> None:
    """Serves until SIGTERM or SIGINT, and then as long as it takes to end in order."""
    settings = app[SETTINGS]
    # A client that leaves ends its handler at once, not at the next heartbeat.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
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
        await runner.cleanup()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = load()
        app = build(settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    gc.set_threshold(*_GARBAGE)
    try:
        asyncio.run(serve(app))
    except OSError as error:
        print(f"Cannot listen on {settings.host}:{settings.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
