"""Several event loops and threads in one process: exact totals, no error, no deadlock."""

import asyncio
import logging
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from aiohttp import web
from helpers.aiohttp_apps import aiohttp_app, write_stream
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.waiting import wait_until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

import otel_sse

STREAMS = 240
MESSAGES = 12
AT_ONCE = 24
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture
def shaken() -> Iterator[None]:
    """Threads change places all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


async def _chunks() -> Any:
    for number in range(MESSAGES):
        yield f"event: type-{number % 3}\ndata: x\n\n".encode()
        yield b": ping\n\n"
        await asyncio.sleep(0.001)


async def _starlette_endpoint(request: Request) -> StreamingResponse:
    return StreamingResponse(_chunks(), media_type="text/event-stream")


async def _aiohttp_handler(request: web.Request) -> web.StreamResponse:
    return await write_stream(request, _chunks())


def _serve_starlette() -> Any:
    return serve_asgi(Starlette(routes=[Route("/starlette", _starlette_endpoint)]))


def _serve_aiohttp() -> Any:
    return serve_aiohttp(aiohttp_app("/aiohttp", _aiohttp_handler))


async def _clients(serve: Callable[[], Any], path: str) -> None:
    """Reads every stream to its end, a few at a time, so that they start and end all along."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(port: int) -> None:
        async with free:
            client = await RawClient.get(port, path, "Connection: close")
            raw = await client.reader.read(-1)
            await client.close()
            assert raw.count(b"data: x\n\n") == MESSAGES

    async with serve() as port:
        await asyncio.gather(*(one(port) for _ in range(STREAMS)))


def _in_thread(failures: list[BaseException], work: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.usefixtures("shaken")
@pytest.mark.parametrize("loops", [("asyncio", "asyncio"), ("asyncio", "uvloop")], ids="+".join)
def test_two_loops_serve_while_others_look(
    loops: tuple[str, str],
    backend: Backend,
    instrument: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two loops in two threads serve, a third thread collects, a fourth lists the connections,
    and segments roll across threads: totals are exact, counters never fall, and nothing is logged.
    """
    instrument(segment_seconds=0.02, stall_seconds=0.005)
    failures: list[BaseException] = []
    stop = threading.Event()
    seen: list[float] = []
    most = 0

    def collect() -> None:
        while not stop.is_set():
            seen.append(backend.value("sse.server.messages"))

    def look() -> None:
        nonlocal most
        while not stop.is_set():
            live = otel_sse.connections()
            assert all(each.age >= each.idle >= 0 and each.bytes >= 0 for each in live)
            most = max(most, len(live))
            stop.wait(0.001)

    def serve(kind: str, server: Callable[[], Any], path: str) -> Callable[[], None]:
        def run() -> None:
            loop = LOOPS[kind]()
            try:
                loop.run_until_complete(_clients(server, path))
            finally:
                loop.close()

        return run

    with caplog.at_level(logging.DEBUG, "otel_sse"):
        watchers = [_in_thread(failures, work) for work in (collect, look)]
        first, second = loops
        servers = [
            _in_thread(failures, serve(first, _serve_starlette, "/starlette")),
            _in_thread(failures, serve(second, _serve_aiohttp, "/aiohttp")),
        ]
        for thread in servers:
            thread.join()
        stop.set()
        for thread in watchers:
            thread.join()

    assert failures == []
    assert [record for record in caplog.records if record.name.startswith("otel_sse")] == []
    assert 0 < most <= 2 * AT_ONCE
    assert len(set(seen)) > 3
    assert seen == sorted(seen)
    for route in ("/starlette", "/aiohttp"):
        assert backend.value("sse.server.connections", http__route=route) == STREAMS
        assert backend.value("sse.server.active_connections", http__route=route) == 0
        assert backend.value("sse.server.comments", http__route=route) == STREAMS * MESSAGES
        types = {
            a["sse.event.type"]: p.value
            for a, p in backend.points("sse.server.messages")
            if a["http.route"] == route
        }
        assert types == {f"type-{n}": STREAMS * MESSAGES // 3 for n in range(3)}
        durations = backend.value(
            "sse.server.connection.duration", http__route=route, sse__close__reason="completed"
        )
        assert durations == STREAMS
    # What the throttle does not let pass at once it emits soon after.
    wait_until(
        lambda: len(backend.events("sse.connection.closed")) == _final_spans(backend) == 2 * STREAMS
    )
    _assert_segments_whole(backend)
    closed = Counter(
        e.attributes["sse.connection.id"] for e in backend.events("sse.connection.closed")
    )
    assert len(closed) == 2 * STREAMS
    assert set(closed.values()) == {1}


def _final_spans(backend: Backend) -> int:
    return sum(
        (span.attributes or {}).get("sse.segment.final", False) for span in backend.spans("SSE")
    )


def _assert_segments_whole(backend: Backend) -> None:
    """Every connection has segments 0, 1, 2 … with one final one, and together all its messages."""
    segments: dict[str, list[Any]] = defaultdict(list)
    for span in backend.spans("SSE"):
        segments[span.attributes["sse.connection.id"]].append(span.attributes)
    assert len(segments) == 2 * STREAMS
    assert sum(map(len, segments.values())) > 2 * STREAMS
    for found in segments.values():
        found.sort(key=lambda attributes: attributes["sse.segment.index"])
        assert [each["sse.segment.index"] for each in found] == list(range(len(found)))
        assert [each.get("sse.segment.final", False) for each in found[:-1]] == [False] * (
            len(found) - 1
        )
        assert found[-1]["sse.segment.final"] is True
        assert found[-1]["sse.messages"] == MESSAGES
        assert sum(each["sse.segment.messages"] for each in found) == MESSAGES
