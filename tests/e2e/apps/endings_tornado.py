"""Every ending of a stream in a Tornado application. Run as a program, it takes a port.

The path is ``/tornado/<ending>``; see ``ENDINGS`` in ``e2e/endings.py``.
"""

import asyncio
import json
import signal
import sys
from typing import Any

from e2e.endings import ENDINGS
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError

PATIENCE = 1.0


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
        if ending == "raises-midway":
            json.loads("{")
        elif ending == "cancelled":
            task: asyncio.Task[Any] | None = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()
        elif ending == "silent":
            await asyncio.Event().wait()
        elif ending == "stops-reading":
            await asyncio.wait_for(self.flood(), PATIENCE)
        elif ending.startswith("stalled-"):
            await self.flood()
        elif ending in ("closes", "resets"):
            for _ in range(20):
                await self.send_later()
        elif ending in ("stopped", "endless"):
            while True:
                await self.send_later()
        elif ending.startswith("cleanup-"):
            await self.send_and_clean_up(ending)
        if ending != "returns":
            await self.finish()

    head = get

    async def send(self, chunk: bytes) -> None:
        self.write(chunk)
        await self.flush()

    async def send_later(self) -> None:
        await asyncio.sleep(0.1)
        await self.send(b"data: more\n\n")

    async def send_and_clean_up(self, ending: str) -> None:
        try:
            while True:
                await self.send_later()
        except (asyncio.CancelledError, StreamClosedError):
            if ending == "cleanup-awaits":
                await asyncio.sleep(0.3)
            elif ending == "cleanup-raises":
                raise LookupError("on purpose, in the clean-up") from None
            elif ending == "cleanup-swallows":
                return
            raise

    async def flood(self) -> None:
        while True:
            await self.send(b"data: %s\n\n" % (b"x" * 2**18))
            await asyncio.sleep(0.01)


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
