"""The request that the running code serves: its span, its connection, its context.

A stream starts where no context can be attached any more: in a ``send`` that runs in another
task, or in the middle of a generator. So one context is attached for each request, before it is
known whether it will be a stream, and detached in the same frame. Its current span is a proxy,
which stands for the enclosing span until the stream starts and for the current segment from
then on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanContext,
    get_current_span,
    set_span_in_context,
)

from otel_sse.semconv import CLOSE_REASONS, MAX_DROP_REASONS, OTHER

if TYPE_CHECKING:
    from contextvars import Token

    from otel_sse.connection import Connection

_log = logging.getLogger("otel_sse")

# The key under which the API keeps the current span.
(_SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())
_NOTHING: Final = Context()


def _to_span(method: str) -> Any:
    def call(request: Request, *args: Any, **kwargs: Any) -> None:
        getattr(request.span, method)(*args, **kwargs)

    return call


class Request(Span):
    """The proxy span of a request, and the connection that the request became, if it did."""

    __slots__ = (
        "_around _attached ambient connection dropped enclosing gone reason span started"
    ).split()

    def __init__(self) -> None:
        # The request's start, monotonic seconds.
        self.started = perf_counter()
        # What the running code served when this request came, and how to get its context back.
        self._around: Request | None = None
        self._attached: Token[Context] | None = None
        # The context above the stream, the span in it, and what stands for that now.
        self.ambient: Context
        self.enclosing: Span = INVALID_SPAN
        self.span: Span = INVALID_SPAN
        self.connection: Connection | None = None
        # The peer has left.
        self.gone = False
        # What the application said before the stream started: its end's reason, and what was
        # dropped, by reason.
        self.reason: str | None = None
        self.dropped: dict[str, int] | None = None

    def left(self) -> None:
        """The peer has left, before the stream's start or within it."""
        self.gone = True
        if self.connection is not None:
            self.connection.gone = True

    def say_reason(self, reason: str) -> None:
        self.reason = reason

    def say_dropped(self, n: int, reason: str) -> None:
        dropped = self.dropped = self.dropped or {}
        if len(dropped) >= MAX_DROP_REASONS and reason not in dropped:
            reason = OTHER
        dropped[reason] = dropped.get(reason, 0) + n

    def enter(self) -> None:
        """Makes this what the running code serves and its current span, until ``exit``."""
        self._around = serving.get()
        # Its token would weigh more than what it would put back.
        serving.set(self)
        self._attached = self._attach()

    def exit(self) -> None:
        """Takes back ``enter``, at the end of the same frame."""
        if self._attached is not None and _detach(self._attached):
            serving.set(self._around)
        # A server may begin the next request of a kept-alive connection in this one's context, and
        # so on for ever: what that one then keeps of this one keeps nothing itself.
        self._around = self._attached = None
        self.ambient = _NOTHING

    def _attach(self) -> Token[Context]:
        """Makes this the current span below what is current now; detaching takes the token.

        A span or a request that is over is not around this one: servers let contexts leak from
        the request before on a kept-alive connection.
        """
        ambient = otel_context.get_current()
        if _SPAN_KEY in ambient:
            enclosing = get_current_span(ambient)
            left = False
            if isinstance(enclosing, Request) and enclosing is not self:
                left, enclosing = enclosing._attached is None, enclosing.span
            around = enclosing.get_span_context()
            over = not enclosing.is_recording() and around.trace_flags.sampled
            if left or (over and not around.is_remote):
                enclosing = INVALID_SPAN
                ambient = set_span_in_context(INVALID_SPAN, ambient)
            if enclosing is not self and self.connection is None:
                self.enclosing = self.span = enclosing
        self.ambient = ambient
        context = _Ambient(ambient) if self.span is INVALID_SPAN else Context(ambient)
        # Not by set_value, which copies twice more.
        dict.__setitem__(context, _SPAN_KEY, self)
        return otel_context.attach(context)

    def is_current(self) -> bool:
        """Whether it is the current span, though it may not show yet."""
        return dict.get(otel_context.get_current(), _SPAN_KEY) is self

    @contextmanager
    def below(self) -> Iterator[None]:
        """Attaches below what is current now, for the length of a block.

        A stream that starts in the block has that for its enclosing span; a later one has not.
        """
        before = (self.ambient, self.enclosing, self.span)
        token = self._attach()
        try:
            yield
        finally:
            _detach(token)
            if self.connection is None:
                self.ambient, self.enclosing, self.span = before

    def get_span_context(self) -> SpanContext:
        return self.span.get_span_context()

    def is_recording(self) -> bool:
        return self.span.is_recording()

    set_attributes = _to_span("set_attributes")
    set_attribute = _to_span("set_attribute")
    add_event = _to_span("add_event")
    add_link = _to_span("add_link")
    update_name = _to_span("update_name")
    set_status = _to_span("set_status")
    record_exception = _to_span("record_exception")

    def end(self, *args: Any, **kwargs: Any) -> None:
        """Ends an enclosing span as asked; a segment is ended by its connection alone."""
        if self.span is self.enclosing:
            self.span.end(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # What an SDK's span has beyond the API, for whoever looks: name, kind, attributes …
        return getattr(self.span, name)


def _detach(token: Token[Context]) -> bool:
    """Takes back an attach; whether it could. By the token, because the API logs a failure."""
    try:
        token.var.reset(token)
    except ValueError:
        # The frame is freed, not run to its end, and its context has gone before.
        return False
    return True


class _Ambient(Context):
    """A request's context where no span encloses it: it shows one only once the stream has begun.

    Other instrumentations take any current span for their parent and then honour no
    ``traceparent``; they must not meet the proxy of a request that is no stream.
    """

    def get(self, key: Any, default: Any = None) -> Any:
        value = super().get(key, default)
        if key == _SPAN_KEY and isinstance(value, Request) and value.span is INVALID_SPAN:
            return default
        return value


# The request that the running code serves.
serving: ContextVar[Request | None] = ContextVar("otel_sse_request", default=None)


class Current:
    """What an application says of the stream that it serves; see ``current``."""

    __slots__ = ("_request",)

    def __init__(self, request: Request | None) -> None:
        self._request = request

    def set_close_reason(self, reason: str) -> None:
        """Says why the stream is about to end; it wins over what the instrumentation sees.

        Args:
            reason: a value of ``sse.close.reason``; any other is logged and ignored.

        """
        if reason not in CLOSE_REASONS:
            _log.warning(
                "otel_sse: current().set_close_reason(%r) is ignored: it takes %s",
                reason,
                ", ".join(CLOSE_REASONS),
            )
            return
        self._say("say_reason", reason)

    def record_dropped(self, n: int = 1, reason: str = "unknown") -> None:
        """Says that the application left ``n`` messages out of the stream, and why.

        Args:
            n: messages, 1 or more; any other number is logged and ignored.
            reason: a word of the application's; the first 16 that a process uses are told.

        """
        if not isinstance(n, int) or n < 1:
            _log.warning("otel_sse: current().record_dropped(%r) is ignored: n is 1 or more", n)
            return
        self._say("say_dropped", n, str(reason))

    def _say(self, verb: str, *words: Any) -> None:
        request = self._request
        if request is not None:
            getattr(request.connection or request, verb)(*words)


def current() -> Current:
    """The stream that the running code serves; outside of one, what is said to it is lost.

    It may be taken before the stream starts, and kept.
    """
    return Current(serving.get())
