"""What is compared: the same application, plain, with ours, and with contrib's instrumentation.

A variant is set up once in a process of its own, with SDK providers as an application has them
(batch processors, a periodic reader) whose exporters discard, so that no network is measured.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    LogRecordExporter,
    LogRecordExportResult,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

# Messages of 200 bytes: an event type, an id, one line of data.
MESSAGES = tuple(
    b"event: update\nid: %d\ndata: " % number + b"x" * 166 + b"\n\n"
    for number in range(1_000_000, 1_000_256)
)

# PLAIN has neither an instrumentation nor a provider.
PLAIN = "plain"
OURS = "ours"
# Every message as a span event; and a tracer that samples nothing.
ALL = "all"
UNSAMPLED = "unsampled"
# contrib's as it comes, and without its spans for ASGI sends and receives.
CONTRIB = "contrib"
CONTRIB_QUIET = "contrib, no send/receive spans"


class _NoSpans(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class _NoLogs(LogRecordExporter):
    def export(self, batch: Any) -> LogRecordExportResult:
        return LogRecordExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 10_000) -> bool:
        return True

    def shutdown(self) -> None:
        pass


class _NoMetrics(MetricExporter):
    last: Any = None

    def export(self, metrics_data: Any, *args: Any, **kwargs: Any) -> MetricExportResult:
        _NoMetrics.last = metrics_data
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        pass


def provide(*, sampled: bool = True) -> PeriodicExportingMetricReader:
    """Sets the global providers; returns the reader, to collect by hand."""
    tracers = TracerProvider(sampler=ALWAYS_ON if sampled else ALWAYS_OFF)
    tracers.add_span_processor(BatchSpanProcessor(_NoSpans()))
    loggers = LoggerProvider()
    loggers.add_log_record_processor(BatchLogRecordProcessor(_NoLogs()))
    reader = PeriodicExportingMetricReader(_NoMetrics())
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([reader]))
    _logs.set_logger_provider(loggers)
    return reader


def set_up(variant: str, framework: str) -> PeriodicExportingMetricReader | None:
    """Instruments ``framework`` (starlette, aiohttp) in this process, before it has an app."""
    if variant == PLAIN:
        return None
    reader = provide(sampled=variant != UNSAMPLED)
    if variant == CONTRIB:
        _contrib(framework)
    elif variant != CONTRIB_QUIET:
        _ours(framework, "all" if variant == ALL else "edges")
    return reader


def check(
    reader: PeriodicExportingMetricReader | None,
    variant: str,
    messages: int,
    name: str = "sse.server.messages",
) -> None:
    """Raises where ours has not told that many messages: then nothing worth knowing was measured.

    Raises:
        RuntimeError: it has not.

    """
    if reader is None or variant not in (OURS, ALL, UNSAMPLED):
        return
    reader.collect()
    told = sum(
        point.value
        for resource in _NoMetrics.last.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    )
    if told != messages:
        raise RuntimeError(f"{variant}: {told} messages told of {messages}")


def _ours(framework: str, detail: str) -> None:
    if framework == "starlette":
        from otel_sse.starlette import SSEStarletteInstrumentor

        SSEStarletteInstrumentor().instrument(message_event_detail=detail)
    else:
        from otel_sse.aiohttp_server import SSEAiohttpServerInstrumentor

        SSEAiohttpServerInstrumentor().instrument(message_event_detail=detail)


def _contrib(framework: str) -> None:
    if framework == "starlette":
        from opentelemetry.instrumentation.starlette import StarletteInstrumentor

        StarletteInstrumentor().instrument()
    else:
        from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor

        AioHttpServerInstrumentor().instrument()


def starlette_app(variant: str, source: Callable[[], AsyncIterator[bytes]]) -> Any:
    """``/stream`` sends what ``source`` yields, ``/json`` a small answer."""
    from starlette import applications
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def stream(_: Any) -> StreamingResponse:
        return StreamingResponse(source(), media_type="text/event-stream")

    async def json(_: Any) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    app = applications.Starlette(routes=[Route("/stream", stream), Route("/json", json)])
    if variant == CONTRIB_QUIET:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        app.add_middleware(OpenTelemetryMiddleware, exclude_spans=["receive", "send"])
    return app


def aiohttp_app(source: Callable[[], AsyncIterator[bytes]], served: Callable[[], None]) -> Any:
    """``/stream`` sends what ``source`` yields; ``/json`` a small answer, and calls ``served``."""
    from aiohttp import web

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for chunk in source():
            await response.write(chunk)
        return response

    async def json(_: web.Request) -> web.Response:
        served()
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.router.add_get("/stream", stream)
    app.router.add_get("/json", json)
    return app
