"""Endless streams of Tornado, whose clean-up awaits, for a server that is asked to stop.

It takes a port, and ``forever``, or ``cleanup``: its connections are closed at SIGUSR1, without a
signal that stops.
"""

import asyncio
import signal
import sys

from tornado import web
from tornado.httpserver import HTTPServer


class Plain(web.RequestHandler):
    async def get(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.write(b"data: 1\n\n")
        await self.flush()
        await asyncio.Event().wait()


class Cleaning(Plain):
    async def get(self) -> None:
        try:
            await super().get()
        finally:
            await asyncio.sleep(0.2)


class Writing(Plain):
    async def get(self) -> None:
        try:
            await super().get()
        finally:
            await asyncio.sleep(0.2)
            self.write(b"data: 2\n\n")
            await self.flush()


async def main(port: int, *, forever: bool) -> None:
    rules = [("/plain", Plain), ("/cleaning", Cleaning), ("/writing", Writing)]
    server = HTTPServer(web.Application(rules))
    server.listen(port, "127.0.0.1")
    stop = asyncio.Event()
    if not forever:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stop.set)
    await stop.wait()
    server.stop()
    await server.close_all_connections()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), forever=sys.argv[2] == "forever"))
