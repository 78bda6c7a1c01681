"""Everything set up in code, without ``opentelemetry-instrument``: aiohttp.

    pip install 'otel-sse[otlp]' aiohttp
    python by_hand.py 8000

Read it by ``curl -N http://127.0.0.1:8000/ticks``, and stop it by Ctrl-C.

The providers are handed to ``instrument()``, with options that would else be environment variables:
here the event types that are told by name, because this server makes up others as it goes, which
are told as ``_OTHER``, and how soon a silent stream counts as stalled. The endpoint is
``OTEL_EXPORTER_OTLP_ENDPOINT``, ``http://localhost:4318`` by default. The last exports are those of
``shutdown()``; a stream that was live then is told as ended by ``server_shutdown``.
"""

import asyncio
import itertools
import sys

from aiohttp import web
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_sse.servers.aiohttp import SSEAiohttpServerInstrumentor


async def ticks(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in itertools.count():
        name = "tick" if number % 5 else f"round-{number // 5}"
        await response.write(f"event: {name}\ndata: {number}\n\n".encode())
        await asyncio.sleep(0.05)
    return response


def main(port: int) -> None:
    resource = Resource.create({"service.name": "by-hand"})
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=resource)
    loggers = LoggerProvider(resource=resource)
    loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))

    SSEAiohttpServerInstrumentor().instrument(
        tracer_provider=tracers,
        meter_provider=meters,
        logger_provider=loggers,
        event_types="tick",
        stall_seconds=30,
    )
    app = web.Application()
    app.add_routes([web.get("/ticks", ticks)])
    try:
        web.run_app(app, host="127.0.0.1", port=port, shutdown_timeout=1)
    finally:
        for provider in (tracers, meters, loggers):
            provider.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
