"""ASGI without a server: the test is the server, or feeds the application."""

import asyncio
from typing import Any

from helpers.backend import Backend
from helpers.waiting import PATIENCE
from otel_sse import SSEMiddleware

SSE = [(b"content-type", b"text/event-stream")]
START = {"type": "http.response.start", "status": 200, "headers": SSE}
TRACEPARENT = (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")


class AppError(Exception):
    """An error of the application's own."""


def middleware(backend: Backend, app: Any, **options: Any) -> SSEMiddleware:
    """The application in our middleware, which reports to ``backend``."""
    return SSEMiddleware(app, **backend.providers, **options)


def http_scope(path: str = "/events", **extra: Any) -> dict[str, Any]:
    """The ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("10.0.0.1", 4000),
        "server": ("localhost", 80),
        **extra,
    }


class Stream:
    """One request to an ASGI application without a server: the test is the server."""

    def __init__(self, app: Any, **scope: Any) -> None:
        self.sent: list[Any] = []
        self.disconnected = asyncio.Event()
        self.blocked: asyncio.Event | None = None
        self.task = asyncio.ensure_future(app(http_scope(**scope), self._receive, self._send))

    async def _receive(self) -> Any:
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if self.blocked is not None:
            await self.blocked.wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Fed:
    """An ASGI application that streams what the test feeds it; None ends the stream, an
    exception is raised in the application.
    """

    def __init__(self, status: int = 200, headers: Any = SSE) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.status = status
        self.headers = headers
        self.idle = asyncio.Event()
        self.broken = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._stream(send)
        except BaseException:
            # Nothing takes from the queue any more: a test that feeds it must not wait.
            self.broken = True
            self.idle.set()
            raise

    async def _stream(self, send: Any) -> None:
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(start)
        while (chunk := await self._next()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            if callable(chunk):
                chunk()
                continue
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> Any:
        if self.queue.empty():
            self.idle.set()
        return await self.queue.get()

    async def feed(self, *chunks: Any) -> None:
        """Streams the chunks and waits until the application has sent them all."""
        self.idle.clear()
        for chunk in chunks:
            self.queue.put_nowait(chunk)
        await asyncio.wait_for(self.idle.wait(), PATIENCE)
        assert not self.broken, "the application has ended before it sent them all"

    def end(self, *last: Any) -> None:
        for chunk in last or (None,):
            self.queue.put_nowait(chunk)
