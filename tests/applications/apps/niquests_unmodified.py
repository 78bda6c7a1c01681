"""Checks what niquests' instrumentation leaves alone, and what it leaves behind: ``URL``."""

import asyncio
import sys
from typing import Any

import niquests
import urllib3.contrib.webextensions.sse
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from urllib3._async import connectionpool, response
from urllib3.contrib.webextensions._async import sse

from otel_sse.frameworks import SSEUrllib3Instrumentor

URL = sys.argv[1]
OWNERS = (
    connectionpool.AsyncHTTPConnectionPool,
    response.AsyncHTTPResponse,
    sse.AsyncServerSideEventExtensionFromHTTP,
    urllib3.HTTPConnectionPool,
    urllib3.HTTPResponse,
    urllib3.contrib.webextensions.sse.ServerSideEventExtensionFromHTTP,
)
exporter = InMemorySpanExporter()
reader = InMemoryMetricReader()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(exporter))


def members() -> list[dict[str, Any]]:
    return [dict(vars(owner)) for owner in OWNERS]


def connects() -> dict[str | None, int]:
    """The count of connects, by error type."""
    found: dict[str | None, int] = {}
    data: Any = reader.get_metrics_data()
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name == "sse.client.connect.duration":
                    for point in metric.data.data_points:
                        found[point.attributes.get("error.type")] = point.count
    return found


async def read(session: Any, path: str) -> int:
    found = await session.get(URL + path, stream=True)
    return sum([len(chunk) async for chunk in await found.iter_content(64)])


async def main() -> None:
    before = members()
    instrumentor = SSEUrllib3Instrumentor()
    instrumentor.instrument(
        tracer_provider=tracers, meter_provider=MeterProvider(metric_readers=[reader])
    )
    async with niquests.AsyncSession() as session:
        # Another response has the class and the attributes that it would have; a stream at its end.
        other = await session.get(URL + "/other/html", stream=True)
        assert type(other.raw) is response.AsyncHTTPResponse
        await other.close()
        stream = await session.get(URL + "/stream/all", stream=True)
        assert isinstance(stream.raw, response.AsyncHTTPResponse)
        assert asyncio.iscoroutinefunction(stream.raw.read)
        assert vars(stream.raw).keys() - vars(other.raw).keys() == {"_otel_sse"}
        await stream.content
        assert type(stream.raw) is response.AsyncHTTPResponse
        assert vars(stream.raw).keys() == vars(other.raw).keys()
        assert connects() == {None: 1}

        # A refusal is recorded where a stream was asked for, once for all that is tried.
        headers = {"Accept": "text/event-stream"}
        await session.get(URL + "/refused/missing", headers=headers)
        try:
            await session.get("http://127.0.0.1:1/", headers=headers)
        except niquests.ConnectionError:
            pass
        else:
            raise AssertionError
        await session.get(URL + "/unasked/missing")
        found = connects()
        assert found.pop(None) == found.pop("404") == 1
        assert list(found.values()) == [1], found

        # It is below the caller's span, in the task that reads or in another.
        exporter.clear()
        with trace.get_tracer(__name__, tracer_provider=tracers).start_as_current_span("outer"):
            await asyncio.gather(read(session, "/inner/all"), read(session, "/inner/all"))
        *inner, outer = exporter.get_finished_spans()
        assert [each.parent.span_id for each in inner] == [outer.context.span_id] * 2

        # One that is open then is still recorded to its end; nothing else is.
        exporter.clear()
        stream = await session.get(URL + "/stream/all", stream=True)
        instrumentor.uninstrument()
        assert members() == before
        assert len(await stream.content) > 0
        assert await read(session, "/stream/all") > 0
        (span,) = exporter.get_finished_spans()
        assert span.attributes["sse.close.reason"] == "completed"


asyncio.run(main())
print("{}")
