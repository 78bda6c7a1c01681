"""What clients wait for: gaps, stalls, segments, threads and resumed streams."""

import asyncio
import concurrent.futures
import contextlib
import json
import threading
import time
from contextvars import copy_context
from datetime import timedelta
from typing import Any

import httpx
import httpx2
import pytest
import requests
from aiohttp_sse_client2.client import EventSource
from helpers.backend import Backend
from helpers.client_readers import (
    CLIENTS,
    USUAL,
    Way,
    asynchronous,
    client,
    instrumented,
    synchronous,
)
from helpers.client_streams import (
    CHUNKED,
    FIRST,
    Server,
    Wire,
    serving,
    table,
)
from helpers.streams import STREAM
from helpers.waiting import until
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor


@client
async def test_the_readers_own_work_is_not_in_the_gap(
    name: str, server: Server, telemetry: Backend
) -> None:
    """Only the waiting counts: a reader that is busy between two messages does not slow them."""
    worked: list[float] = []

    def work(response: Any) -> None:
        for line in response.iter_lines():
            if not line:
                began = time.perf_counter()
                time.sleep(0.1)
                worked.append(time.perf_counter() - began)

    async def awork(lines: Any) -> None:
        async for line in lines:
            if not line.strip():
                began = time.perf_counter()
                await asyncio.sleep(0.1)
                worked.append(time.perf_counter() - began)

    ways: dict[str, Way] = {
        "aiohttp": lambda response: awork(response.content),
        "httpx-async": lambda response: awork(response.aiter_lines()),
        "httpx2-async": lambda response: awork(response.aiter_lines()),
    }
    began = time.perf_counter()
    await CLIENTS[name](ways.get(name, work), server.url + "/all")
    took = time.perf_counter() - began
    assert sum(worked) > 1
    ((_, point),) = telemetry.points("sse.client.message.gap")
    # Whatever else took its time: nothing is in both.
    assert point.sum + sum(worked) <= took


@client
async def test_waiting_is_in_the_gap(name: str, telemetry: Backend) -> None:
    """What the stream takes from one message to the next is told as such."""

    async def answer(wire: Wire) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        await asyncio.sleep(0.3)
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    async with serving(answer) as server:
        await CLIENTS[name](USUAL[name], server.url)
    ((_, point),) = telemetry.points("sse.client.message.gap")
    assert point.count == 1
    assert point.sum > 0.25


@asynchronous
async def test_the_readers_context_stays_its_own(
    name: str, server: Server, telemetry: Backend
) -> None:
    """Nothing is attached to it, before, within and after the stream."""
    seen = []

    def look() -> None:
        seen.append({variable: id(value) for variable, value in copy_context().items()})

    async def read(response: Any) -> None:
        look()
        pieces = response.content if name == "aiohttp" else response.aiter_lines()
        async for _ in pieces:
            look()

    look()
    await CLIENTS[name](read, server.url + "/all")
    look()
    assert len(seen) > 10
    assert all(each == seen[0] for each in seen)


@client
async def test_a_stream_that_goes_on_is_told_meanwhile(
    name: str, server: Server, backend: Backend
) -> None:
    """In segments, as long as it lasts."""
    with instrumented(backend, segment_seconds=0.2):
        task = asyncio.ensure_future(CLIENTS[name](_until_left(name), server.url + "/ticking"))
        await until(lambda: len(backend.spans("SSE")) >= 2)
        assert not task.done()
        assert backend.value("sse.client.active_connections") == 1
        await server.stop(cut=True)
        with pytest.raises(Exception):  # noqa: B017, PT011
            await task
    segments = backend.spans("SSE")
    assert [span.attributes["sse.segment.index"] for span in segments] == [*range(len(segments))]
    assert [span.attributes.get("sse.close.reason") for span in segments[:-1]] == [None] * (
        len(segments) - 1
    )
    assert segments[-1].attributes["sse.close.reason"] == "disconnected"
    total = sum(span.attributes["sse.segment.messages"] for span in segments)
    assert segments[-1].attributes["sse.messages"] == total
    await server.start()


def _until_left(name: str) -> Way:
    return USUAL[name] if name != "requests" else lambda response: [*response.iter_content(1)]


@client
async def test_a_silent_stream_is_told_meanwhile(
    name: str, server: Server, backend: Backend
) -> None:
    """Its stall and its segments, though its reader only waits, and be it a blocked thread."""
    with instrumented(backend, segment_seconds=0.2, stall_seconds=0.1):
        task = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url + "/endless"))
        await until(lambda: backend.metrics() and backend.events("sse.connection.stalled"))
        await until(lambda: backend.metrics() and len(backend.spans("SSE")) >= 2)
        assert backend.value("sse.client.stalled_connections") == 1
        assert len(backend.events("sse.connection.stalled")) == 1
        await server.stop(cut=True)
        with pytest.raises(Exception):  # noqa: B017, PT011
            await task
    await server.start()


@synchronous
async def test_a_busy_reader_is_no_silent_stream(
    name: str, server: Server, backend: Backend
) -> None:
    """A thread that has not asked for more is not told or counted as stalled, until it waits."""
    busy, work = threading.Event(), threading.Event()

    def read(response: Any) -> None:
        for _ in response.iter_lines(**({"chunk_size": 1} if name == "requests" else {})):
            busy.set()
            work.wait(20)

    await _busy_then_silent(name, read, busy, work, server, backend)


@asynchronous
async def test_a_busy_task_is_no_silent_stream(name: str, server: Server, backend: Backend) -> None:
    """Nor is a reader that has a loop, which may be read in any other thread."""
    busy, work = asyncio.Event(), asyncio.Event()

    async def read(response: Any) -> None:
        async for _ in response.content if name == "aiohttp" else response.aiter_lines():
            busy.set()
            await work.wait()

    await _busy_then_silent(name, read, busy, work, server, backend)


async def _busy_then_silent(
    name: str, read: Way, busy: Any, work: Any, server: Server, backend: Backend
) -> None:
    with instrumented(backend, segment_seconds=0.1, stall_seconds=0.1):
        task = asyncio.ensure_future(CLIENTS[name](read, server.url + "/endless"))
        await until(busy.is_set)
        for _ in range(10):
            await asyncio.sleep(0.03)
            assert backend.value("sse.client.stalled_connections") == 0
        assert backend.events("sse.connection.stalled") == backend.spans("SSE") == []
        work.set()
        await until(lambda: backend.metrics() and backend.events("sse.connection.stalled"))
        await server.stop(cut=True)
        with pytest.raises(Exception):  # noqa: B017, PT011
            await task
    await server.start()


class _Gate(SpanProcessor):
    """Holds up a span's end in any thread but the readers' own."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def on_end(self, span: ReadableSpan) -> None:
        if not threading.current_thread().name.startswith("asyncio"):
            self.reached.set()
            self.open.wait(20)


@synchronous
async def test_a_reader_waits_for_who_tells_its_silence(name: str, backend: Backend) -> None:
    """While another thread ends the segment of its silent stream, no message is told into it."""
    gate, go_on = _Gate(), asyncio.Event()
    backend.tracer_provider.add_span_processor(gate)

    async def answer(wire: Wire) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        await go_on.wait()
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    with instrumented(backend, segment_seconds=0.2):
        async with serving(answer) as server:
            read = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url))
            await until(lambda: backend.metrics() and gate.reached.is_set())
            go_on.set()
            await asyncio.sleep(0.2)
            assert backend.value("sse.client.messages") == 1
            gate.open.set()
            await read
    messages = [span.attributes["sse.segment.messages"] for span in backend.spans("SSE")]
    assert len(messages) > 1
    assert sum(messages) == 2


@synchronous
async def test_threads_share_a_client(name: str, server: Server, telemetry: Backend) -> None:
    """Each of many threads reads streams at the same time, while they are collected: every message
    counts once.
    """
    threads, each = 8, 6
    session = {"httpx": httpx.Client, "httpx2": httpx2.Client, "requests": requests.Session}[name]()

    def read() -> None:
        for _ in range(each):
            if name == "requests":
                assert session.get(server.url + "/all").content == STREAM
            else:
                assert session.get(server.url + "/all", timeout=60).content == STREAM

    with session, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        reads = [asyncio.wrap_future(pool.submit(read)) for _ in range(threads)]
        while not all(future.done() for future in reads):
            telemetry.metrics()
            await asyncio.sleep(0.01)
        await asyncio.gather(*reads)
    base = ("GET", "127.0.0.1", server.port)
    count = threads * each
    assert table(telemetry, "connections", "sse.resumed") == {
        (*base, False): count,
        (*base, True): 0,
    }
    assert table(telemetry, "io") == {base: count * len(STREAM)}
    assert table(telemetry, "messages", "sse.event.type")[(*base, "tick")] == count * 2
    assert table(telemetry, "connection.duration", "sse.close.reason") == {
        (*base, "completed"): count
    }
    assert table(telemetry, "active_connections") == {base: 0}
    assert len(telemetry.spans("SSE")) == count


async def test_a_stream_that_is_resumed(telemetry: Backend) -> None:
    """aiohttp-sse-client2 connects again after an end, with the id of the last message."""

    async def answer(wire: Wire) -> None:
        last = int(wire.request.headers.get("last-event-id", 0))
        if last == 3:
            await wire.head("Content-Length: 0", status="204 No Content")
            return
        await wire.head(CHUNKED)
        await wire.chunk(b"id: %d\ndata: x\n\n" % (last + 1))
        await wire.chunk(b"")

    async with serving(answer) as server:
        with contextlib.suppress(ConnectionError):
            async with EventSource(
                server.url, reconnection_time=timedelta(milliseconds=5)
            ) as source:
                assert [event.last_event_id async for event in source] == ["1", "2", "3"]
        assert len(server.requests) == 4
        base = ("GET", "127.0.0.1", server.port)
    assert table(telemetry, "connections", "sse.resumed") == {(*base, False): 1, (*base, True): 2}
    assert table(telemetry, "reconnections") == {base: 2}
    assert table(telemetry, "messages") == {base: 3}
    spans = telemetry.spans("SSE")
    assert [span.attributes["sse.resumed"] for span in spans] == [False, True, True]
    assert {span.attributes["sse.close.reason"] for span in spans} == {"completed"}
    # Nothing of a message's id.
    assert "last_event_id" not in json.dumps([span.to_json() for span in spans])
