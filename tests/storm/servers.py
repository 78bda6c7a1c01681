"""The servers of the plans, each in this process on an event loop of its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Coroutine
from typing import Any

import uvicorn
from aiohttp import web
from granian.constants import Interfaces
from granian.server.embed import Server as Granian
from helpers.servers import free_port
from hypercorn.asyncio import serve as hypercorn
from hypercorn.config import Config
from storm.plans import AIOHTTP_SERVERS

# Seconds that a server gives its streams when it stops.
GRACE = 0.2
_START = 15.0


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Any], seconds: float = 30.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def start(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop)


class Running:
    """A server that serves on ``port`` until ``stop`` is called."""

    def __init__(self, thread: LoopThread, name: str, app: Any) -> None:
        self.name = name
        self._thread = thread
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._stopped = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._server: Any = None
        if name in AIOHTTP_SERVERS:
            thread.run(self._start_aiohttp(app))
            self.port = self._runner.addresses[0][1]  # type: ignore[union-attr]
            return
        if name == "granian":
            self._socket.close()
            self.port = free_port()
        self._task = thread.start(self._serve(app))
        thread.run(self._until_listening())

    async def _start_aiohttp(self, app: Any) -> None:
        self._socket.close()
        cancels = self.name == "aiohttp-cancels"
        self._runner = web.AppRunner(
            app, shutdown_timeout=GRACE, access_log=None, handler_cancellation=cancels
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    async def _serve(self, app: Any) -> None:
        if self.name == "hypercorn":
            config = Config()
            config.bind = [f"fd://{self._socket.detach()}"]
            config.errorlog = logging.getLogger("hypercorn.error")
            config.graceful_timeout = GRACE
            await hypercorn(app, config, shutdown_trigger=self._stopped.wait)
        elif self.name == "granian":
            self._server = Granian(
                app,
                port=self.port,
                interface=Interfaces.ASGINL,
                log_enabled=False,
            )
            await self._server.serve()
        else:
            options: Any = {"http": self.name.partition("-")[2], "log_config": None}
            self._server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    lifespan="off",
                    interface="asgi3",
                    access_log=False,
                    timeout_graceful_shutdown=GRACE,  # type: ignore[arg-type]
                    **options,
                )
            )
            await self._server.serve([self._socket])

    async def _until_listening(self) -> None:
        deadline = self._thread.loop.time() + _START
        while self._thread.loop.time() < deadline:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.005)
        raise RuntimeError(f"{self.name} does not start")

    def begin_stop(self) -> Any:
        """Asks the server to stop; returns what to wait for."""
        if self.name in AIOHTTP_SERVERS:
            assert self._runner is not None
            return self._thread.start(self._runner.cleanup())
        loop = self._thread.loop
        if self.name == "hypercorn":
            loop.call_soon_threadsafe(self._stopped.set)
        elif self.name == "granian":
            loop.call_soon_threadsafe(self._server.stop)
        else:
            self._server.should_exit = True
        return self._task
