"""An OTLP/HTTP receiver in this process: it decodes what the servers export, and sends it on."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import httpx
from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_sse import semconv

# Data points of a metric: numbers or histograms.
Points = list[Any]


class Service:
    """What one server has exported last: its metrics, and its rates over the last exports."""

    def __init__(self) -> None:
        self.metrics: dict[str, Points] = {}
        self._history: deque[tuple[float, int, int]] = deque(maxlen=4)

    def total(self, name: str) -> int:
        return sum(point.as_int for point in self.metrics.get(name, []))

    def update(self, metrics: dict[str, Points]) -> None:
        self.metrics |= metrics
        for point in metrics.get(semconv.IO.name, [])[:1]:
            totals = self.total(semconv.MESSAGES.name), self.total(semconv.IO.name)
            self._history.append((point.time_unix_nano / 1e9, *totals))

    def rates(self) -> tuple[float, float] | tuple[None, None]:
        """Messages and bytes a second; None until there are two exports to compare."""
        if len(self._history) < 2:
            return None, None
        before, after = self._history[0], self._history[-1]
        seconds = after[0] - before[0]
        return (after[1] - before[1]) / seconds, (after[2] - before[2]) / seconds


class Receiver:
    """Listens on a free port of this machine, and keeps what it receives.

    Args:
        closed: called with the service and the log event of each connection that has ended.
        forward: sends on what came, if anything does.

    """

    def __init__(self, closed: Callable[[str, LogRecord], None], forward: "Forward | None") -> None:
        self.services: dict[str, Service] = {}
        # How many, by the instrumentation that exported them, and by name.
        self.spans: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self._closed = closed
        self._forward = forward

    async def start(self) -> str:
        """Starts to listen; returns the endpoint."""
        app = web.Application(client_max_size=2**26)
        for signal in (self.metrics, self.traces, self.logs):
            app.router.add_post(f"/v1/{signal.__name__}", self._take(signal))
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    def _take(self, signal: Callable[[bytes], None]) -> Any:
        async def handler(request: web.Request) -> web.Response:
            try:
                body = await request.read()
            except ConnectionError:
                # Its sender has been killed meanwhile, and awaits no answer.
                raise web.HTTPBadRequest from None
            signal(body)
            if self._forward is not None:
                self._forward.put(request.path, body)
            return web.Response(content_type="application/x-protobuf")

        return handler

    def metrics(self, body: bytes) -> None:
        for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            found: dict[str, Points] = {
                metric.name: list(getattr(metric, metric.WhichOneof("data") or "").data_points)
                for scope in group.scope_metrics
                for metric in scope.metrics
                if scope.scope.name == semconv.SCOPE
            }
            service = attributes(group.resource.attributes)["service.name"]
            self.services.setdefault(service, Service()).update(found)

    def traces(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in group.scope_spans:
                self.spans[scope.scope.name] += len(scope.spans)

    def logs(self, body: bytes) -> None:
        for group in ExportLogsServiceRequest.FromString(body).resource_logs:
            service = attributes(group.resource.attributes)["service.name"]
            for record in (record for scope in group.scope_logs for record in scope.log_records):
                self.events[record.event_name or "other"] += 1
                if record.event_name == semconv.CLOSED:
                    self._closed(service, record)


class Forward:
    """Sends what came to another OTLP/HTTP receiver too; ``warn`` gets the first failure."""

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], warn: Callable[[str], None]
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.sent = self.failed = 0
        self._headers = {"Content-Type": "application/x-protobuf", **headers}
        self._warn = warn
        self._client = httpx.AsyncClient(timeout=3)
        self._sending: set[asyncio.Task[None]] = set()

    def put(self, path: str, body: bytes) -> None:
        task = asyncio.create_task(self._send(self.endpoint + path, body))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def stop(self) -> None:
        """Returns when everything has been sent or has failed."""
        await asyncio.gather(*self._sending)
        await self._client.aclose()

    async def _send(self, url: str, body: bytes) -> None:
        try:
            response = await self._client.post(url, content=body, headers=self._headers)
            response.raise_for_status()
            self.sent += 1
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            self.failed += 1
            if self.failed == 1:
                self._warn(f"{url} did not accept what was sent to it; the demo goes on: {error!r}")


def attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """OTLP's attributes as a dictionary."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in pairs}
