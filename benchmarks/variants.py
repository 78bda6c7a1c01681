"""What is compared: the same application, plain, with ours, and with contrib's instrumentation.

The SDK's providers are as an application has them (batch processors, a periodic reader), but their
exporters discard, so that no network is measured.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any
from unittest.mock import patch

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
# Every message as a span event; none; and a tracer that samples nothing.
ALL = "all"
BARE = "bare"
UNSAMPLED = "unsampled"
# Only frames that pass everything on, where ours has its hooks.
FLOOR = "passing on"
# contrib's as it comes, and without its spans for ASGI sends and receives.
CONTRIB = "contrib"
CONTRIB_QUIET = "contrib, no send/receive spans"

Source = Callable[[], AsyncIterator[bytes]]


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


def set_up(variant: str) -> PeriodicExportingMetricReader | None:
    """Instruments Starlette in this process, but for PLAIN."""
    if variant == PLAIN:
        return None
    reader = provide(sampled=variant != UNSAMPLED)
    instrument("starlette", message_events="none" if variant == BARE else None)
    return reader


def instrument(framework: str, **options: Any) -> None:
    """Instruments ``framework``, with the default settings or others."""
    _instrumentor(framework).instrument(**options)


@contextmanager
def instrumented(framework: str, variant: str) -> Iterator[None]:
    """``framework`` instrumented for the length of a block, but for PLAIN and FLOOR."""
    if variant == PLAIN:
        yield
        return
    if variant == FLOOR:
        with ExitStack() as patches:
            for owner, name, wrap in _FLOORS[framework]():
                patches.enter_context(patch.object(owner, name, wrap(getattr(owner, name))))
            yield
        return
    instrument(framework)
    try:
        yield
    finally:
        _instrumentor(framework).uninstrument()


def _asgi_floor(module: str, owner: str, name: str) -> list[Any]:
    def wrap(original: Any) -> Any:
        async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
            async def passing_receive() -> Any:
                return await receive()

            async def passing_send(message: Any) -> None:
                await send(message)

            await original(self, scope, passing_receive, passing_send)

        return call

    return [(getattr(import_module(module), owner), name, wrap)]


def _wsgi_floor(module: str, owner: str, name: str) -> list[Any]:
    def wrap(original: Any) -> Any:
        def call(self: Any, environ: Any, start_response: Any) -> Any:
            def passing_start(*args: Any) -> Any:
                return start_response(*args)

            return original(self, environ, passing_start)

        return call

    return [(getattr(import_module(module), owner), name, wrap)]


def _passing(original: Any) -> Any:
    async def call(*args: Any) -> Any:
        return await original(*args)

    return call


def _aiohttp_floor() -> list[Any]:
    from aiohttp.web import StreamResponse
    from aiohttp.web_protocol import RequestHandler

    return [(RequestHandler, "_handle_request", _passing), (StreamResponse, "_start", _passing)]


def _tornado_floor() -> list[Any]:
    from tornado.web import RequestHandler

    def wrap(original: Any) -> Any:
        def flush(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs)

        return flush

    return [(RequestHandler, "_execute", _passing), (RequestHandler, "flush", wrap)]


_FLOORS: dict[str, Callable[[], list[Any]]] = {
    "starlette": partial(_asgi_floor, "starlette.routing", "Router", "__call__"),
    "litestar": partial(_asgi_floor, "litestar.routes", "HTTPRoute", "handle"),
    "flask": partial(_wsgi_floor, "flask", "Flask", "wsgi_app"),
    "django": partial(_wsgi_floor, "django.core.handlers.wsgi", "WSGIHandler", "__call__"),
    "aiohttp": _aiohttp_floor,
    "tornado": _tornado_floor,
}


def _instrumentor(framework: str) -> Any:
    # By its entry point, since another build may have it in another module.
    name = "sse_aiohttp_server" if framework == "aiohttp" else f"sse_{framework}"
    (found,) = entry_points(group="opentelemetry_instrumentor", name=name)
    return found.load()()


def check(
    reader: PeriodicExportingMetricReader | None,
    messages: int,
    name: str = "sse.server.messages",
) -> None:
    """Raises where ours has not counted that many messages: the measurement would be worthless.

    Raises:
        RuntimeError: it has not.

    """
    if reader is None:
        return
    reader.collect()
    counted = sum(
        point.value
        for resource in _NoMetrics.last.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    )
    if counted != messages:
        raise RuntimeError(f"{counted} messages counted of {messages}")


def starlette_app(variant: str, source: Source) -> Any:
    """``/stream`` sends what ``source`` yields, ``/json`` a small answer. What instruments one
    application is part of it; ours instruments the framework.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def stream(_: Any) -> StreamingResponse:
        return StreamingResponse(source(), media_type="text/event-stream")

    async def json(_: Any) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    app = Starlette(routes=[Route("/stream", stream), Route("/json", json)])
    if variant == ALL:
        from otel_sse import SSEMiddleware

        # A meter provider has one configuration.
        own = MeterProvider([PeriodicExportingMetricReader(_NoMetrics())])
        return SSEMiddleware(app, message_event_detail="all", meter_provider=own)
    if variant == CONTRIB:
        from opentelemetry.instrumentation.starlette import StarletteInstrumentor

        StarletteInstrumentor.instrument_app(app)
    elif variant == CONTRIB_QUIET:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        app.add_middleware(OpenTelemetryMiddleware, exclude_spans=["receive", "send"])
    return app


def aiohttp_app(source: Callable[[str], AsyncIterator[bytes]]) -> Any:
    """``/0`` and ``/1`` send what ``source`` yields for the number; ``/json`` a small answer."""
    from aiohttp import web

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for chunk in source(request.match_info["number"]):
            await response.write(chunk)
        return response

    async def json(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.router.add_get(r"/{number:\d}", stream)
    app.router.add_get("/json", json)
    return app
