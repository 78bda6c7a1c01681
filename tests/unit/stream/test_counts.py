"""The streams of one event loop count in the same totals, and each number stays exact."""

import asyncio
import gc
import sys
import threading
from collections.abc import Iterator
from contextvars import copy_context
from time import perf_counter

import pytest
from helpers.backend import Backend
from helpers.waiting import wait_until
from opentelemetry.context import Context

from otel_sse.config import load
from otel_sse.servers.asgi_observer import _getter
from otel_sse.stream import sharing
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import Request
from otel_sse.stream.server import ServerStream
from otel_sse.telemetry.providers import Providers
from otel_sse.telemetry.series import LoopTotals, Totals
from otel_sse.telemetry.telemetry import Telemetry

INFO = ServerStreamInfo(
    *("GET", "/x", "http", "/x", "127.0.0.1", None, "1.1", 200, False, [], _getter, None)
)
TICK = b"event: tick\ndata: x\n\n"
COUNT = 20_000


@pytest.fixture
def telemetry(backend: Backend) -> Iterator[Telemetry]:
    user = object()
    telemetry = sharing.acquire_telemetry(user, Providers(*backend.providers.values()), load({}))
    yield telemetry
    sharing.release_telemetry(user, telemetry)


def opened(telemetry: Telemetry) -> ServerStream:
    request = Request().state
    request.context = Context()
    stream = sharing.open_server_stream(telemetry, INFO, request)
    assert stream is not None
    return stream


def send(stream: ServerStream, count: int) -> None:
    for _ in range(count):
        at = perf_counter()
        stream.on_send(TICK, at, at)


async def serve(telemetry: Telemetry, count: int) -> Totals:
    """Serves two streams; one of them stays open until the other has closed."""
    first, second = opened(telemetry), opened(telemetry)
    send(first, count)
    first.close(completed=True)
    send(second, count)
    counts = second.counts
    assert counts is first.counts
    second.close(completed=True)
    return counts


def test_what_the_loops_of_many_threads_count_is_exact(
    backend: Backend, telemetry: Telemetry
) -> None:
    """No two threads write the same number, though each thread has several streams of a series."""
    threads = [
        threading.Thread(target=lambda: asyncio.run(serve(telemetry, COUNT))) for _ in range(4)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for each in threads:
            each.start()
        # While they count, a collection sees no more than they have sent, and never less again.
        before = 0.0
        while any(each.is_alive() for each in threads):
            now = backend.value("sse.server.messages") or 0
            assert before <= now <= 8 * COUNT
            before = now
    finally:
        sys.setswitchinterval(interval)
        for each in threads:
            each.join()
    assert backend.value("sse.server.messages", sse__event__type="tick") == 8 * COUNT
    assert backend.value("sse.server.io") == 8 * COUNT * len(TICK)


def test_loops_that_come_and_go_leave_one_totals(backend: Backend, telemetry: Telemetry) -> None:
    """A process that runs a loop for each task does not grow, and what those counted is kept."""
    for _ in range(20):
        asyncio.run(serve(telemetry, 10))
        gc.collect()
    rows, _ = telemetry.streams.rows(only_if_live=False)
    assert [len(each.running) for each in rows] == [1]
    assert backend.value("sse.server.messages") == 20 * 2 * 10


def test_two_loops_share_nothing(telemetry: Telemetry) -> None:
    """Also where one thread runs them by turns, since the next one may run in another."""
    loops = [asyncio.new_event_loop() for _ in range(2)]
    counts = [each.run_until_complete(serve(telemetry, 1)) for each in loops]
    again = loops[0].run_until_complete(serve(telemetry, 1))
    for each in loops:
        each.close()
    assert type(again) is LoopTotals
    assert again is counts[0] is not counts[1]


def test_without_a_loop_a_stream_counts_alone(telemetry: Telemetry) -> None:
    """Nothing says which thread serves the next one."""
    # Each in a context of its own, which ends with it.
    first, second = (copy_context().run(opened, telemetry) for _ in range(2))
    assert type(first.counts) is type(second.counts) is Totals
    assert first.counts is not second.counts
    for each in (first, second):
        each.close(completed=True)


def test_a_send_that_is_freed_counts_beside_the_loop(
    backend: Backend, telemetry: Telemetry
) -> None:
    """It is recorded in another thread, while the loop's own goes on counting."""

    async def run() -> ServerStream:
        stream, other = opened(telemetry), opened(telemetry)
        send(stream, 3)
        shared = stream.counts
        stream.on_send_error(TICK, perf_counter(), GeneratorExit())
        await asyncio.to_thread(wait_until, lambda: stream.sequence == 4)
        assert stream.counts is not shared is other.counts
        assert sum(shared.messages) == 3
        assert backend.value("sse.server.messages") == 4
        for each in (stream, other):
            each.close(completed=True)
        return stream

    asyncio.run(run())
    assert backend.value("sse.server.messages") == 4
