"""A server whose telemetry is not there, or not yet; arguments: how, and the port.

``plain`` is without us; ``api`` has the OpenTelemetry API alone, as ``later`` has until a client
asks for ``/provide``.
"""

import sys
from collections.abc import Iterator

import uvicorn
from opentelemetry import _logs, metrics, trace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route


def _messages() -> Iterator[str]:
    for number in range(20):
        yield f"event: tick\ndata: {number}\n\n"


def _events(_: Request) -> StreamingResponse:
    return StreamingResponse(_messages(), media_type="text/event-stream")


def _provide(_: Request) -> PlainTextResponse:
    """Sets the three global providers, which export to the endpoint in the environment."""
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    tracers, loggers = TracerProvider(), LoggerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
    trace.set_tracer_provider(tracers)
    _logs.set_logger_provider(loggers)
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
    return PlainTextResponse("provided")


app = Starlette(routes=[Route("/events", _events), Route("/provide", _provide)])

if __name__ == "__main__":
    how, port = sys.argv[1:]
    if how != "plain":
        from otel_sse.frameworks import SSEStarletteInstrumentor

        SSEStarletteInstrumentor().instrument()
    uvicorn.run(app, port=int(port), log_level="warning")
