"""A request, before and while it is a stream: how ``current()`` finds it, and its context.

A request that is no stream must not notice: no OpenTelemetry context is attached for it. What
``current()`` needs is a context variable of our own, ``current_request``, set for each request.

A context is attached where the stream starts, in the call that sends the response's start: most
generators run on in that task, or in tasks that it starts later. Three kinds of application start
the work of their stream earlier, or in another task: FastAPI's own event streams, sse-starlette's
``data_sender_callable``, and a route inside a BaseHTTPMiddleware of its own. For those the hook
attaches it earlier (``servers/starlette.py``).

A WSGI server runs the application's code piece by piece, and may run other code in the same thread
in between: there the context is attached and detached around each piece, ``resume`` and
``suspend``.

The application may have a span of its own current in any of these places. Then nothing is
attached, or its further spans would lose that parent.
"""

from __future__ import annotations

from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, get_current_span, set_span_in_context

from otel_sse.semconv import MAX_DROP_REASONS, OTHER
from otel_sse.stream.request_span import RequestSpan, find_parent

if TYPE_CHECKING:
    from contextvars import Token


class RequestStream(Protocol):
    """The stream that a request became."""

    def mark_disconnected(self, *, cut: bool) -> None: ...

    def set_close_reason(self, reason: str) -> None: ...

    def record_dropped(self, n: int, reason: str) -> None: ...

    def on_response_end(self, *, delivered: bool = True) -> None: ...

    def close(
        self, error: BaseException | None = None, *, completed: bool = False, cut: bool = False
    ) -> None: ...


class RequestState:
    """What is known of a request.

    Attributes:
        started: the request's start, monotonic seconds.
        outer: the context around the server's call of the application.
        context: the context inside its middleware, where the framework shows that.
        span: the proxy, once it is attached.
        stream: the stream, from its start on.
        disconnected: the peer has disconnected.
        cut: it had to, because the server had begun to cut the stream.
        reason: the close reason that the application set before the stream started.
        dropped: what the application reported as dropped before that, by reason.
        error: what has left the application's handler, where a framework may have handled it.
        over: the application's call has returned.

    """

    __slots__ = (
        "_attached",
        "_previous",
        "_suspended",
        "_token",
        "context",
        "cut",
        "disconnected",
        "dropped",
        "error",
        "outer",
        "over",
        "reason",
        "span",
        "started",
        "stream",
    )

    def __init__(self) -> None:
        self.started = perf_counter()
        self.outer: Context = otel_context.get_current()
        self.context = self.outer
        self.span: RequestSpan | None = None
        self.stream: RequestStream | None = None
        self.disconnected = False
        self.cut = False
        self.reason: str | None = None
        self.dropped: dict[str, int] | None = None
        self.error: BaseException | None = None
        self.over = False
        # What is attached, and the token by which it is detached.
        self._attached: Context | None = None
        self._token: Token[Context] | None = None
        # While it is resumed the request that was current before; else the application's context.
        self._previous: RequestState | None = None
        self._suspended: Context | None = None

    def parent(self) -> tuple[Context, Span]:
        """The context around the request and the span in it, without one that has leaked."""
        if self.span is not None:
            context, span = self.context, self.span.parent_span
        else:
            context, span = self.context, find_parent(self.context)
            if span is INVALID_SPAN and self.outer is not context:
                # The middleware is left, and its span has ended: aiohttp sends some bodies then.
                context, span = self.outer, find_parent(self.outer)
        if span is INVALID_SPAN and get_current_span(context) is not INVALID_SPAN:
            context = set_span_in_context(INVALID_SPAN, context)
        return context, span

    def attach(self) -> None:
        """Makes the proxy the current span, once for a request; not where the application has a
        span of its own current.
        """
        current = get_current_span()
        outside = (get_current_span(self.context), get_current_span(self.outer))
        if self.span is not None or all(current is not each for each in outside):
            return
        self.span = RequestSpan(self.parent()[1])
        self._attached = self.span.in_context(otel_context.get_current())
        self._token = otel_context.attach(self._attached)

    def detach(self) -> None:
        """Undoes ``attach``, where what it attached is still current: a task that has ended has
        taken its context along.
        """
        token, self._token = self._token, None
        if token is not None and otel_context.get_current() is self._attached:
            otel_context.detach(token)

    def resume(self) -> None:
        """The application's code runs on, in a thread that has run other code since ``suspend``."""
        self._previous = current_request.get()
        current_request.set(self)
        if self.span is not None:
            context = self._suspended or self.span.in_context(otel_context.get_current())
            self._token = otel_context.attach(context)

    def suspend(self) -> None:
        """The application's code pauses: its context is kept until ``resume``, and what was current
        before is current again.
        """
        token, self._token = self._token, None
        if token is not None and self.span is not None:
            current = otel_context.get_current()
            # A context that is none of ours: the application, or what instruments it, has restored
            # one from before the stream.
            self._suspended = current if self.span.is_in(current) else None
            if self._suspended is not None:
                otel_context.detach(token)
        if current_request.get() is self:
            current_request.set(self._previous)
        self._previous = None

    def finish(self, previous: RequestState | None) -> None:
        """The application's call has returned; ``previous`` was the current request before it."""
        self.over = True
        self.detach()
        self._suspended = None
        if self.span is not None:
            self.span.detached = True
        if current_request.get() is self:
            # A leaked one keeps nothing of the one before it, or a connection would grow.
            current_request.set(None if previous is None or previous.over else previous)

    def mark_disconnected(self, *, cut: bool = False) -> None:
        """The peer has disconnected; ``cut``: after the server had begun to cut the stream."""
        if not self.disconnected:
            self.disconnected, self.cut = True, cut
            if self.stream is not None:
                self.stream.mark_disconnected(cut=cut)

    def set_close_reason(self, reason: str) -> None:
        self.reason = reason

    def record_dropped(self, n: int, reason: str) -> None:
        dropped = self.dropped = self.dropped or {}
        if len(dropped) >= MAX_DROP_REASONS and reason not in dropped:
            reason = OTHER
        dropped[reason] = dropped.get(reason, 0) + n


# The request that the running code serves.
current_request: ContextVar[RequestState | None] = ContextVar("otel_sse_request", default=None)
