"""Many streams, one after the other, and what remains of them. ``benchmarks/million.py`` serves a
million of them.

Each request has a path, an address and a Last-Event-ID of its own, and its stream ends in one of
five ways.
"""

import asyncio
import gc
import sys
import threading
from time import monotonic, sleep
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

import otel_sse
from helpers.asgi import START, AppError, http_scope
from otel_sse.servers.asgi_observer import RequestObserver
from otel_sse.stream.request import Request
from otel_sse.stream.request_span import RequestSpan
from otel_sse.stream.server import ServerStream
from otel_sse.telemetry.segment import Segment
from otel_sse.wire.parser import EventStreamParser

# How many blocks of the interpreter's allocator may remain; an object takes one or more. A leak of
# one object per stream is far above it.
SLACK = 2_000
# Seconds in which the throttle has to emit everything.
PATIENCE = 60

OURS = (ServerStream, Segment, EventStreamParser, RequestObserver, Request, RequestSpan)
MESSAGE = {"type": "http.response.body", "body": b"event: tick\ndata: x\n\n", "more_body": True}
END = {"type": "http.response.body", "body": b"", "more_body": False}
REASONS = ("completed", "client_disconnect", "unknown", "error", "unknown")


def ours() -> int:
    """How many of the package's objects are alive."""
    gc.collect()
    return sum(type(each) in OURS for each in gc.get_objects())


class Counter(SpanProcessor, LogRecordProcessor):
    """Counts spans and log events, and keeps none of them."""

    def __init__(self) -> None:
        self.spans = self.events = 0
        self._lock = threading.Lock()

    def on_end(self, span: Any) -> None:
        with self._lock:
            self.spans += 1

    def on_emit(self, log_record: Any) -> None:
        with self._lock:
            self.events += 1

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


class Churn:
    """Streams without a server; the number of a stream decides how it ends."""

    def __init__(self) -> None:
        self.exported = Counter()
        # Earlier tests may have left streams and objects behind.
        self._before = len(otel_sse.connections()), ours()
        self.reader = InMemoryMetricReader()
        tracer = TracerProvider(shutdown_on_exit=False)
        tracer.add_span_processor(self.exported)
        logger = LoggerProvider(shutdown_on_exit=False)
        logger.add_log_record_processor(self.exported)
        self._middleware = otel_sse.SSEMiddleware(
            self._app,
            tracer_provider=tracer,
            meter_provider=MeterProvider([self.reader], shutdown_on_exit=False),
            logger_provider=logger,
        )

    def serve(self, numbers: range) -> None:
        """Serves the streams of these numbers, the first of which comes next, and waits until all
        of them are reported.
        """
        asyncio.run(self._serve(numbers))
        deadline = monotonic() + PATIENCE
        while self.exported.spans < numbers.stop or self.exported.events < 2 * numbers.stop:
            if monotonic() > deadline:
                return
            sleep(0.01)

    async def _serve(self, numbers: range) -> None:
        for number in numbers:
            scope = http_scope(
                path=f"/{number}",
                client=(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1),
                headers=[(b"host", b"localhost"), (b"last-event-id", b"%d" % number)],
                number=number,
            )
            try:
                await self._middleware(scope, self._receive, self._send)
            except (AppError, asyncio.CancelledError):
                pass

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(MESSAGE)
        reason = scope["number"] % len(REASONS)
        if reason == 0:
            await send(END)
        elif reason == 1:
            await receive()
            await send(MESSAGE)
        elif reason == 3:
            raise AppError
        elif reason == 4:
            raise asyncio.CancelledError

    async def _receive(self) -> Any:
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        pass

    def sums(self, name: str, *by: str) -> dict[Any, Any]:
        """The points of a metric, or their counts, by the attributes that are named."""
        data: Any = self.reader.get_metrics_data()
        return {
            tuple(point.attributes.get(each) for each in by): getattr(point, "count", None)
            if hasattr(point, "count")
            else point.value
            for metric in data.resource_metrics[0].scope_metrics[0].metrics
            if metric.name == name
            for point in metric.data.data_points
        }

    def differences(self, streams: int) -> list[str]:
        """What differs from the expectation after N streams, a multiple of the ways to end."""
        each = streams // len(REASONS)
        reasons = {reason: each * REASONS.count(reason) for reason in REASONS}
        found = {
            "live": max(0, len(otel_sse.connections()) - self._before[0]),
            "objects": max(0, ours() - self._before[1]),
            "spans": self.exported.spans,
            "events": self.exported.events,
            "active": self.sums("sse.server.active_connections"),
            "connections": self.sums("sse.server.connections", "sse.resumed"),
            "messages": self.sums("sse.server.messages", "sse.event.type"),
            "durations": self.sums("sse.server.connection.duration", "sse.close.reason"),
        }
        wanted = {
            "live": 0,
            "objects": 0,
            "spans": streams,
            "events": 2 * streams,
            "active": {(): 0},
            "connections": {(False,): 0, (True,): streams},
            "messages": {("tick",): streams},
            "durations": {(reason,): count for reason, count in reasons.items()},
        }
        return [
            f"{name}: {found[name]}, not {wanted[name]}"
            for name in wanted
            if found[name] != wanted[name]
        ]


def blocks() -> int:
    """Blocks that the interpreter's allocator has given out, without garbage."""
    gc.collect()
    return sys.getallocatedblocks()
