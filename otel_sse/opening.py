"""The start of a stream: what a response has to be, and what either side knows of it then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, set_span_in_context

from otel_sse import semconv
from otel_sse.semconv import MEDIA_TYPE, OTHER

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import Getter

    from otel_sse.current import Request
    from otel_sse.series import Series
    from otel_sse.telemetry import Telemetry


def is_stream(method: str, status: int, content_type: str) -> bool:
    """Whether a response is an event stream: by its media type, and that it may have a body."""
    return (
        "stream" in content_type.lower()  # says no, quickly, to nearly everything
        and content_type.partition(";")[0].strip().lower() == MEDIA_TYPE
        and method != "HEAD"
        and status not in (204, 304)
    )


class Opening(NamedTuple):
    """What is known of a connection when its response starts.

    ``known_path`` is None where no route matches the whole path: it may be anything that a
    stranger typed, a secret too. ``user_agent`` is as the server holds it. ``carrier`` and
    ``getter`` are what a remote parent is extracted from; ``transport`` is the asyncio transport,
    where it is known.
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
    transport: Any

    def series(self, telemetry: Telemetry) -> Series:
        method = semconv.known_method(self.method)
        route = None if self.route is None else telemetry.place(self.route)
        scheme = self.scheme if self.scheme in semconv.SCHEMES else OTHER
        return telemetry.series((method, route, scheme), f"SSE {route}" if route else "SSE")

    def parent(self, request: Request) -> tuple[Context, SpanKind]:
        """Where segment 0 goes: below the span that encloses ``request``, else the caller's."""
        around = request.enclosing.get_span_context()
        if around.is_valid and not around.is_remote:
            return set_span_in_context(request.enclosing, request.ambient), SpanKind.INTERNAL
        return propagate.extract(self.carrier, request.ambient, self.getter), SpanKind.SERVER


class Call(NamedTuple):
    """What is known of a connection that is read; ``context`` is that of the call."""

    method: str
    host: str
    port: int | None
    known_path: str
    protocol: str | None
    status: int
    resumed: bool
    context: Context

    client: None = None
    user_agent: None = None
    transport: None = None

    def series(self, telemetry: Telemetry) -> Series:
        method = semconv.known_method(self.method)
        known = telemetry.place(f"{self.host}:{self.port}") != OTHER
        host, port = (self.host, self.port) if known else (OTHER, None)
        return telemetry.series((method, host, port), f"SSE {method}")

    def parent(self, _: Request) -> tuple[Context, SpanKind]:
        return self.context, SpanKind.INTERNAL
