"""The proxy span of a request, and the request that the running code serves.

A stream starts where no context can be attached any more: in a ``send`` that runs in another
task, or in the middle of a generator. So one context is attached for each request, before it is
known whether it will be a stream, and detached in the same frame. Its current span is a proxy, a
``RequestSpan``. It stands for

1. the parent span, the one that was current, until the stream starts;
2. the stream's current segment, until the stream closes;
3. the parent span again: what runs on after the stream belongs there.

Where no span was current, the proxy must not be visible before the stream starts: other
instrumentations take any current span for their parent and then honour no ``traceparent``. So the
context hides it until then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanContext,
    get_current_span,
    set_span_in_context,
)

from otel_sse.semconv import MAX_DROP_REASONS, OTHER

if TYPE_CHECKING:
    from contextvars import Token

# The key under which the API keeps the current span.
(_SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())
_EMPTY: Final = Context()


class RequestStream(Protocol):
    """The stream that a request became."""

    disconnected: bool

    def set_close_reason(self, reason: str) -> None: ...

    def record_dropped(self, n: int, reason: str) -> None: ...

    def close(
        self, error: BaseException | None = None, *, completed: bool = False, cut: bool = False
    ) -> None: ...


def _delegated(method: str) -> Any:
    def call(request: RequestSpan, *args: Any, **kwargs: Any) -> None:
        getattr(request.span, method)(*args, **kwargs)

    return call


class RequestSpan(Span):
    """The proxy span of a request, and the stream that the request became, if it did.

    Attributes:
        started: the request's start, monotonic seconds.
        parent_context: the context above the stream.
        parent_span: the span in it.
        span: what the proxy stands for now.
        stream: the stream, from its start on.
        disconnected: the peer has disconnected.
        reason: the close reason that the application set before the stream started.
        dropped: what the application reported as dropped before that, by reason.

    """

    __slots__ = (
        "_previous",
        "_token",
        "disconnected",
        "dropped",
        "parent_context",
        "parent_span",
        "reason",
        "span",
        "started",
        "stream",
    )

    def __init__(self) -> None:
        self.started = perf_counter()
        # What the running code served when this request came, and how to get its context back.
        self._previous: RequestSpan | None = None
        self._token: Token[Context] | None = None
        self.parent_context: Context
        self.parent_span: Span = INVALID_SPAN
        self.span: Span = INVALID_SPAN
        self.stream: RequestStream | None = None
        self.disconnected = False
        self.reason: str | None = None
        self.dropped: dict[str, int] | None = None

    def mark_disconnected(self) -> None:
        """The peer has disconnected, before the stream's start or within it."""
        self.disconnected = True
        if self.stream is not None:
            self.stream.disconnected = True

    def set_close_reason(self, reason: str) -> None:
        self.reason = reason

    def record_dropped(self, n: int, reason: str) -> None:
        dropped = self.dropped = self.dropped or {}
        if len(dropped) >= MAX_DROP_REASONS and reason not in dropped:
            reason = OTHER
        dropped[reason] = dropped.get(reason, 0) + n

    def attach(self) -> None:
        """Makes this the running code's request and its current span, until ``detach``."""
        self._previous = current_request.get()
        # A token of this variable would weigh more than what it restores.
        current_request.set(self)
        self._token = self._attach()

    def detach(self) -> None:
        """Undoes ``attach``, at the end of the same frame."""
        if self._token is not None and _detach(self._token):
            current_request.set(self._previous)
        # A server may start the next request of a kept-alive connection in this one's context, and
        # so on without end: a request that is over must keep nothing of the one before it.
        self._previous = self._token = None
        self.parent_context = _EMPTY

    def _attach(self) -> Token[Context]:
        """Makes this the current span below what is current now.

        A span or a request that is over is no parent: servers let contexts leak from the last
        request of a kept-alive connection.
        """
        parent_context = otel_context.get_current()
        if _SPAN_KEY in parent_context:
            parent = get_current_span(parent_context)
            leaked = False
            if isinstance(parent, RequestSpan) and parent is not self:
                leaked, parent = parent._token is None, parent.span
            parent_id = parent.get_span_context()
            ended = not parent.is_recording() and parent_id.trace_flags.sampled
            if leaked or (ended and not parent_id.is_remote):
                parent = INVALID_SPAN
                parent_context = set_span_in_context(INVALID_SPAN, parent_context)
            if parent is not self and self.stream is None:
                self.parent_span = self.span = parent
        self.parent_context = parent_context
        hidden = self.span is INVALID_SPAN
        context = _HidingContext(parent_context) if hidden else Context(parent_context)
        # Not by set_value, which copies the context twice more.
        dict.__setitem__(context, _SPAN_KEY, self)
        return otel_context.attach(context)

    def is_current(self) -> bool:
        """Whether this is the current span, also where it is hidden."""
        return dict.get(otel_context.get_current(), _SPAN_KEY) is self

    @contextmanager
    def attach_below_current(self) -> Iterator[None]:
        """Attaches below what is current now, for the length of a block.

        A stream that starts in the block has the span current now as its parent; a later one not.
        """
        before = (self.parent_context, self.parent_span, self.span)
        token = self._attach()
        try:
            yield
        finally:
            _detach(token)
            if self.stream is None:
                self.parent_context, self.parent_span, self.span = before

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


def _detach(token: Token[Context]) -> bool:
    """Undoes an attach; returns whether it could. By the token, since the API logs a failure."""
    try:
        token.var.reset(token)
    except ValueError:
        # The frame is garbage, not run to its end, and closed in another context.
        return False
    return True


class _HidingContext(Context):
    """A request's context below no span: it shows the proxy only once the stream has started."""

    def get(self, key: Any, default: Any = None) -> Any:
        value = super().get(key, default)
        if key == _SPAN_KEY and isinstance(value, RequestSpan) and value.span is INVALID_SPAN:
            return default
        return value


# The request that the running code serves.
current_request: ContextVar[RequestSpan | None] = ContextVar("otel_sse_request", default=None)
