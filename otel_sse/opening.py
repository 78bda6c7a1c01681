"""The start of a stream: what a response has to be, and what is known of it then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, set_span_in_context

from otel_sse.semconv import MEDIA_TYPE

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import Getter

    from otel_sse.current import Request


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

    ``carrier`` and ``getter`` are what a remote parent is extracted from; ``transport`` is the
    asyncio transport, where it is known.
    """

    method: str
    route: str | None
    scheme: str
    path: str
    client: str | None
    user_agent: str | None
    protocol: str
    status: int
    resumed: bool
    carrier: Any
    getter: Getter[Any]
    transport: Any

    def parent(self, request: Request) -> tuple[Context, SpanKind]:
        """Where segment 0 goes: below the span that encloses ``request``, else the caller's."""
        around = request.enclosing.get_span_context()
        if around.is_valid and not around.is_remote:
            return set_span_in_context(request.enclosing, request.ambient), SpanKind.INTERNAL
        return propagate.extract(self.carrier, request.ambient, self.getter), SpanKind.SERVER
