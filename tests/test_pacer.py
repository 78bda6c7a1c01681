"""What collections find due is told by the loops, in portions, and nothing is dropped."""

import asyncio
import threading
import time
from typing import Any

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from support import Backend, Fed, Stream, until

from otel_sse import SSEMiddleware
from otel_sse.pacer import PORTION, Pacer, portions


class _Slow(SpanExporter):
    """Counts what it exports, and takes its time."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.indexes: list[int] = []
        self._seconds = seconds

    def export(self, spans: Any) -> SpanExportResult:
        time.sleep(self._seconds)
        self.indexes += [span.attributes["sse.segment.index"] for span in spans]
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


class _Threads(SpanProcessor):
    """Notes the threads in which spans end."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_end(self, span: Any) -> None:
        self.names.add(threading.current_thread().name)


async def test_ten_thousand_segments_due_at_once_are_all_told(backend: Backend) -> None:
    """One collection finds 10,000 old segments of silent streams; their loop ends them in
    portions that the SDK's batch queue of 2,048 can take, none is dropped, and the collection
    itself ends nothing.
    """
    exporter, threads = _Slow(), _Threads()
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
    await until(lambda: exporter.indexes.count(0) == 10_000, 60)
    assert threads.names == {threading.current_thread().name}
    for stream in streams:
        stream.task.cancel()
    await asyncio.gather(*(stream.task for stream in streams), return_exceptions=True)
    provider.shutdown()


def test_portions_are_whole_and_bounded() -> None:
    """Every item is in exactly one portion."""
    found = list(portions(range(1000)))
    assert [item for portion in found for item in portion] == list(range(1000))
    assert max(len(portion) for portion in found) <= PORTION


async def test_a_flush_follows_every_portion_before_the_next_begins() -> None:
    """The queue is empty again before more is put into it."""
    order: list[str] = []
    pacer = Pacer(lambda: order.append("flush"))
    loop = asyncio.get_running_loop()
    jobs: list[Any] = [(loop, lambda: order.append("job"))] * (PORTION + 3)
    assert pacer.hand(jobs)
    await until(lambda: order.count("flush") == 2)
    assert order == ["job"] * PORTION + ["flush"] + ["job"] * 3 + ["flush"]


async def test_a_busy_pacer_takes_no_more(backend: Backend) -> None:
    """What is handed while a portion is under way stays with the caller, and is due again."""
    hold = threading.Event()
    pacer = Pacer(hold.wait)  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    assert pacer.hand([(loop, done.set)])
    await done.wait()
    assert not pacer.hand([(loop, done.set)])
    hold.set()
    await until(lambda: pacer.hand([(loop, done.set)]))


async def test_loops_that_are_gone_or_foreign_are_passed_over() -> None:
    """A closed loop, or none, costs nothing: the end tells what is left."""
    closed = asyncio.new_event_loop()
    closed.close()
    flushed: list[int] = []
    pacer = Pacer(lambda: flushed.append(1))
    assert pacer.hand([(closed, lambda: None), (None, lambda: None)])
    await until(lambda: len(flushed) == 2)
