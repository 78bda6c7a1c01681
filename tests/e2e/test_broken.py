"""Telemetry that is missing, broken or taken away, under real servers on real sockets: what a
client receives is what it receives without us, the event loop never waits, the log has it once.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from helpers.aiohttp_apps import aiohttp_app, write_stream
from helpers.backend import Backend, exporting
from helpers.otlp import Receiver, exporter_environment
from helpers.processes import serve
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import PIECES, STREAM, Reply, fetch, parse
from helpers.waiting import until
from opentelemetry import propagate
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler, LogRecordProcessor
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExporter,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from otel_sse import SSEMiddleware, semconv
from otel_sse.frameworks import SSEAiohttpServerInstrumentor, SSEStarletteInstrumentor
from otel_sse.process.shutdown import UNANSWERED_SECONDS

SSE = "text/event-stream"
KINDS = (SSEStarletteInstrumentor, SSEAiohttpServerInstrumentor)
# Seconds that the event loop may be late on a busy machine; what hangs does so until the test ends.
LAG = 10.0


async def pieces() -> AsyncIterator[bytes]:
    for piece in PIECES:
        yield piece
        await asyncio.sleep(0.005)


async def starlette_stream(_: Request) -> StreamingResponse:
    return StreamingResponse(pieces(), media_type=SSE)


async def aiohttp_stream(request: web.Request) -> web.StreamResponse:
    return await write_stream(request, pieces())


def under_starlette() -> Any:
    return serve_asgi(Starlette(routes=[Route("/events", starlette_stream)]))


def under_aiohttp() -> Any:
    return serve_aiohttp(aiohttp_app("/events", aiohttp_stream))


SERVERS = pytest.mark.parametrize("server", [under_starlette, under_aiohttp])


@contextlib.asynccontextmanager
async def on_time() -> AsyncIterator[None]:
    """The event loop is never late in this block."""
    latest = 0.0

    async def beat() -> None:
        nonlocal latest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            latest = max(latest, time.monotonic() - began)

    beating = asyncio.create_task(beat())
    try:
        yield
        await asyncio.sleep(0.05)
    finally:
        beating.cancel()
    assert 0 < latest < LAG


@contextlib.contextmanager
def instrumented(**options: Any) -> Iterator[None]:
    for kind in KINDS:
        kind().instrument(**options)
    try:
        yield
    finally:
        for kind in KINDS:
            kind().uninstrument()


STREAMS = 8


async def replies(server: Callable[[], Any]) -> list[Reply]:
    """What clients receive of streams, some at a time and some one after another."""
    async with on_time(), server() as port:
        found = list(await asyncio.gather(*(fetch(port, "/events") for _ in range(5))))
        found += [await fetch(port, "/events") for _ in range(STREAMS - 5)]
    return found


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "otel_sse"]


# --- exporters ---------------------------------------------------------------------------------


class Exporter(SpanExporter, LogRecordExporter, MetricExporter):
    """An exporter of all three signals, which does something else instead."""

    def __init__(self, instead: Callable[[], Any]) -> None:
        MetricExporter.__init__(self)
        self._instead = instead

    def export(self, *_: Any, **__: Any) -> Any:
        return self._instead()

    def shutdown(self, *_: Any, **__: Any) -> None:
        pass

    def force_flush(self, *_: Any, **__: Any) -> bool:
        return True


class Batching:
    """Three providers that export in threads of their own, often, from queues of ``size``."""

    def __init__(self, exporter: Any, size: int = 2048) -> None:
        batch: Any = {
            "schedule_delay_millis": 10,
            "max_queue_size": size,
            "max_export_batch_size": min(size, 16),
        }
        self.tracer = TracerProvider(shutdown_on_exit=False)
        self.tracer.add_span_processor(BatchSpanProcessor(exporter, **batch))
        self.logger = LoggerProvider(shutdown_on_exit=False)
        self.logger.add_log_record_processor(BatchLogRecordProcessor(exporter, **batch))
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=20)
        self.meter = MeterProvider([reader], shutdown_on_exit=False)

    @property
    def providers(self) -> dict[str, Any]:
        return {
            "tracer_provider": self.tracer,
            "meter_provider": self.meter,
            "logger_provider": self.logger,
        }

    def shutdown(self) -> None:
        for provider in (self.tracer, self.logger, self.meter):
            provider.shutdown()


def fail() -> Any:
    raise RuntimeError("broken exporter")


@SERVERS
@pytest.mark.parametrize("size", [2048, 2])
async def test_an_exporter_that_hangs(server: Callable[[], Any], size: int) -> None:
    """Queues run full, segments of silent streams cannot be flushed, and no stream waits."""
    plain = await replies(server)
    released, hanging = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        released.wait()

    batching = Batching(Exporter(hang), size)
    try:
        with instrumented(
            **batching.providers,
            message_events="span,log",
            message_event_detail="all",
            segment_seconds=0.01,
            stall_seconds=0.01,
        ):
            assert await replies(server) == plain
            await until(hanging.is_set)
            assert await replies(server) == plain
    finally:
        released.set()
        batching.shutdown()


@SERVERS
@pytest.mark.parametrize("instead", [fail, lambda: SpanExportResult.FAILURE])
async def test_an_exporter_that_raises_or_refuses(
    server: Callable[[], Any], instead: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """That is between the SDK and the exporter: we have nothing to add."""
    plain = await replies(server)
    asked = threading.Event()

    def export() -> Any:
        asked.set()
        return instead()

    batching = Batching(Exporter(export))
    with instrumented(**batching.providers, segment_seconds=0.01):
        assert await replies(server) == plain
        await until(asked.is_set)
    await asyncio.to_thread(batching.shutdown)
    assert ours(caplog) == []


class BadReader(InMemoryMetricReader):
    def _receive_metrics(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("broken: receive")


@SERVERS
async def test_a_metric_reader_that_raises(
    server: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It raises when everything is flushed: that is logged once, and the rest is flushed."""
    plain = await replies(server)
    backend = Backend()
    backend.meter_provider = MeterProvider([BadReader()], shutdown_on_exit=False)
    with instrumented(**backend.providers):
        assert await replies(server) == plain
        telemetry = SSEStarletteInstrumentor().telemetry
        assert telemetry is not None
        for _ in range(3):
            await asyncio.to_thread(telemetry.export)
    assert len(backend.spans("SSE")) == len(backend.events("sse.connection.closed")) == STREAMS
    assert len(ours(caplog)) == 1
    assert "broken: receive" in caplog.text


# --- parts of the SDK that raise ---------------------------------------------------------------


class Raises:
    """Raises from the methods named, and does nothing in the others."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __getattribute__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "names"):
            raise RuntimeError(f"broken: {name}")
        return object.__getattribute__(self, name)


class BadSpanProcessor(Raises, SpanProcessor):
    pass


class BadLogProcessor(Raises, LogRecordProcessor):
    def on_emit(self, *_: Any) -> None: ...
    def shutdown(self) -> None: ...
    def force_flush(self, *_: Any) -> bool:
        return True


class BadSampler(Raises, Sampler):
    def should_sample(self, *_: Any) -> Any: ...
    def get_description(self) -> str:
        return "bad"


class BadPropagator(TextMapPropagator):
    fields: set[str] = set()  # noqa: RUF012

    def extract(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("broken: extract")

    def inject(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("broken: inject")


def bad_start(backend: Backend) -> None:
    backend.tracer_provider.add_span_processor(BadSpanProcessor("on_start"))


def bad_end(backend: Backend) -> None:
    backend.tracer_provider.add_span_processor(BadSpanProcessor("on_end"))


def bad_log(backend: Backend) -> None:
    backend.logger_provider.add_log_record_processor(BadLogProcessor("on_emit"))


def bad_sampler(backend: Backend) -> None:
    backend.tracer_provider.sampler = BadSampler("should_sample")


def bad_propagator(backend: Backend) -> None:
    propagate.set_global_textmap(BadPropagator())


# What is broken, and of how many streams spans and events are still reported.
BROKEN: list[tuple[Callable[[Backend], None], int, int]] = [
    (bad_start, 0, STREAMS),
    # The processor that keeps them comes first.
    (bad_end, STREAMS, STREAMS),
    (bad_log, STREAMS, STREAMS),
    (bad_sampler, 0, STREAMS),
    (bad_propagator, STREAMS, STREAMS),
]


@SERVERS
@pytest.mark.parametrize(("spoil", "spans", "events"), BROKEN)
async def test_a_part_that_raises(
    server: Callable[[], Any],
    spoil: Callable[[Backend], None],
    spans: int,
    events: int,
    backend: Backend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged once; metrics are whole, and so is every other signal."""
    plain = await replies(server)
    propagator = propagate.get_global_textmap()
    spoil(backend)
    try:
        with instrumented(**backend.providers):
            assert await replies(server) == plain
            assert backend.value("sse.server.io") == STREAMS * len(STREAM)
            assert backend.value("sse.server.active_connections") == 0
    finally:
        propagate.set_global_textmap(propagator)
    assert len(ours(caplog)) == 1
    assert "broken" in caplog.text
    assert backend.value("sse.server.connection.duration") == STREAMS
    assert len(backend.spans("SSE")) == spans
    assert len(backend.events("sse.connection.closed")) == events


class BadHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("broken: emit")


def deaf(backend: Backend) -> logging.Handler:
    return BadHandler()


def circular(backend: Backend) -> logging.Handler:
    """What the SDK has for those who export their logs, by the very provider that is broken."""
    return LoggingHandler(logger_provider=backend.logger_provider)


@SERVERS
@pytest.mark.parametrize("handler_of", [deaf, circular])
@pytest.mark.filterwarnings("ignore:.*LoggingHandler:DeprecationWarning")
async def test_a_log_that_cannot_be_written(
    server: Callable[[], Any], handler_of: Callable[[Backend], logging.Handler], backend: Backend
) -> None:
    """Where even the report of a failure fails, the application does not notice."""
    plain = await replies(server)
    for spoil in (bad_start, bad_end, bad_log):
        spoil(backend)
    log, handler = logging.getLogger("otel_sse"), handler_of(backend)
    log.addHandler(handler)
    try:
        with instrumented(**backend.providers):
            assert await replies(server) == plain
            assert backend.value("sse.server.active_connections") == 0
    finally:
        log.removeHandler(handler)
    assert backend.value("sse.server.connection.duration") == STREAMS


# --- telemetry that comes and goes -------------------------------------------------------------


def shut_down(backend: Backend) -> None:
    for provider in backend.providers.values():
        provider.shutdown()


def uninstrument(_: Backend) -> None:
    for kind in KINDS:
        kind().uninstrument()


def replace(backend: Backend) -> None:
    uninstrument(backend)
    for kind in KINDS:
        kind().instrument(**Backend().providers)


def instrument_again(backend: Backend) -> None:
    for kind in KINDS:
        kind().instrument(**backend.providers)


class Gated:
    """A server of one stream that pauses in its middle until it may go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        yield STREAM[:40]
        await self.go_on.wait()
        yield STREAM[40:]

    async def starlette(self, _: Request) -> StreamingResponse:
        return StreamingResponse(self.pieces(), media_type=SSE)

    async def aiohttp(self, request: web.Request) -> web.StreamResponse:
        return await write_stream(request, self.pieces())

    def under(self, server: Callable[[], Any]) -> Any:
        if server is under_starlette:
            return serve_asgi(Starlette(routes=[Route("/events", self.starlette)]))
        return serve_aiohttp(aiohttp_app("/events", self.aiohttp))


# What happens in the middle of a stream, and whether its close still reaches the providers.
CHANGES: list[tuple[Callable[[Backend], None], bool]] = [
    (shut_down, False),
    (uninstrument, True),
    (replace, True),
    (instrument_again, True),
]


@SERVERS
@pytest.mark.parametrize(("change", "reported"), CHANGES)
async def test_a_change_in_the_middle_of_a_stream(
    server: Callable[[], Any],
    change: Callable[[Backend], None],
    reported: bool,
    backend: Backend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The stream goes on as if nothing had happened, and is reported to its end, once, where
    a provider is still there.
    """
    gated = Gated()
    with instrumented(**backend.providers):
        async with on_time(), gated.under(server) as port:
            client = await RawClient.get(port, "/events", "Connection: close")
            head = await client.until(STREAM[:40])
            change(backend)
            gated.go_on.set()
            rest = await client.reader.read(-1)
            await client.close()
    assert parse(head + rest).body == STREAM
    assert ours(caplog) == []
    if reported:
        (span,) = backend.spans("SSE")
        assert span.attributes is not None
        assert span.attributes["sse.close.reason"] == "completed"
        assert span.attributes["sse.io"] == len(STREAM)
        assert len(backend.events("sse.connection.closed")) == 1
        assert backend.value("sse.server.connection.duration") == 1


@SERVERS
async def test_instrumented_and_not_and_again(server: Callable[[], Any], backend: Backend) -> None:
    """Streams count while it is on, each once however often it was switched on, and no others."""
    plain = await replies(server)
    for _ in range(2):
        with instrumented(**backend.providers):
            instrument_again(backend)
            assert await replies(server) == plain
        assert await replies(server) == plain
    assert len(backend.spans("SSE")) == 2 * STREAMS
    assert backend.value("sse.server.connection.duration") == 2 * STREAMS
    with instrumented(**backend.providers):
        assert backend.value("sse.server.connections") == 2 * STREAMS


# --- processes ---------------------------------------------------------------------------------

SERVED = "python broken_served.py {how} {{port}}"


async def served(how: str, receiver: Any = None, **env: str) -> tuple[list[Reply], int, str]:
    """What clients of a server receive, its exit status and what it has written."""
    with serve(SERVED.format(how=how), receiver, **env) as process:
        await process.started()
        found = [await fetch(process.port, "/events") for _ in range(2)]
        if how == "later":
            await fetch(process.port, "/provide")
        found += [await fetch(process.port, "/events") for _ in range(2)]
        status, output = await asyncio.to_thread(process.ended, signal.SIGTERM)
    return found, status, output


async def test_the_api_alone() -> None:
    """Without any provider the server does, writes and ends as it does without us."""
    assert await served("api") == await served("plain")


async def test_an_sdk_that_is_disabled() -> None:
    """The same under the auto-instrumentation, which exports nothing then."""
    with Receiver() as receiver:
        assert await served("plain", receiver, OTEL_SDK_DISABLED="true") == await served("plain")
        assert receiver.exports == 0


async def test_providers_that_are_set_late() -> None:
    """From then on spans, events and histograms are recorded; what was counted before is not
    lost.
    """
    with Receiver() as receiver:
        found, status, output = await served(
            "later", None, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint
        )
        assert (found, status, output) == await served("plain")
        assert len(receiver.spans("SSE")) == 2
        assert len(receiver.records("sse.connection.closed")) == 2
        assert receiver.value("sse.server.connection.duration") == 2
        assert receiver.value("sse.server.connections") == 4
        assert receiver.value("sse.server.messages") == 80
        (point,) = receiver.points("sse.server.connection.duration")
        assert point.bounds == semconv.DURATION.buckets


async def test_providers_that_the_application_has_shut_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the end of the process they are not flushed: each would export again, and complain."""
    with Receiver() as receiver, exporting(receiver) as providers:
        app = SSEMiddleware(Starlette(routes=[Route("/events", starlette_stream)]), **providers)
        async with serve_asgi(app) as port:
            await fetch(port, "/events")
    exports = receiver.exports
    await asyncio.to_thread(app.telemetry.export)
    assert receiver.exports == exports > 0
    assert [record.getMessage() for record in caplog.records] == []


async def test_a_collector_that_accepts_and_never_answers() -> None:
    """The server serves as it does without us, and its end takes no longer than an export may."""
    plain, status, _ = await served("plain")
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        collector: Any = SimpleNamespace(environment=exporter_environment(endpoint))
        with serve(SERVED.format(how="plain"), collector) as process:
            await process.started()
            assert [await fetch(process.port, "/events") for _ in plain] == plain
            began = time.monotonic()
            ended, _ = await asyncio.to_thread(process.ended, signal.SIGTERM)
            assert time.monotonic() - began < UNANSWERED_SECONDS + LAG
    assert ended == status
