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

import contextvars
from contextvars import ContextVar, copy_context
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, get_current_span, set_span_in_context

from otel_sse.process.thread_context import INHERITS, is_inherited
from otel_sse.semconv import MAX_DROP_REASONS, OTHER
from otel_sse.stream.request_span import RequestSpan, find_parent

if TYPE_CHECKING:
    from contextvars import Token


class RequestStream(Protocol):
    """The stream that a request became."""

    def mark_disconnected(self, *, cut: bool) -> None: ...

    def set_close_reason(self, reason: str) -> None: ...

    def record_dropped(self, n: int, reason: str) -> None: ...

    def is_over(self) -> bool: ...

    def on_response_end(self, *, delivered: bool = True) -> None: ...

    def close(
        self, error: BaseException | None = None, *, completed: bool = False, cut: bool = False
    ) -> None: ...


class RequestState:
    """What is known of a request that is a stream, or of which its application has reported.

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

    """

    __slots__ = (
        "_attached",
        "_token",
        "context",
        "cut",
        "disconnected",
        "dropped",
        "error",
        "outer",
        "reason",
        "span",
        "started",
        "stream",
    )

    def __init__(self, started: float, outer: Context, context: Context) -> None:
        self.started = started
        self.outer = outer
        self.context = context
        self.span: RequestSpan | None = None
        self.stream: RequestStream | None = None
        self.disconnected = False
        self.cut = False
        self.reason: str | None = None
        self.dropped: dict[str, int] | None = None
        self.error: BaseException | None = None
        # What is attached, and the token by which it is detached.
        self._attached: Context | None = None
        self._token: Token[Context] | None = None

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
        self.reattach(self.span.in_context(otel_context.get_current()))

    def reattach(self, context: Context) -> None:
        """Attaches a context in which the proxy is."""
        self._attached = context
        self._token = otel_context.attach(context)

    def detach(self) -> None:
        """Undoes ``attach``, where what it attached is still current: a task that has ended has
        taken its context along.
        """
        token, self._token = self._token, None
        if token is not None and otel_context.get_current() is self._attached:
            otel_context.detach(token)

    def pause(self) -> Context | None:
        """Detaches what is current, wherever the application has got to since ``reattach``.

        Returns:
            What was current, to be attached again; None where that is none of ours: the
            application, or what instruments it, has restored one from before the stream.

        """
        token, self._token = self._token, None
        if token is None or self.span is None:
            return None
        current = otel_context.get_current()
        if current is not self._attached and not self.span.is_in(current):
            return None
        otel_context.detach(token)
        return current

    def finish(self) -> None:
        self.detach()
        if self.span is not None:
            self.span.detached = True

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


class HeldInScope:
    """What the scope or the environ of a request holds; an application may copy or pickle these."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The copy is of the same request."""
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Another process has no such request."""
        return type(None), ()


class Request(HeldInScope):
    """A request that may become a stream.

    Most do not, so it holds no more than what has to be known from the start: the rest is in
    ``state``, which is made when it is first asked for. A copy of the context variables takes less
    than to look up the current OpenTelemetry context in them.

    Attributes:
        known_state: ``state``, where it has been made; every stream has one.
        over: the application's call has returned.
        thread: where it is served; only known where threads inherit contexts.

    """

    __slots__ = ("_inside", "_outside", "_started", "known_state", "over", "thread")

    def __init__(self) -> None:
        self._started = perf_counter()
        if INHERITS:
            self.thread = get_ident()
            _leave_inherited_request()
        self._outside: contextvars.Context | None = copy_context()
        self._inside: contextvars.Context | None = None
        self.known_state: RequestState | None = None
        self.over = False

    @property
    def state(self) -> RequestState:
        state = self.known_state
        if state is None:
            outer = context = _current_context(self._outside)
            if self._inside is not None:
                context = _current_context(self._inside)
            state = self.known_state = RequestState(self._started, outer, context)
            self._outside = self._inside = None
        return state

    @property
    def stream(self) -> RequestStream | None:
        return None if self.known_state is None else self.known_state.stream

    def enter_middleware(self) -> None:
        """The context that is current now is the one inside the middleware."""
        if self.known_state is None:
            self._inside = copy_context()
        else:
            self.known_state.context = otel_context.get_current()

    def detach(self) -> None:
        """Undoes ``RequestState.attach``."""
        if self.known_state is not None:
            self.known_state.detach()

    def finish(self, previous: Request | None) -> None:
        """The application's call has returned; ``previous`` was the current request before it."""
        self.over = True
        self._outside = self._inside = None
        if self.known_state is not None:
            self.known_state.finish()
        elif previous is None:
            # One that was no stream stays the current one: it is over, and to set a context
            # variable takes long.
            return
        if current_request.get() is self:
            current_request.set(None if previous is None or previous.over else previous)


class PausedRequest(Request):
    """A request whose application runs piece by piece, with other code of the thread in between."""

    __slots__ = ("_context", "_resumed")

    def __init__(self) -> None:
        # As Request's, without a call of that: one takes as long as all this.
        self._started = perf_counter()
        if INHERITS:
            self.thread = get_ident()
            _leave_inherited_request()
        self._outside = copy_context()
        self._inside = None
        self.known_state = None
        self.over = False
        # While it is resumed, what makes the request before it the current one again.
        self._resumed: Token[Request | None] | None = None
        # While it is suspended, the application's context.
        self._context: Context | None = None

    def resume(self) -> None:
        """The application's code runs on, in a thread that has run other code since ``suspend``."""
        if INHERITS:
            self.thread = get_ident()
        self._resumed = current_request.set(self)
        state = self.known_state
        if state is not None and state.span is not None:
            state.reattach(self._context or state.span.in_context(otel_context.get_current()))

    def suspend(self) -> None:
        """The application's code pauses: its context is kept until ``resume``, and what was current
        before is current again.
        """
        if self.known_state is not None:
            self._context = self.known_state.pause()
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            try:
                current_request.reset(resumed)
            except ValueError:
                # The application runs each piece of its own in a context of its own.
                pass


def _current_context(variables: contextvars.Context | None) -> Context:
    """The OpenTelemetry context among ``variables``."""
    return Context() if variables is None else variables.run(otel_context.get_current)


# The request that the running code serves, or one that has started the thread; see
# ``find_current_request``.
current_request: ContextVar[Request | None] = ContextVar("otel_sse_request", default=None)


def find_current_request() -> Request | None:
    """The request that the running code serves: not one that this thread has only inherited."""
    request = current_request.get()
    if INHERITS and request is not None and is_inherited(current_request, request.thread):
        return None
    return request


def _leave_inherited_request() -> None:
    """Called where a request starts: a thread that another request has started serves it, and what
    it has inherited of that one is none of its own.
    """
    if current_request.get() is not find_current_request():
        current_request.set(None)
        if isinstance(get_current_span(), RequestSpan):
            otel_context.attach(Context())
