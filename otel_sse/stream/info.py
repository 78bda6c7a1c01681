"""What is known of a stream when its response starts, on either side."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    SpanKind,
    get_current_span,
    set_span_in_context,
)

from otel_sse import semconv
from otel_sse.process.backlog import Transport
from otel_sse.process.server_facts import is_contrib_client_span
from otel_sse.stream.request import RequestState
from otel_sse.telemetry.cardinality import known_method
from otel_sse.telemetry.series import MetricSeries
from otel_sse.telemetry.telemetry import Telemetry

# By the numbers that http.client, urllib3 and what is built on them have for them.
HTTP_VERSIONS: Final = {10: "1.0", 11: "1.1", 20: "2", 30: "3"}


class ServerStreamInfo(NamedTuple):
    """A stream that is served.

    ``known_path`` is None where no route matches the whole path: it may be anything that a client
    chose to send, a secret too. ``user_agent`` is as the server holds it. ``carrier`` and
    ``getter`` are what a remote parent is extracted from. ``encoded``: the body that the hook sees
    has a content coding, so its messages are not read.
    """

    method: str
    route: str | None
    scheme: str
    known_path: str | None
    client: str | None
    user_agent: str | bytes | None
    protocol: str
    status: int
    resumed: bool
    carrier: Any
    getter: Getter[Any]
    transport: Transport | None
    encoded: bool = False

    def series(self, telemetry: Telemetry) -> MetricSeries:
        method = known_method(self.method)
        route = None if self.route is None else telemetry.routes_or_hosts(self.route)
        scheme = self.scheme if self.scheme in semconv.SCHEMES else semconv.OTHER
        name = f"SSE {route}" if route else "SSE"
        return telemetry.streams.series((method, route, scheme), name)

    def parent(self, request: RequestState) -> tuple[Context, SpanKind]:
        """Where segment 0 goes: below the span that is current around ``request``, else below the
        caller's.
        """
        context, span = request.parent()
        parent_id = span.get_span_context()
        if parent_id.is_valid and not parent_id.is_remote:
            return set_span_in_context(span, context), SpanKind.INTERNAL
        return propagate.extract(self.carrier, context, self.getter), SpanKind.SERVER


class ClientStreamInfo(NamedTuple):
    """A stream that is read, or a request for one that failed.

    ``context`` is that of the call; ``started`` is when the request was made, ``connected`` when
    the response's headers came, None: now (monotonic, s). ``accept``: the request's header.
    ``encoded``: the reader gets a body with a content coding, so its messages are not read.
    """

    method: str
    scheme: str
    host: str
    port: int | None
    known_path: str
    protocol: str | None
    status: int
    resumed: bool
    context: Context
    started: float
    accept: str = ""
    connected: float | None = None

    encoded: bool = False
    client: None = None
    user_agent: None = None
    transport: None = None

    def series(self, telemetry: Telemetry) -> MetricSeries:
        return telemetry.streams.series(self._values(telemetry), f"SSE {known_method(self.method)}")

    def attributes(self, telemetry: Telemetry) -> dict[str, Any]:
        """The base attributes, without a series."""
        pairs = zip(telemetry.role.metric_attributes, self._values(telemetry), strict=True)
        return {name: value for name, value in pairs if value is not None}

    @property
    def failed(self) -> bool:
        """Whether an event stream was asked for, and the response's status refuses it."""
        return self.status >= 400 and semconv.MEDIA_TYPE in self.accept.lower()

    def _values(self, telemetry: Telemetry) -> tuple[str, str, int | None]:
        port = self.port or {"http": 80, "https": 443}.get(self.scheme)
        known = telemetry.routes_or_hosts(f"{self.host}:{port}") != semconv.OTHER
        host, port = (self.host, port) if known else (semconv.OTHER, None)
        return known_method(self.method), host, port


def caller_context() -> Context:
    """The current context, for a hook that runs inside contrib's instrumentation of its library:
    that one has made its own span current, and that span has to be beside ours.
    """
    context = otel_context.get_current()
    span: Any = get_current_span(context)
    if not is_contrib_client_span(span):
        return context
    parent = INVALID_SPAN if span.parent is None else NonRecordingSpan(span.parent)
    return set_span_in_context(parent, context)
