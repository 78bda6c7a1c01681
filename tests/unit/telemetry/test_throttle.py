"""Bursts are throttled: the SDK's queues drop nothing."""

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import pytest
from helpers.asgi import Fed, Stream
from helpers.backend import Backend
from helpers.exporters import SlowSpanExporter
from helpers.processes import PATIENCE
from helpers.waiting import until
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    LogRecordExporter,
    LogRecordExportResult,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_sse import SSEMiddleware
from otel_sse.telemetry import throttle as throttle_module
from otel_sse.telemetry.throttle import BURST_LIMIT, EmitThrottle


class _Logs(LogRecordExporter):
    def __init__(self) -> None:
        self.names: Counter[str] = Counter()

    def export(self, batch: Any) -> LogRecordExportResult:
        time.sleep(0.05)
        self.names.update(each.log_record.event_name for each in batch)
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


@pytest.mark.slow
async def test_ten_thousand_closes_in_one_moment_are_all_reported(backend: Backend) -> None:
    """A load balancer goes away: through queues of 2,048 and slow exporters come every span,
    every ``opened`` and every ``closed`` event, with the time of its close.
    """
    spans, logs = SlowSpanExporter(0.05), _Logs()
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(BatchSpanProcessor(spans))
    logger_provider = LoggerProvider(shutdown_on_exit=False)
    logger_provider.add_log_record_processor(BatchLogRecordProcessor(logs))
    mw = SSEMiddleware(
        Fed(),
        tracer_provider=tracer_provider,
        logger_provider=logger_provider,
        meter_provider=backend.meter_provider,
    )
    streams = [Stream(mw) for _ in range(10_000)]
    await until(lambda: all(stream.sent for stream in streams), 60)
    for stream in streams:
        stream.task.cancel()
    await asyncio.gather(*(stream.task for stream in streams), return_exceptions=True)
    await until(lambda: len(spans.attributes) + logs.names.total() >= 25_000, 60)
    tracer_provider.force_flush()
    logger_provider.force_flush()
    await until(lambda: len(spans.attributes) == 10_000 and logs.names.total() == 20_000, 60)
    assert logs.names == {"sse.connection.opened": 10_000, "sse.connection.closed": 10_000}
    tracer_provider.shutdown()
    logger_provider.shutdown()  # type: ignore[no-untyped-call]


def test_a_burst_keeps_its_order_and_is_flushed_in_between() -> None:
    """At most a queue's worth is emitted between two flushes, in the order of submission."""
    emitted: list[int] = []
    sizes: list[int] = []

    def flush() -> None:
        sizes.append(len(emitted) - sum(sizes))
        throttle.reset_window()

    throttle = EmitThrottle(flush)
    for number in range(10_000):
        throttle.submit(lambda number=number: emitted.append(number))  # type: ignore[misc]
    throttle.drain()
    assert emitted == list(range(10_000))
    assert max(sizes) <= 2048


def test_a_batch_that_is_being_emitted_is_waited_for() -> None:
    """At the end of a process the thread may have taken all that waited: a drain returns when that
    is emitted, too, and what comes meanwhile comes after it.
    """
    taken, released, drained = threading.Event(), threading.Event(), threading.Event()
    emitted: list[int] = []

    def emit_slowly() -> None:
        taken.set()
        assert released.wait(PATIENCE)
        emitted.append(0)

    throttle = EmitThrottle(lambda: None)
    for _ in range(BURST_LIMIT):
        throttle.submit(lambda: None)
    throttle.submit(emit_slowly)
    assert taken.wait(PATIENCE)
    # A window later.
    throttle.reset_window()
    throttle.submit(lambda: emitted.append(1))
    assert emitted == []

    def drain() -> None:
        throttle.drain()
        drained.set()

    drainer = threading.Thread(target=drain)
    drainer.start()
    assert not drained.wait(0.2)
    released.set()
    drainer.join(PATIENCE)
    assert emitted == [0, 1]


def test_an_exporter_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a flush that took too long the rest is emitted without another."""
    monkeypatch.setattr(throttle_module, "FLUSH_TIMEOUT", 0.05)
    flushes: list[int] = []

    def flush() -> None:
        flushes.append(1)
        time.sleep(0.1)

    emitted: list[int] = []
    throttle = EmitThrottle(flush)
    for _ in range(5000):
        throttle.submit(lambda: emitted.append(1))
    throttle.drain()
    assert len(emitted) == 5000
    assert len(flushes) <= 2


def test_submissions_of_many_threads_are_emitted_once_each() -> None:
    """A thread that is just about to end drops none, and none is emitted twice."""
    emitted: list[int] = []
    throttle = EmitThrottle(lambda: None)

    def put(first: int) -> None:
        for number in range(first, first + 5000):
            throttle.submit(lambda number=number: emitted.append(number))  # type: ignore[misc]

    threads = [threading.Thread(target=put, args=(first,)) for first in range(0, 20_000, 5000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 20
    while len(emitted) < 20_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(emitted) == list(range(20_000))
