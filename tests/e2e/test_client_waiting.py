"""What clients wait for: gaps, stalls, segments, threads and resumed streams."""

import asyncio
import concurrent.futures
import contextlib
import json
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import Any

import curl_cffi
import httpx
import httpx2
import requests
import urllib3
from aiohttp_sse_client2.client import EventSource
from helpers.backend import Backend
from helpers.client_readers import (
    CLIENTS,
    SYNCHRONOUS,
    USUAL,
    Way,
    asynchronous,
    client,
    instrumented,
    lines_of,
    open_with_urllib,
    raises,
    synchronous,
)
from helpers.client_streams import (
    CHUNKED,
    FIRST,
    ServerSide,
    StreamServer,
    serving,
    table,
)
from helpers.streams import STREAM
from helpers.waiting import PATIENCE, until
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor


@client
async def test_the_readers_own_work_is_not_in_the_gap(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Only the waiting counts: a reader that is busy between two messages does not slow them."""
    worked: list[float] = []

    def work(response: Any) -> None:
        for line in lines_of(name, response):
            if not line.strip():
                began = time.perf_counter()
                time.sleep(0.1)
                worked.append(time.perf_counter() - began)

    async def awork(lines: Any) -> None:
        async for line in lines:
            if not line.strip():
                began = time.perf_counter()
                await asyncio.sleep(0.1)
                worked.append(time.perf_counter() - began)

    def way(response: Any) -> Any:
        if name in SYNCHRONOUS:
            return work(response)
        return awork(response.content if name == "aiohttp" else response.aiter_lines())

    began = time.perf_counter()
    await CLIENTS[name](way, server.url + "/all")
    took = time.perf_counter() - began
    assert sum(worked) > 1
    ((_, point),) = telemetry.points("sse.client.message.gap")
    # Whatever else took its time: nothing is in both.
    assert point.sum + sum(worked) <= took


@client
async def test_waiting_is_in_the_gap(name: str, backend: Backend) -> None:
    """The time that the reader waits from one message to the next is recorded, all of it."""
    waited = 0.3

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        # A stream is stalled once its reader has waited for so long, however late it began to.
        await until(lambda: backend.value("sse.client.stalled_connections") == 1)
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    with instrumented(backend, stall_seconds=waited):
        async with serving(answer) as server:
            await CLIENTS[name](USUAL[name], server.url)
    ((_, point),) = backend.points("sse.client.message.gap")
    assert point.count == 1
    assert point.sum >= waited


@asynchronous
async def test_the_readers_context_stays_its_own(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Nothing is attached to it, before, during and after the stream."""
    seen = []

    def record_context() -> None:
        seen.append({variable: id(value) for variable, value in copy_context().items()})

    async def read(response: Any) -> None:
        record_context()
        pieces = response.content if name == "aiohttp" else response.aiter_lines()
        async for _ in pieces:
            record_context()

    record_context()
    await CLIENTS[name](read, server.url + "/all")
    record_context()
    assert len(seen) > 10
    assert all(each == seen[0] for each in seen)


@client
async def test_a_stream_that_goes_on_is_reported_meanwhile(
    name: str, server: StreamServer, backend: Backend
) -> None:
    """In segments, as long as it lasts."""
    with instrumented(backend, segment_seconds=0.2):
        task = asyncio.ensure_future(CLIENTS[name](_read_all(name), server.url + "/ticking"))
        await until(lambda: len(backend.spans("SSE")) >= 2, running=task)
        assert not task.done()
        assert backend.value("sse.client.active_connections") == 1
        await server.stop(cut=True)
        with raises(name):
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


def _read_all(name: str) -> Way:
    return USUAL[name] if name != "requests" else lambda response: [*response.iter_content(1)]


@client
async def test_an_idle_stream_is_reported_meanwhile(
    name: str, server: StreamServer, backend: Backend
) -> None:
    """Its stall and its segments, though its reader only waits, and be it a blocked thread."""
    with instrumented(backend, segment_seconds=0.2, stall_seconds=0.1):
        task = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url + "/endless"))
        await until(
            lambda: backend.metrics() and backend.events("sse.connection.stalled"), running=task
        )
        await until(lambda: backend.metrics() and len(backend.spans("SSE")) >= 2, running=task)
        assert backend.value("sse.client.stalled_connections") == 1
        assert len(backend.events("sse.connection.stalled")) == 1
        await server.stop(cut=True)
        with raises(name):
            await task
    await server.start()


@synchronous
async def test_a_busy_reader_is_no_idle_stream(
    name: str, server: StreamServer, backend: Backend
) -> None:
    """A thread that has not asked for more is not reported as stalled, until it waits."""

    def reading(busy: threading.Event, work: threading.Event) -> Way:
        def read(response: Any) -> None:
            for _ in lines_of(name, response):
                busy.set()
                work.wait(PATIENCE)

        return read

    await _busy_then_idle(name, reading, threading.Event, server, backend)


@asynchronous
async def test_a_busy_task_is_no_idle_stream(
    name: str, server: StreamServer, backend: Backend
) -> None:
    """Nor is a reader that has a loop, which may be read in any other thread."""

    def reading(busy: asyncio.Event, work: asyncio.Event) -> Way:
        async def read(response: Any) -> None:
            async for _ in response.content if name == "aiohttp" else response.aiter_lines():
                busy.set()
                await work.wait()

        return read

    await _busy_then_idle(name, reading, asyncio.Event, server, backend)


async def _busy_then_idle(
    name: str,
    reading: Callable[[Any, Any], Way],
    event: Callable[[], Any],
    server: StreamServer,
    backend: Backend,
) -> None:
    """Reads a message, works for more than the limits, and waits; again with longer limits where
    the machine was so busy that the stream took nearly as long to begin.
    """
    limit = 0.1
    while not await _began_in_time(name, reading, event, server, backend, limit):
        limit, backend = 4 * limit, Backend()
        assert limit < PATIENCE / 4, "the machine is too busy"


async def _began_in_time(
    name: str,
    reading: Callable[[Any, Any], Way],
    event: Callable[[], Any],
    server: StreamServer,
    backend: Backend,
    limit: float,
) -> bool:
    busy, work = event(), event()
    with instrumented(backend, segment_seconds=limit, stall_seconds=limit):
        began = time.monotonic()
        way = reading(busy, work)
        task = asyncio.ensure_future(CLIENTS[name](way, server.url + "/endless", PATIENCE))
        await until(busy.is_set, running=task)
        if in_time := time.monotonic() - began < limit / 2:
            for _ in range(10):
                await asyncio.sleep(limit / 3)
                assert backend.value("sse.client.stalled_connections") == 0
            assert backend.events("sse.connection.stalled") == backend.spans("SSE") == []
        work.set()
        if in_time:
            await until(
                lambda: backend.metrics() and backend.events("sse.connection.stalled"),
                running=task,
            )
        await server.stop(cut=True)
        with raises(name):
            await task
    await server.start()
    return in_time


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
async def test_a_reader_waits_while_its_idle_stream_is_reported(
    name: str, backend: Backend
) -> None:
    """While another thread ends the segment of its silent stream, no message is recorded in it."""
    gate, go_on = _Gate(), asyncio.Event()
    backend.tracer_provider.add_span_processor(gate)

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        await go_on.wait()
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    with instrumented(backend, segment_seconds=0.2):
        async with serving(answer) as server:
            read = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url))
            await until(lambda: backend.metrics() and gate.reached.is_set(), running=read)
            # Usually 1; 0 where a busy machine was so slow that the segment ended before.
            before = backend.value("sse.client.messages")
            assert before <= 1
            go_on.set()
            await asyncio.sleep(0.2)
            assert backend.value("sse.client.messages") == before
            gate.open.set()
            await read
    messages = [span.attributes["sse.segment.messages"] for span in backend.spans("SSE")]
    assert len(messages) > 1
    assert sum(messages) == 2


@synchronous
async def test_threads_share_a_client(name: str, server: StreamServer, telemetry: Backend) -> None:
    """Each of many threads reads streams at the same time, while they are collected: every message
    counts once.
    """
    threads, each = 8, 6
    sessions = {
        "httpx": partial(httpx.Client, timeout=60),
        "httpx2": partial(httpx2.Client, timeout=60),
        "curl_cffi": curl_cffi.Session,
        "requests": requests.Session,
        "urllib3": urllib3.PoolManager,
        "urllib": contextlib.nullcontext,
    }
    session = sessions[name]()

    def read() -> None:
        for _ in range(each):
            if name == "urllib":
                assert open_with_urllib(server.url + "/all").read() == STREAM
            elif name == "curl_cffi":
                with session.stream("GET", server.url + "/all") as response:
                    assert b"".join(response.iter_content()) == STREAM
            elif name == "urllib3":
                assert session.request("GET", server.url + "/all").data == STREAM
            else:
                assert session.get(server.url + "/all").content == STREAM

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

    async def answer(wire: ServerSide) -> None:
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
