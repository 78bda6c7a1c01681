"""Any ASGI application: ``SSEMiddleware``, and the responder that watches one request.

The middleware is stateless; a responder belongs to one request. It hands every message on
before anything is told of it, so what is told is what really went out, and no error of the
telemetry can reach the application. Source of the rules: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from time import perf_counter
from typing import Any, Final

from opentelemetry.propagators.textmap import Getter

from otel_sse import lifecycle
from otel_sse.connection import Connection
from otel_sse.current import Request
from otel_sse.mark import Marker
from otel_sse.opening import Opening, is_stream
from otel_sse.server import stopping, transport_of
from otel_sse.telemetry import Providers, Telemetry

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

# In the scope of a request that is watched: its responder.
_KEY: Final = "otel_sse"
_BODIES: Final = ("http.response.body", "http.response.pathsend")


def telling(
    run: Callable[..., Awaitable[None]],
    telemetry_of: Callable[[Any], Telemetry | None],
    route_of: Callable[..., tuple[str | None, bool]] | None = None,
) -> Callable[[Any, Scope, Receive, Send], Awaitable[None]]:
    """An ASGI ``__call__`` that runs ``run`` with the same arguments, and tells its stream.

    Args:
        run: takes the owner of the call, scope, receive and send.
        telemetry_of: gives where the owner tells, or None where it does not.
        route_of: gives the route when a stream starts, and whether it is of the whole path; it
            takes the owner, the path that came before it, and the scope.

    """

    async def call(owner: Any, scope: Scope, receive: Receive, send: Send) -> None:
        telemetry = telemetry_of(owner)
        if telemetry is None or scope["type"] != "http":
            if telemetry is not None and scope["type"] == "lifespan":
                send = _flushing(send)
            await run(owner, scope, receive, send)
            return
        route = None
        if route_of is not None:
            # The path before it, as it is now: routing changes that.
            route = (route_of, owner, scope.get("root_path", ""))
        outer: Responder | None = scope.get(_KEY)
        if outer is not None:
            outer.route = outer.route or route
            await _run_within(outer, run, owner, scope, receive, send)
            return
        request = Request()
        request.enter()
        scope[_KEY] = responder = Responder(telemetry, request, scope, receive, send)
        # Not kept in this frame, which lives as long as the stream.
        responder.route, route = route, None
        try:
            await run(owner, scope, responder.receive, responder.send)
        except BaseException as error:
            if request.connection is not None:
                request.connection.end(error, cut=stopping(send))
            raise
        else:
            if request.connection is not None:
                request.connection.end(cut=stopping(send))
        finally:
            scope.pop(_KEY, None)
            request.exit()

    return call


def _flushing(send: Send) -> Send:
    """``send`` of a lifespan. What comes after its end may be the process's own, unannounced."""

    async def flushing(message: Message) -> None:
        kind = message.get("type") if isinstance(message, MutableMapping) else None
        if kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            await lifecycle.exit_.flush()
        await send(message)

    return flushing


async def _run_within(
    outer: Responder, run: Any, owner: Any, scope: Scope, receive: Receive, send: Send
) -> None:
    """Runs what is part of a request that is watched already.

    Where something has wrapped ``send`` since, which may code the bytes or have a span of its
    own, the request is watched from inside that.
    """
    if send == outer.send:
        await run(owner, scope, receive, send)
        return
    scope[_KEY] = outer.inner = inner = outer.within(send)
    try:
        with outer.request.below():
            await run(owner, scope, receive, inner.send)
    except Exception as error:
        # What is outside may still wait for a client that does not read.
        inner.failed(error)
        raise
    finally:
        scope[_KEY], outer.inner = outer, None


class SSEMiddleware:
    """Tells the event streams of an ASGI application.

    Put it innermost, inside other instrumentation, so that its spans are children of theirs.
    Everything that is not a stream, and every byte of one, passes unchanged.

    Args:
        app: the application.
        tracer_provider: the global one by default, as the other two.
        meter_provider: likewise.
        logger_provider: likewise.
        options: those of the contract, such as ``stall_seconds=30``.

    Raises:
        ValueError: an option has a bad value.
        TypeError: there is no such option.

    """

    def __init__(
        self,
        app: App,
        *,
        tracer_provider: Any = None,
        meter_provider: Any = None,
        logger_provider: Any = None,
        **options: Any,
    ) -> None:
        self.app = app
        providers = Providers(tracer_provider, meter_provider, logger_provider)
        self._telemetry = lifecycle.obtain(SSEMiddleware, providers, options)

    __call__ = telling(
        lambda self, scope, receive, send: self.app(scope, receive, send),
        lambda self: self._telemetry,
    )


class Responder:
    """Watches the messages of one request."""

    __slots__ = "_connection _receive _scope _send _telemetry inner request route".split()

    def __init__(
        self, telemetry: Telemetry, request: Request, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._telemetry = telemetry
        self.request = request
        self._scope = scope
        self._receive = receive
        self._send = send
        self._connection: Connection | None = None
        # The responder that watches in its stead.
        self.inner: Responder | None = None
        # How to find the route: a function and what it takes before the scope.
        self.route: tuple[Any, ...] | None = None

    def within(self, send: Send) -> Responder:
        """A responder for the same request, which watches what comes to ``send``."""
        inner = Responder(self._telemetry, self.request, self._scope, self._receive, send)
        inner.route = self.route
        return inner

    def failed(self, error: Exception) -> None:
        """The application raised; what it is inside of may not have ended yet."""
        if self._connection is not None:
            self._connection.end(error, cut=stopping(self._send))

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.request.left()
        return message

    async def send(self, message: Message) -> None:
        connection = self._connection
        if connection is None:
            await self._send(message)
            self._look(message)
            return
        try:
            # Middleware outside may code the body in place.
            kind, body = message["type"], message.get("body", b"")
        except Exception:
            # Whatever that is, it is the server's to judge.
            await self._send(message)
            return
        last = not message.get("more_body", False) and kind in _BODIES
        # A peer that leaves while this is sent has not left before it.
        gone = connection.left() if last else connection.gone
        began = perf_counter()
        try:
            await self._send(message)
        except BaseException as error:
            connection.interrupted(None if gone else body, began, error)
            if last and not gone and connection.gone and not isinstance(error, Exception):
                # Cancelled, since it is told that nobody listens: a server may say so at the end.
                connection.gone = False
                connection.end(completed=not connection.left())
            raise
        if kind == "http.response.body" and not gone:
            connection.sent(body, began, perf_counter())
        if last:
            connection.end(completed=not gone)

    def _look(self, message: Message) -> None:
        """Begins to tell the stream that ``message`` starts, if it does."""
        try:
            if message["type"] != "http.response.start":
                return
            content_type = _text(message.get("headers", ()), b"content-type")
            if not is_stream(self._scope["method"], message["status"], content_type):
                return
            # Once the application has returned nobody would end what a task of it starts.
            over = _KEY not in self._scope
            if over or self.inner is not None or self.request.connection is not None:
                return
            route, self.route = self.route, None
            opening = self._opening(message["status"], route or (None,))
            if opening is not None:
                self._connection = lifecycle.open_connection(self._telemetry, opening, self.request)
                if self._telemetry.config.propagate and _may_grow(message.get("headers", ())):
                    self._send = _marking(self._send)
        except Exception:
            self._telemetry.failed("a connection's start")

    def _opening(self, status: int, route: tuple[Any, ...]) -> Opening | None:
        scope = self._scope
        headers = scope["headers"]
        scheme, path = scope.get("scheme", "http"), scope["path"]
        host = _text(headers, b"host")
        if self._telemetry.config.excludes(f"{scheme}://{host}{path}"):
            return None
        client = scope.get("client")
        route_of, *before = route
        # A framework without a hook of its own may say it in the scope, as Litestar does.
        template = scope.get("path_template")
        known, whole = route_of(*before, scope) if route_of else (template, template is not None)
        return Opening(
            method=scope["method"],
            route=known,
            scheme=scheme,
            known_path=path if whole else None,
            client=str(client[0]) if client else None,
            user_agent=_first(headers, b"user-agent") or None,
            protocol=scope.get("http_version", "1.1"),
            status=status,
            resumed=_first(headers, b"last-event-id") is not None,
            carrier=headers,
            getter=_getter,
            transport=transport_of(self._send) or transport_of(self._receive),
        )


def _first(headers: Headers, wanted: bytes) -> bytes | None:
    for name, value in headers:
        if len(name) == len(wanted) and name.lower() == wanted:
            return value
    return None


def _text(headers: Headers, wanted: bytes) -> str:
    return (_first(headers, wanted) or b"").decode("latin-1")


def _may_grow(headers: Headers) -> bool:
    """Whether bytes may be put into a body: none of its length or coding is told yet."""
    names = (b"content-length", b"content-encoding")
    return all(_first(headers, name) in (None, b"identity") for name in names)


def _marking(send: Send) -> Send:
    marker = Marker()

    async def marking(message: Message) -> None:
        if message["type"] == "http.response.body" and message.get("body"):
            message = {**message, "body": marker.mark(message["body"])}
        await send(message)

    return marking


class _HeaderGetter(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        wanted = key.lower().encode("latin-1")
        found = [value.decode("latin-1") for name, value in carrier if name.lower() == wanted]
        return found or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_getter: Final = _HeaderGetter()
