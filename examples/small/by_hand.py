"""Everything set up in code, without ``opentelemetry-instrument``: aiohttp.

    pip install '../..[otlp]' aiohttp
    python by_hand.py 8000

Read it by ``curl -N http://127.0.0.1:8000/ticks``, and stop it by Ctrl-C.

The providers are handed to ``instrument()``, with options that would else be environment variables:
here the event types that are recorded by name, because this server makes up others as it goes,
which are recorded as ``_OTHER``, and how soon a silent stream counts as stalled. The endpoint is
``OTEL_EXPORTER_OTLP_ENDPOINT``, ``http://localhost:4318`` by default; where no collector listens
there, it prints so and exports nothing. The last exports are those of ``shutdown()``; a stream that
was live then is recorded as ended by ``server_shutdown``.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from urllib.parse import urlsplit

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

from otel_sse.frameworks import SSEAiohttpServerInstrumentor


async def ticks(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    # Raised when the client has disconnected.
    with contextlib.suppress(ConnectionError):
        for number in itertools.count():
            name = "tick" if number % 5 else f"round-{number // 5}"
            await response.write(f"event: {name}\ndata: {number}\n\n".encode())
            await asyncio.sleep(0.05)
    return response


def collector_listens() -> bool:
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 80), 2).close()
    except OSError:
        print(f"No collector listens at {endpoint}: nothing is exported.", flush=True)
        return False
    return True


def main(port: int) -> None:
    resource = Resource.create({"service.name": "by-hand"})
    tracers, loggers = TracerProvider(resource=resource), LoggerProvider(resource=resource)
    readers = []
    if collector_listens():
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    meters = MeterProvider(readers, resource=resource)

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
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal() or int(sys.argv[1]) > 65_535:
        sys.exit("usage: by_hand.py PORT, such as 8000")
    main(int(sys.argv[1]))
