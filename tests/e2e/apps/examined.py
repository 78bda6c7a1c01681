"""An application for the doctor: an endless stream, a short one, and a response that is none."""

import asyncio
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

SETUP = os.environ.get("EXAMINED_SETUP", "")
if SETUP == "twice":
    from otel_sse.frameworks import SSEStarletteInstrumentor

    SSEStarletteInstrumentor().instrument()
elif SETUP == "traces":
    # A set-up by hand that has forgotten metrics and logs.
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from otel_sse.frameworks import SSEStarletteInstrumentor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    SSEStarletteInstrumentor().instrument()
elif SETUP == "provider":
    # A second provider beside opentelemetry-instrument's.
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())


async def _numbers(count: int) -> AsyncIterator[str]:
    for number in range(count):
        yield f"data: {number}\n\n"
        await asyncio.sleep(0.05)


async def events(_: Request) -> Response:
    return StreamingResponse(_numbers(100_000), media_type="text/event-stream")


async def short(_: Request) -> Response:
    return StreamingResponse(_numbers(1), media_type="text/event-stream")


async def plain(_: Request) -> Response:
    return JSONResponse({"data": 1})


app = Starlette(routes=[Route("/events", events), Route("/short", short), Route("/plain", plain)])
