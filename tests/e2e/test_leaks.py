"""Nothing leaks: what ends is gone from telemetry and memory; a storm is reported whole."""

import asyncio
import itertools
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from helpers import churn, otlp
from helpers.aiohttp_apps import aiohttp_app, start_stream
from helpers.backend import exporting
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.waiting import until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

import otel_sse
from otel_sse.frameworks import SSEAiohttpServerInstrumentor, SSEStarletteInstrumentor

# A hundred thousand streams: so many without a server, and so many on sockets of each of two.
IN_PROCESS = 96_000
ON_SOCKETS = 2_000
AT_ONCE = 100
STORM = 2_000


class WaitingApp:
    """An application on a real server: a stream sends one message and waits for its release."""

    def __init__(self) -> None:
        self._release = asyncio.Event()
        # Of each stream, whether the server still takes its peer for present.
        self._present: list[Callable[[], bool]] = []

    async def release(self, *, disconnected: bool) -> None:
        """Lets all streams go on that wait now; where their peers have ``disconnected``, not before
        the server has noticed.
        """
        if disconnected:
            await until(lambda: not any(present() for present in self._present))
        self._present.clear()
        self._release.set()
        self._release = asyncio.Event()

    async def _chunks(self) -> Any:
        release = self._release
        yield b"data: 1\n\n"
        await release.wait()
        yield b"data: 2\n\n"

    async def _endpoint(self, request: Request) -> StreamingResponse:
        ended = asyncio.Event()

        async def chunks() -> Any:
            try:
                async for chunk in self._chunks():
                    yield chunk
            finally:
                ended.set()

        # uvicorn reports a disconnected peer, and Starlette ends its stream at once.
        self._present.append(lambda: not ended.is_set())
        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def _handler(self, request: web.Request) -> web.StreamResponse:
        self._present.append(lambda: request.transport is not None)
        response = await start_stream(request)
        with suppress(ConnectionResetError):  # the log would keep it, and so the stream
            async for chunk in self._chunks():
                await response.write(chunk)
        return response

    def starlette(self) -> Any:
        return serve_asgi(Starlette(routes=[Route("/events", self._endpoint)]))

    def aiohttp(self) -> Any:
        return serve_aiohttp(aiohttp_app("/events", self._handler))


SERVERS = {"uvicorn": WaitingApp.starlette, "aiohttp": WaitingApp.aiohttp}


async def connect(port: int, count: int, *headers: str) -> list[RawClient]:
    """So many clients at once, each with its first message."""
    clients = await asyncio.gather(
        *(RawClient.get(port, "/events", "Connection: close", *headers) for _ in range(count))
    )
    await asyncio.gather(*(client.until(b"data: 1\n\n") for client in clients))
    return clients


async def disconnect(app: WaitingApp, clients: list[RawClient]) -> None:
    """Half of the clients reset, half close; their streams go on and find them disconnected."""
    for client, reset in zip(clients, itertools.cycle((True, False)), strict=False):
        if reset:
            client.reset()
        else:
            client.writer.close()
    await app.release(disconnected=True)


async def finish(app: WaitingApp, clients: list[RawClient]) -> None:
    """The streams end, and every client reads its own to the end."""
    await app.release(disconnected=False)
    for raw in await asyncio.gather(*(client.reader.read(-1) for client in clients)):
        assert b"data: 2\n\n" in raw
    for client in clients:
        await client.close()


@pytest.mark.timeout(600)
def test_a_hundred_thousand_streams_leave_nothing() -> None:
    """After 96,000 streams with every close reason, each reported once, nothing is live,
    none of our objects is alive, and the second half keeps no memory.
    """
    streams = churn.Churn()
    half = IN_PROCESS // 2
    streams.serve(range(half))
    streams.sums("sse.server.active_connections")
    before = churn.blocks()
    streams.serve(range(half, IN_PROCESS))
    streams.sums("sse.server.active_connections")
    grown = churn.blocks() - before
    assert streams.differences(IN_PROCESS) == []
    assert grown < churn.SLACK


@pytest.mark.parametrize("server", SERVERS)
async def test_thousands_of_sockets_leave_nothing(
    server: str, backend: Any, instrument: Callable[..., None]
) -> None:
    """Real connections, half of them dropped by their clients, are all reported once; nothing is
    live then, and none of our objects is alive.
    """
    before = churn.ours()
    instrument()
    app = WaitingApp()
    async with SERVERS[server](app) as port:
        for ends in itertools.islice(itertools.cycle((disconnect, finish)), ON_SOCKETS // AT_ONCE):
            clients = await connect(port, AT_ONCE)
            await ends(app, clients)
            await until(lambda: backend.value("sse.server.active_connections") == 0)
    del clients
    await until(lambda: len(backend.spans("SSE")) == ON_SOCKETS)
    await until(lambda: len(backend.events("sse.connection.")) == 2 * ON_SOCKETS)
    assert backend.value("sse.server.connections") == ON_SOCKETS
    reasons = {
        attributes["sse.close.reason"]: point.count
        for attributes, point in backend.points("sse.server.connection.duration")
    }
    assert reasons == {"client_disconnect": ON_SOCKETS // 2, "completed": ON_SOCKETS // 2}
    await until(lambda: churn.ours() <= before)


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as a storm needs: two for each client, and a storm has two waves."""
    needed = 5 * STORM
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            why = f"a process may open {hard} files here, and this needs {needed}"
            (pytest.fail if "CI" in os.environ else pytest.skip)(why)
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("server", SERVERS)
async def test_a_reconnect_storm_is_reported_whole(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """2,000 clients connect at once, all disconnect at once, come back at once with a Last-Event-ID
    and are served to the end: every span, every event and every count arrives at the receiver.
    """
    instrumentors = (SSEStarletteInstrumentor(), SSEAiohttpServerInstrumentor())
    app = WaitingApp()
    live = len(otel_sse.connections())
    with otlp.Receiver() as receiver, exporting(receiver) as providers:
        for instrumentor in instrumentors:
            instrumentor.instrument(**providers)
        try:
            async with SERVERS[server](app) as port:
                clients = await connect(port, STORM)
                assert len(otel_sse.connections()) == live + STORM
                await disconnect(app, clients)
                clients = await connect(port, STORM, "Last-Event-ID: 1")
                await finish(app, clients)
                await until(lambda: len(otel_sse.connections()) == live)
            await asyncio.to_thread(
                receiver.wait_for, lambda: len(receiver.spans("SSE")) >= 2 * STORM, 60
            )
            await asyncio.to_thread(
                receiver.wait_for,
                lambda: len(receiver.records("sse.connection.")) >= 4 * STORM,
                60,
            )
            await asyncio.to_thread(providers["meter_provider"].force_flush)
        finally:
            for instrumentor in instrumentors:
                instrumentor.uninstrument()

        spans = receiver.spans("SSE")
        reasons = {"client_disconnect": STORM, "completed": STORM}
        assert Counter(span.attributes["sse.close.reason"] for span in spans) == reasons
        ids = {span.attributes["sse.connection.id"] for span in spans}
        assert len(ids) == 2 * STORM
        for name in ("opened", "closed"):
            ids_of_events = [
                record.attributes["sse.connection.id"]
                for record in receiver.records(f"sse.connection.{name}")
            ]
            assert len(ids_of_events) == 2 * STORM
            assert set(ids_of_events) == ids
        for resumed in (False, True):
            assert receiver.value("sse.server.connections", sse__resumed=resumed) == STORM
        assert receiver.value("sse.server.active_connections") == 0
        for reason, count in reasons.items():
            durations = receiver.points("sse.server.connection.duration", sse__close__reason=reason)
            assert sum(point.value for point in durations) == count
        span_messages = sum(span.attributes["sse.messages"] for span in spans)
        assert receiver.value("sse.server.messages") == span_messages >= 3 * STORM
    assert [r for r in caplog.records if r.name.startswith(("otel_sse", "opentelemetry"))] == []
