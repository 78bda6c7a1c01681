"""What a collection finds due is run by the loops, in batches, and nothing is dropped."""

import asyncio
import threading
import time
from functools import partial
from typing import Any

import pytest
from helpers.asgi import Fed, Stream
from helpers.backend import Backend
from helpers.exporters import SlowSpanExporter
from helpers.waiting import until
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_sse import SSEMiddleware
from otel_sse.process.event_loops import BATCH_SIZE, batched, schedule


class _Threads(SpanProcessor):
    """Notes the threads in which spans end."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_end(self, span: Any) -> None:
        self.names.add(threading.current_thread().name)


@pytest.mark.slow
async def test_ten_thousand_segments_due_at_once_are_all_reported(backend: Backend) -> None:
    """One collection finds 10,000 old segments of idle streams; their loop rotates them in
    batches that the SDK's queue of 2,048 can take, none is dropped,
    and the collection itself ends nothing.
    """
    exporter, threads = SlowSpanExporter(0.02), _Threads()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    provider.add_span_processor(threads)
    fed = Fed()
    mw = SSEMiddleware(
        fed,
        **{**backend.providers, "tracer_provider": provider},
        segment_seconds=1,
        lifecycle_events="none",
    )
    streams = [Stream(mw) for _ in range(10_000)]
    await until(lambda: all(stream.sent for stream in streams))
    await asyncio.sleep(1.2)
    collecting = asyncio.get_running_loop().run_in_executor(None, backend.metrics)
    await collecting

    def ended() -> int:
        return sum(each["sse.segment.index"] == 0 for each in [*exporter.attributes])

    await until(lambda: ended() == 10_000)
    assert threads.names == {threading.current_thread().name, "otel-sse-throttle"}
    for stream in streams:
        stream.task.cancel()
    await asyncio.gather(*(stream.task for stream in streams), return_exceptions=True)
    provider.shutdown()


def test_batches_are_complete_and_bounded() -> None:
    """Every item is in exactly one batch."""
    found = list(batched(range(1000), 64))
    assert [item for batch in found for item in batch] == list(range(1000))
    assert max(len(batch) for batch in found) == 64


async def test_a_loop_does_other_work_between_batches() -> None:
    """Callbacks run in order, and never more than a batch holds the loop."""
    order: list[int] = []
    worst = 0

    async def watch() -> None:
        nonlocal worst
        seen = 0
        while len(order) < 1000:
            await asyncio.sleep(0)
            worst, seen = max(worst, len(order) - seen), len(order)

    schedule((asyncio.get_running_loop(), partial(order.append, number)) for number in range(1000))
    assert order == []
    await asyncio.wait_for(watch(), 30)
    assert order == list(range(1000))
    assert worst == BATCH_SIZE


def test_a_loop_that_does_not_run_is_given_nothing_until_it_does(backend: Backend) -> None:
    """It would gather what each collection finds due while it stands still. When it runs again,
    the stall and the segment are reported.
    """
    loop = asyncio.new_event_loop()
    fed = Fed()
    mw = SSEMiddleware(fed, **backend.providers, segment_seconds=0.05, stall_seconds=0.05)

    async def begin() -> Stream:
        stream = Stream(mw)
        await fed.idle.wait()
        return stream

    stream = loop.run_until_complete(begin())
    time.sleep(0.1)
    waiting = len(loop._ready)  # type: ignore[attr-defined]
    for _ in range(20):
        assert backend.value("sse.server.stalled_connections") == 1
    assert len(loop._ready) == waiting  # type: ignore[attr-defined]

    async def report() -> None:
        await until(lambda: backend.metrics() and backend.events("sse.connection.stalled"))
        await until(lambda: backend.metrics() and backend.spans("SSE"))
        fed.end()
        await stream.task

    loop.run_until_complete(report())
    loop.close()
    assert len(backend.events("sse.connection.stalled")) == 1


async def test_loops_that_are_gone_or_foreign_are_passed_over() -> None:
    """A closed loop, or none, costs nothing, and the others do what is theirs."""
    closed = asyncio.new_event_loop()
    closed.close()
    done = asyncio.Event()
    never: list[int] = []
    schedule(
        [
            (closed, partial(never.append, 1)),
            (None, partial(never.append, 2)),
            (asyncio.get_running_loop(), done.set),
        ]
    )
    await asyncio.wait_for(done.wait(), 30)
    assert not never
