"""The streams of one event loop count in the same totals, and each number stays exact."""

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from time import perf_counter
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.server_streams import TICK, obtain, opened
from helpers.waiting import wait_until

from otel_sse.process import gc_safety
from otel_sse.stream import sharing
from otel_sse.stream.server import ServerStream
from otel_sse.telemetry.series import Counts
from otel_sse.telemetry.telemetry import Telemetry

COUNT = 20_000
HAS_GIL = "free-threading" not in sys.version


@pytest.fixture
def telemetry(backend: Backend) -> Iterator[Telemetry]:
    user = object()
    telemetry = obtain(backend, user)
    yield telemetry
    sharing.release_telemetry(user, telemetry)


def send(stream: ServerStream, count: int) -> None:
    for _ in range(count):
        at = perf_counter()
        stream.on_send(TICK, at, at)


async def serve(telemetry: Telemetry, count: int) -> Counts:
    """Serves two streams; one of them stays open until the other has closed."""
    first, second = opened(telemetry), opened(telemetry)
    send(first, count)
    first.close(completed=True)
    send(second, count)
    counts = second.counts
    # Without a GIL a finalizer may count between any two byte codes: there each counts alone.
    assert (counts is first.counts) == HAS_GIL
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


def test_loops_that_come_and_go_leave_their_counts_to_the_next(
    backend: Backend, telemetry: Telemetry
) -> None:
    """A process that runs a loop for each task does not grow, and what those counted is kept."""
    for _ in range(20):
        asyncio.run(serve(telemetry, 10))
        gc.collect()
    rows, _ = telemetry.streams.rows()
    assert [len(each.by_loop) for each in rows] == [int(HAS_GIL)]
    assert backend.value("sse.server.messages") == 20 * 2 * 10


def test_two_loops_share_nothing(telemetry: Telemetry) -> None:
    """Also where one thread runs them by turns, since the next one may run in another."""
    loops = [asyncio.new_event_loop() for _ in range(2)]
    counts = [each.run_until_complete(serve(telemetry, 1)) for each in loops]
    again = loops[0].run_until_complete(serve(telemetry, 1))
    for each in loops:
        each.close()
    assert counts[0] is not counts[1]
    assert (again is counts[0]) == HAS_GIL


def test_without_a_loop_a_stream_counts_alone(telemetry: Telemetry) -> None:
    """Nothing says which thread serves the next one."""
    # Each in a context of its own, which ends with it.
    first, second = (copy_context().run(opened, telemetry) for _ in range(2))
    assert type(first.counts) is type(second.counts) is Counts
    assert first.counts is not second.counts
    for each in (first, second):
        each.close(completed=True)


def test_threads_that_count_in_the_same_place_lose_nothing() -> None:
    """A finalizer may run in any thread. Without a GIL no two streams count in one place."""
    if not HAS_GIL:
        pytest.skip("without a GIL counts are not shared")
    counts = Counts()

    def count() -> None:
        for _ in range(COUNT):
            counts.count_message(1)
            counts.wait_time += 1

    threads = [threading.Thread(target=count) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for each in threads:
            each.start()
    finally:
        for each in threads:
            each.join()
        sys.setswitchinterval(interval)
    assert counts.messages == [0, 8 * COUNT]
    assert counts.wait_time == 8 * COUNT


class Reentered(list[int]):
    """A list of counts that grows while another type is counted, as by a finalizer."""

    def __init__(self, counts: Counts) -> None:
        self.counts: Counts | None = counts

    def extend(self, items: Iterable[int]) -> None:
        counts, self.counts = self.counts, None
        if counts is not None:
            counts.count_message(3)
        super().extend(items)


def test_a_count_within_a_count_is_not_lost() -> None:
    """A collection may run where the list of the types grows, and a clean-up count another type."""
    counts = Counts()
    counts.messages = entered = Reentered(counts)
    counts.count_message(5)
    assert entered.counts is None
    assert counts.messages[3] == counts.messages[5] == 1
    assert sum(counts.messages) == 2


class Sends:
    """Garbage that runs ``work`` when a collection frees it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.cycle = self
        self.work = work

    def __del__(self) -> None:
        self.work()


@pytest.mark.parametrize("detail", ["edges", "all"])
@pytest.mark.parametrize("where", ["the loop's thread", "another"])
@pytest.mark.parametrize("count", [1, 50, 400])
def test_what_a_collection_sends_is_counted_at_once(
    where: str, detail: str, count: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean-up that sends may run in the middle of whatever a thread was doing, with a lock of
    the SDK held. What it sends is counted, though the stream ends at once; the SDK is not called.
    """
    user = object()
    telemetry = obtain(backend, user, message_event_detail=detail)
    called: list[bool] = []
    for owner, name in (
        (telemetry, "record"),
        (telemetry, "record_message"),
        (telemetry.spans, "start"),
        (telemetry.spans, "end"),
    ):
        monkeypatch.setattr(owner, name, _noting(getattr(owner, name), called))

    async def run() -> None:
        stream = opened(telemetry)
        send(stream, count)
        Sends(lambda: send(stream, count))
        if where == "another":
            await asyncio.to_thread(gc.collect)
        else:
            gc.collect()
        stream.close(completed=True)
        assert stream.sequence == 2 * count

    asyncio.run(run())
    wait_until(lambda: sum(_messages(backend)) == 2 * count)
    assert backend.value("sse.server.messages", sse__event__type="tick") == 2 * count
    assert backend.value("sse.server.io") == 2 * count * len(TICK)
    assert called
    assert not any(called)
    sharing.release_telemetry(user, telemetry)


def _noting(function: Callable[..., Any], called: list[bool]) -> Callable[..., Any]:
    def noting(*args: Any, **kwargs: Any) -> Any:
        called.append(gc_safety.in_finalizer())
        return function(*args, **kwargs)

    return noting


def _messages(backend: Backend) -> list[int]:
    """Of each segment."""
    return [(span.attributes or {})["sse.segment.messages"] for span in backend.spans("SSE")]


def test_a_generator_that_is_closed_on_purpose_sends_like_any_other(backend: Backend) -> None:
    """Its clean-up is no finalizer: under ``all`` each message is an event of its segment."""
    user = object()
    telemetry = obtain(backend, user, message_event_detail="all")

    def generator(stream: ServerStream) -> Iterator[None]:
        try:
            yield
        finally:
            send(stream, 100)

    async def run() -> None:
        stream = opened(telemetry)
        send(stream, 100)
        source = generator(stream)
        next(source)
        source.close()  # type: ignore[attr-defined]
        send(stream, 100)
        stream.close(completed=True)

    asyncio.run(run())
    wait_until(lambda: sum(_messages(backend)) == 300)
    assert [len(span.events) for span in backend.spans("SSE")] == _messages(backend)
    sharing.release_telemetry(user, telemetry)
