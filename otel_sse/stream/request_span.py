"""The proxy span of a stream: the current span of the work that the application does inside it.

A context can be attached once, where the stream starts, but the stream's span changes with every
segment. So the span in the context is a proxy, a ``RequestSpan``. It stands for

1. the parent span until the stream starts, where it is attached earlier (see ``request``);
2. the stream's current segment, until the stream closes;
3. the parent span again: what runs on after the stream belongs there.

Where there is no parent span, it is hidden in 1 and 3: other instrumentations take any current span
for their parent and then honour no ``traceparent``, and a server may let the context leak into the
next request of a kept-alive connection.
"""

from __future__ import annotations

from typing import Any, Final

from opentelemetry.context import Context, create_key
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    get_current_span,
    set_span_in_context,
)

# The key under which the API keeps the current span.
(_SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())
# The key of a proxy's identity, also where the application has made another span current below it.
# Not of the proxy: queued log records keep their contexts.
_IDENTITY_KEY: Final = create_key("otel_sse.identity")


def _delegated(method: str) -> Any:
    def call(proxy: RequestSpan, *args: Any, **kwargs: Any) -> None:
        getattr(proxy.span, method)(*args, **kwargs)

    return call


class RequestSpan(Span):
    """The proxy span of a request.

    Attributes:
        parent_span: the span that was current around the request; INVALID_SPAN for none.
        span: what the proxy stands for now.
        detached: the request is over; where the proxy is still current, its context has leaked.

    """

    __slots__ = ("_identity", "detached", "parent_span", "span")

    def __init__(self, parent_span: Span) -> None:
        self.parent_span = parent_span
        self.span = parent_span
        self.detached = False
        self._identity = object()

    def in_context(self, context: Context) -> Context:
        """``context`` with this as its current span."""
        hides = self.parent_span is INVALID_SPAN
        ours = _HidingContext(context) if hides else Context(context)
        # Not by set_span_in_context, which returns a plain context.
        dict.__setitem__(ours, _SPAN_KEY, self)
        dict.__setitem__(ours, _IDENTITY_KEY, self._identity)
        return ours

    def is_in(self, context: Context) -> bool:
        """Whether ``context`` was made by ``in_context``, or below such a one."""
        return context.get(_IDENTITY_KEY) is self._identity

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # A processor asks whether the parent is a span of the SDK before it reads its attributes. A
        # tracer that records nothing returns a span that records nothing itself, and this one may
        # stand for another one later.
        return type(self) if isinstance(self.span, NonRecordingSpan) else type(self.span)

    def get_span_context(self) -> SpanContext:
        return self.span.get_span_context()

    def is_recording(self) -> bool:
        return self.span.is_recording()

    set_attributes = _delegated("set_attributes")
    set_attribute = _delegated("set_attribute")
    add_event = _delegated("add_event")
    add_link = _delegated("add_link")
    update_name = _delegated("update_name")
    set_status = _delegated("set_status")
    record_exception = _delegated("record_exception")

    def end(self, *args: Any, **kwargs: Any) -> None:
        """Ends the parent span as asked. A segment is ended by its stream alone."""
        if self.span is self.parent_span:
            self.span.end(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # What an SDK's span has beyond the API, for code that reads it: name, kind, attributes …
        return getattr(self.span, name)


class _HidingContext(Context):
    """A context that shows the proxy only while it stands for a segment."""

    def get(self, key: Any, default: Any = None) -> Any:
        value = super().get(key, default)
        if key == _SPAN_KEY and isinstance(value, RequestSpan) and value.span is INVALID_SPAN:
            return default
        return value


def find_parent(context: Context) -> Span:
    """The span that is the parent in ``context``; INVALID_SPAN for none.

    A span that has ended, or the proxy of a request that is over, is none: its context has leaked
    from the last request of a kept-alive connection. A span that records nothing is one all the
    same: it stands for a remote or an unsampled parent.
    """
    span = get_current_span(context)
    if isinstance(span, RequestSpan):
        if span.detached:
            return INVALID_SPAN
        span = span.span
    # Only the SDK's spans have an end_time.
    ended = not span.is_recording() and getattr(span, "end_time", None) is not None
    return INVALID_SPAN if ended else span
