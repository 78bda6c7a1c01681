"""Every ending of a stream in a Tornado application. Run as a program, it takes a port.

The path is ``/tornado/<ending>``; see ``ENDINGS`` in ``e2e/endings.py``.
"""

import asyncio
import signal
import sys

from e2e.endings import ENDINGS
from endings_handlers import go_on
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError


class Handler(web.RequestHandler):
    async def get(self) -> None:
        ending = self.request.path.rpartition("/")[2]
        if ending == "raises-before":
            raise LookupError("on purpose")
        self.set_status(int(ending) if ending.isdigit() else 200)
        self.set_header("Content-Type", "text/event-stream")
        await self.flush()
        if ending == "raises-first":
            raise LookupError("on purpose")
        if self.get_status() in (204, 304) or self.request.method == "HEAD":
            return
        await self.send(b"data: begun\n\n")
        await go_on(ending, self.send, StreamClosedError)
        if ending != "returns":
            await self.finish()

    head = get

    async def send(self, chunk: bytes) -> None:
        self.write(chunk)
        await self.flush()


async def main(port: int) -> None:
    app = web.Application([(f"/tornado/{each.path}", Handler) for each in ENDINGS])
    # A client reads to the end of a response that breaks off.
    server = HTTPServer(app, no_keep_alive=True)
    server.listen(port, "127.0.0.1")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    server.stop()
    await server.close_all_connections()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
