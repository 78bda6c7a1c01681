"""A real OTLP/HTTP receiver: protobuf comes in on a socket, plain objects are read from it."""

import gzip
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, TypeVar

from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_service
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_service
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

Attributes = dict[str, Any]
T = TypeVar("T")

# Path, to the receiver's method that reads it, what comes and what is answered.
_SERVICES: Final[dict[str, tuple[str, Any, Any]]] = {
    "/v1/traces": (
        "_take_spans",
        trace_service.ExportTraceServiceRequest,
        trace_service.ExportTraceServiceResponse,
    ),
    "/v1/metrics": (
        "_take_points",
        metrics_service.ExportMetricsServiceRequest,
        metrics_service.ExportMetricsServiceResponse,
    ),
    "/v1/logs": (
        "_take_records",
        logs_service.ExportLogsServiceRequest,
        logs_service.ExportLogsServiceResponse,
    ),
}
_KINDS: Final = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUSES: Final = ("UNSET", "OK", "ERROR")


@dataclass(frozen=True)
class Link:
    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True)
class SpanEvent:
    name: str
    time: int
    attributes: Attributes


@dataclass(frozen=True)
class Span:
    """Ids are lower-case hexadecimal, a root's ``parent_id`` is empty; times are Unix ns."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: Attributes
    events: tuple[SpanEvent, ...]
    links: tuple[Link, ...]
    status: str
    scope: str
    resource: Attributes = field(repr=False)


@dataclass(frozen=True)
class Point:
    """One point: ``value`` is a number's, or a histogram's count; the rest is a histogram's."""

    value: float
    attributes: Attributes
    start: int
    time: int
    sum: float | None
    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    unit: str
    scope: str
    resource: Attributes = field(repr=False)


@dataclass(frozen=True)
class Record:
    """A log record; one with an ``event_name`` is a log-based event."""

    event_name: str
    severity: int
    severity_text: str
    body: Any
    time: int
    trace_id: str
    span_id: str
    attributes: Attributes
    scope: str
    resource: Attributes = field(repr=False)


def exporter_environment(endpoint: str) -> dict[str, str]:
    """Variables of a process that exports to ``endpoint``, at the earliest after a minute."""
    return {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_METRIC_EXPORT_INTERVAL": "60000",
        "OTEL_BSP_SCHEDULE_DELAY": "60000",
        "OTEL_BLRP_SCHEDULE_DELAY": "60000",
    }


class Receiver:
    """Listens on a port of its own while its block lasts: ``with Receiver() as receiver``.

    It keeps what it received; of cumulative metrics, the latest export of each resource.
    The end of the block raises if anything came that could not be read.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._spans: list[Span] = []
        self._records: list[Record] = []
        # By resource, then by metric name.
        self._points: dict[str, dict[str, list[Point]]] = {}
        self.exports = 0
        self.errors: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="otlp-receiver", daemon=True
        )

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if kind is None and self.errors:
            raise AssertionError("\n".join(self.errors))

    @property
    def endpoint(self) -> str:
        """The value of ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def spans(self, name: str = "") -> list[Span]:
        """The spans whose name starts so, in the order of their start."""
        with self._changed:
            found = [span for span in self._spans if span.name.startswith(name)]
        return sorted(found, key=lambda span: span.start)

    def records(self, event_name: str = "") -> list[Record]:
        """The log records whose event name starts so, in the order of their time."""
        with self._changed:
            found = [each for each in self._records if each.event_name.startswith(event_name)]
        return sorted(found, key=lambda record: record.time)

    def metrics(self) -> set[str]:
        """The names of the metrics."""
        with self._changed:
            return {name for points in self._points.values() for name in points}

    @property
    def environment(self) -> dict[str, str]:
        return exporter_environment(self.endpoint)

    def points(self, name: str, **attributes: Any) -> list[Point]:
        """A metric's latest points that bear these attributes, in which a dot is written as two
        underscores.
        """
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        with self._changed:
            return [
                point
                for points in self._points.values()
                for point in points.get(name, ())
                if wanted.items() <= point.attributes.items()
            ]

    def value(self, name: str, **attributes: Any) -> float:
        """The sum of the values (a histogram's counts) of ``points``."""
        return sum(point.value for point in self.points(name, **attributes))

    def wait_for(self, predicate: Callable[[], T], timeout: float = 60.0) -> T:
        """What ``predicate`` gives once that is true; it is asked after every export."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (result := predicate()):
                if not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"not within {timeout} s; received: {self}")
            return result

    def __str__(self) -> str:
        """All of it in short, for a failing test's message."""
        with self._changed:
            lines = [
                f"{self.exports} exports, errors: {self.errors}",
                *(f"span {s.name} {s.kind} {s.attributes}" for s in self._spans),
                *(f"record {r.event_name} {r.attributes} {r.body}" for r in self._records),
                *(
                    f"metric {name} {point.value} {point.attributes}"
                    for points in self._points.values()
                    for name in sorted(points)
                    for point in points[name]
                ),
            ]
        return "\n".join(lines)

    def take(self, path: str, headers: Message, body: bytes) -> bytes:
        """Reads one export; gives the response's body."""
        if headers.get("Content-Type") != "application/x-protobuf":
            raise ValueError(f"content type {headers.get('Content-Type')}")
        encoding = headers.get("Content-Encoding", "")
        if encoding == "gzip":
            body = gzip.decompress(body)
        elif encoding == "deflate":
            body = zlib.decompress(body)
        elif encoding not in ("", "identity"):
            raise ValueError(f"content encoding {encoding}")
        read, request, response = _SERVICES[path]
        message = request.FromString(body)
        with self._changed:
            getattr(self, read)(message)
            self.exports += 1
            self._changed.notify_all()
        return bytes(response().SerializeToString())

    def failed(self, why: str) -> None:
        with self._changed:
            self.errors.append(why)
            self._changed.notify_all()

    def _take_spans(self, request: Any) -> None:
        for group in request.resource_spans:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                self._spans += [_span(each, scope.scope.name, resource) for each in scope.spans]

    def _take_records(self, request: Any) -> None:
        for group in request.resource_logs:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_logs:
                self._records += [
                    _record(each, scope.scope.name, resource) for each in scope.log_records
                ]

    def _take_points(self, request: Any) -> None:
        for group in request.resource_metrics:
            resource = _attributes(group.resource.attributes)
            latest: dict[str, list[Point]] = {}
            for scope in group.scope_metrics:
                for metric in scope.metrics:
                    points = latest.setdefault(metric.name, [])
                    points += _points(metric, scope.scope.name, resource)
            self._points[json.dumps(resource, sort_keys=True)] = latest


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                answer = receiver.take(self.path, self.headers, body)
                status = 200
            except Exception as error:
                receiver.failed(f"{self.path}: {error!r}")
                answer, status = b"", 400
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _attributes(pairs: Iterable[Any]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _span(span: Any, scope: str, resource: Attributes) -> Span:
    return Span(
        name=span.name,
        kind=_KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=tuple(
            SpanEvent(each.name, each.time_unix_nano, _attributes(each.attributes))
            for each in span.events
        ),
        links=tuple(
            Link(each.trace_id.hex(), each.span_id.hex(), _attributes(each.attributes))
            for each in span.links
        ),
        status=_STATUSES[span.status.code],
        scope=scope,
        resource=resource,
    )


def _record(record: Any, scope: str, resource: Attributes) -> Record:
    return Record(
        event_name=record.event_name,
        severity=record.severity_number,
        severity_text=record.severity_text,
        body=_value(record.body),
        time=record.time_unix_nano or record.observed_time_unix_nano,
        trace_id=record.trace_id.hex(),
        span_id=record.span_id.hex(),
        attributes=_attributes(record.attributes),
        scope=scope,
        resource=resource,
    )


def _points(metric: Any, scope: str, resource: Attributes) -> Sequence[Point]:
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    if kind != "gauge" and data.aggregation_temporality != AGGREGATION_TEMPORALITY_CUMULATIVE:
        raise ValueError(f"{metric.name} is not cumulative")
    histogram = kind.endswith("histogram")
    return [
        Point(
            value=point.count if histogram else getattr(point, point.WhichOneof("value")),
            attributes=_attributes(point.attributes),
            start=point.start_time_unix_nano,
            time=point.time_unix_nano,
            sum=point.sum if histogram else None,
            bounds=tuple(getattr(point, "explicit_bounds", ())),
            buckets=tuple(getattr(point, "bucket_counts", ())),
            unit=metric.unit,
            scope=scope,
            resource=resource,
        )
        for point in data.data_points
    ]
