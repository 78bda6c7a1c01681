"""The backlog of real transports: bytes that a slow reader has not taken."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from helpers.aiohttp_apps import aiohttp_app, start_stream
from helpers.asgi import Fed, Stream, http_scope
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.waiting import until
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

import otel_sse
from otel_sse import SSEMiddleware
from otel_sse.process import backlog
from otel_sse.telemetry import snapshot

linux = pytest.mark.skipif(sys.platform != "linux", reason="TIOCOUTQ is Linux's")

CHUNK = b"data: " + b"x" * 60_000 + b"\n\n"


async def _firehose(stop: asyncio.Event) -> AsyncIterator[bytes]:
    while not stop.is_set():
        yield CHUNK


@linux
@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_client_that_stops_reading_is_seen_in_both_layers(
    http: str, wrapped: bool, backend: Backend, instrument: Any
) -> None:
    """The kernel's and the transport's bytes of a stuck reader are reported, on uvicorn also where
    middleware hides the server's send; they are 0 once the client has disconnected.
    """
    instrument(slow_send_seconds=0.05)
    stop = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(_firehose(stop), media_type="text/event-stream")

    async def passing(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=passing)] if wrapped else []
    app = Starlette(routes=[Route("/events", endpoint)], middleware=middleware)
    async with serve_asgi(app, http=http) as port:
        client = await RawClient.get(port, "/events", limit=1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]

        def sizes() -> dict[str, float]:
            points = backend.points("sse.server.backlog.size")
            return {a["sse.backlog.layer"]: p.value for a, p in points}

        await until(lambda: sizes().get("transport", 0) > 0 and sizes().get("kernel", 0) > 0)
        worst = backend.value("sse.server.backlog.max")
        assert worst >= len(CHUNK)
        (live,) = otel_sse.connections()
        assert live.backlog is not None
        assert live.backlog >= len(CHUNK)
        stop.set()
        client.reset()
        await until(lambda: backend.value("sse.server.active_connections") == 0)
        assert sizes() == {"transport": 0, "kernel": 0}
        assert backend.value("sse.server.backlog.max") == 0


@linux
async def test_aiohttps_backlog_is_reported(backend: Backend, instrument: Any) -> None:
    """The same for aiohttp.web."""
    from aiohttp import web

    instrument()

    async def endpoint(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(CHUNK)
        return response

    app = aiohttp_app("/events", endpoint)
    async with serve_aiohttp(app) as port:
        client = await RawClient.get(port, "/events", limit=1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: backend.value("sse.server.backlog.max") >= len(CHUNK))
        client.reset()
        await until(lambda: backend.value("sse.server.active_connections") == 0)


@linux
async def test_a_closed_or_reused_descriptor_is_never_read() -> None:
    """A transport that closes, even in the middle of a reading, gives no reading at all."""
    ours, theirs = socket.socketpair()

    class Transport:
        closing_after = 0

        def is_closing(self) -> bool:
            self.closing_after -= 1
            return self.closing_after < 0

        def get_write_buffer_size(self) -> int:
            return 5

        def get_extra_info(self, name: str) -> socket.socket:
            return ours

    transport = Transport()
    transport.closing_after = 2
    assert set(backlog.read_backlog(transport)) == {"transport", "kernel"}
    transport.closing_after = 1  # it closes between the two checks
    assert backlog.read_backlog(transport) == {}
    transport.closing_after = 0
    assert backlog.read_backlog(transport) == {}
    ours.close()
    transport.closing_after = 10
    assert "kernel" not in backlog.read_backlog(transport)
    theirs.close()


async def test_where_the_transport_is_unknown_the_backlog_is_absent(backend: Backend) -> None:
    """No zero is reported where nothing can be read."""
    fed = Fed()
    stream = Stream(SSEMiddleware(fed, **backend.providers))
    await fed.feed(b"data: x\n\n")
    assert backend.points("sse.server.backlog.size") == []
    assert backend.points("sse.server.backlog.max") == []
    fed.end()
    await stream.task


@linux
class FakeServer:
    """A server's side with a transport, which counts how often its buffer is read."""

    def __init__(self) -> None:
        self.reads = 0
        self.transport = self

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        self.reads += 1
        return 1000

    def get_extra_info(self, name: str) -> None:
        return None

    async def send(self, message: Any) -> None:
        pass


async def test_two_streams_on_one_transport_are_read_once(backend: Backend) -> None:
    """HTTP/2 carries many streams over one transport; its bytes count once."""
    server, fed = FakeServer(), Fed()
    mw = SSEMiddleware(fed, **backend.providers)
    tasks = [
        asyncio.ensure_future(mw(http_scope(), None, server.send))  # type: ignore[arg-type]
        for _ in range(2)
    ]
    await fed.feed(b"data: x\n\n")
    ((attributes, point),) = backend.points("sse.server.backlog.size")
    assert attributes["sse.backlog.layer"] == "transport"
    assert point.value == 1000
    assert server.reads == 1
    fed.end(None, None)
    await asyncio.gather(*tasks)


async def test_of_many_connections_a_collection_reads_some_in_turn(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is read once in so many collections as it takes, and its last value counts till then."""
    monkeypatch.setattr(snapshot, "MAX_BACKLOGS", 4)
    servers, fed = [FakeServer() for _ in range(12)], Fed()
    mw = SSEMiddleware(fed, **backend.providers)
    tasks = [
        asyncio.ensure_future(mw(http_scope(), None, server.send))  # type: ignore[arg-type]
        for server in servers
    ]
    await fed.feed(b"data: x\n\n")
    for reads in range(1, 4):
        for _ in range(3):
            backend.metrics()
        assert [server.reads for server in servers] == [reads] * len(servers)
    assert backend.value("sse.server.backlog.size") == 1000 * len(servers)
    fed.end(*[None] * len(servers))
    await asyncio.gather(*tasks)
