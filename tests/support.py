"""What tests share: a whole SDK in memory, real servers on real sockets, a raw client."""

import asyncio
import contextlib
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import pytest
import uvicorn
from aiohttp import web
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    InMemoryLogRecordExporter,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp import Receiver

T = TypeVar("T")
Attributes = dict[str, Any]
# How long anything may take on a machine that is busy, in seconds: less than pytest's time-out.
PATIENCE = 60.0

# Below those that Linux and others hand out; each process that tests takes them in its own order.
_ports = iter(random.SystemRandom().sample(range(10_000, 32_000), 20_000))

AIOHTTP_SSE_3 = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="aiohttp-sse 3, which this speaks to, needs Python 3.11"
)


class Backend:
    """Three SDK providers that keep in memory what they are told."""

    def __init__(self, **tracer_options: Any) -> None:
        self._spans = InMemorySpanExporter()
        self._logs = InMemoryLogRecordExporter()
        self.reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False, **tracer_options)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self._logs))
        self.tracer = self.tracer_provider.get_tracer("test")

    @property
    def providers(self) -> dict[str, Any]:
        """Keyword arguments of ``instrument()`` and ``SSEMiddleware``."""
        return {
            "tracer_provider": self.tracer_provider,
            "meter_provider": self.meter_provider,
            "logger_provider": self.logger_provider,
        }

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """The finished spans whose name starts so, in the order of their ending."""
        return [span for span in self._spans.get_finished_spans() if span.name.startswith(name)]

    def events(self, name: str = "") -> list[Any]:
        """The log-based events of that name."""
        records = [each.log_record for each in self._logs.get_finished_logs()]
        return [record for record in records if (record.event_name or "").startswith(name)]

    def metrics(self) -> dict[str, Any]:
        """One collection: the metrics of this library by name."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            if scope.scope.name == "otel_sse"
            for metric in scope.metrics
        }

    def points(self, name: str) -> list[tuple[Attributes, Any]]:
        """One collection: a metric's points, each its attributes and the SDK's point."""
        metric = self.metrics().get(name)
        points = metric.data.data_points if metric else ()
        return [(dict(point.attributes or {}), point) for point in points]

    def value(self, name: str, **attributes: Any) -> float:
        """The sum of a metric's points (a histogram's counts) that bear these attributes, in
        which a dot is written as two underscores.
        """
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return sum(
            point.value if hasattr(point, "value") else point.count
            for found, point in self.points(name)
            if wanted.items() <= found.items()
        )


async def until(condition: Callable[[], T], seconds: float = PATIENCE) -> T:
    """Waits for a condition of another task or thread, and gives what it gave."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        await asyncio.sleep(0.005)
    return result


def wait_until(condition: Callable[[], T], seconds: float = PATIENCE, what: str = "") -> T:
    """The same for one who has no event loop."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        time.sleep(0.05)
    return result


@contextlib.asynccontextmanager
async def serve_asgi(app: Any, **config: Any) -> AsyncIterator[int]:
    """Runs an ASGI application under uvicorn in this loop; yields its port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = {"log_level": "critical", "lifespan": "off", "timeout_graceful_shutdown": 1, **config}
    server = uvicorn.Server(uvicorn.Config(app, **config))
    with _no_signals(server):
        task = asyncio.create_task(server.serve([listener]))
        try:
            await until(lambda: server.started)
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            await task
            listener.close()


@contextlib.contextmanager
def _no_signals(server: uvicorn.Server) -> Iterator[None]:
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    yield


@contextlib.asynccontextmanager
async def serve_aiohttp(app: web.Application, **options: Any) -> AsyncIterator[int]:
    """Runs an aiohttp application in this loop; yields its port."""
    runner = web.AppRunner(app, shutdown_timeout=1, access_log=None, **options)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


class RawClient:
    """A client on a bare socket: it can leave, reset, or stop reading."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def get(
        cls, port: int, path: str, *headers: str, method: str = "GET", limit: int = 2**16
    ) -> "RawClient":
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
        return cls(reader, writer)

    async def until(self, needle: bytes) -> bytes:
        """Reads up to and with ``needle``."""
        return await self.reader.readuntil(needle)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Drops the connection with an RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


SSE = [(b"content-type", b"text/event-stream")]
START = {"type": "http.response.start", "status": 200, "headers": SSE}


def http_scope(path: str = "/events", **extra: Any) -> dict[str, Any]:
    """The ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("10.0.0.1", 4000),
        "server": ("localhost", 80),
        **extra,
    }


class Stream:
    """One request to an ASGI application without a server: the test is the server."""

    def __init__(self, app: Any, **scope: Any) -> None:
        self.sent: list[Any] = []
        self.gone = asyncio.Event()
        self.blocked: asyncio.Event | None = None
        self.task = asyncio.ensure_future(app(http_scope(**scope), self._receive, self._send))

    async def _receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if self.blocked is not None:
            await self.blocked.wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Fed:
    """An ASGI application that streams what the test feeds it; None ends the stream, an
    exception is raised in the application.
    """

    def __init__(self, status: int = 200, headers: Any = SSE) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.status = status
        self.headers = headers
        self.idle = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(start)
        while (chunk := await self._next()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            if callable(chunk):
                chunk()
                continue
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> Any:
        if self.queue.empty():
            self.idle.set()
        return await self.queue.get()

    async def feed(self, *chunks: Any) -> None:
        """Streams the chunks and waits until the application has sent them all."""
        self.idle.clear()
        for chunk in chunks:
            self.queue.put_nowait(chunk)
        await self.idle.wait()

    def end(self, *last: Any) -> None:
        for chunk in last or (None,):
            self.queue.put_nowait(chunk)


@contextlib.contextmanager
def exporting(receiver: Receiver) -> Iterator[dict[str, Any]]:
    """Three SDK providers that export to ``receiver``, with their own batch processors as they are
    by default; what they hold is exported at the end.
    """
    end = receiver.endpoint
    tracer = TracerProvider(shutdown_on_exit=False)
    tracer.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{end}/v1/traces")))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{end}/v1/metrics"))
    meter = MeterProvider([reader], shutdown_on_exit=False)
    logger = LoggerProvider(shutdown_on_exit=False)
    logger.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{end}/v1/logs")))
    try:
        yield {"tracer_provider": tracer, "meter_provider": meter, "logger_provider": logger}
    finally:
        for provider in (tracer, meter, logger):
            provider.shutdown()


def free_port() -> int:
    """A port for a server that cannot be given port 0.

    Not one that the kernel hands out, which a client's connection might have got before the server
    starts; nor one that this process has been given.
    """
    for port in _ports:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")
