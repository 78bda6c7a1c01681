"""Any ASGI application: ``SSEMiddleware``, and the responder that watches one request.

The middleware is stateless; a responder belongs to one request. It hands every message on
before it looks at it, so what is told is what really went out, and no error of the telemetry
can reach the application. Source of the rules: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from time import perf_counter
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.propagators.textmap import Getter

from otel_sse import lifecycle
from otel_sse.backlog import transport_of
from otel_sse.connection import Connection, Opening, is_stream
from otel_sse.current import Request, serving
from otel_sse.telemetry import Providers, Telemetry

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

# In the scope of a request that is watched: its responder.
_KEY: Final = "otel_sse"


class SSEMiddleware:
    """Tells the event streams of an ASGI application.

    Put it innermost, inside other instrumentation, so that its spans are children of theirs.
    Everything that is not a stream, and every byte of one, passes unchanged.

    Args:
        app: the application.
        tracer_provider, meter_provider, logger_provider: the global ones by default.
        options: those of the contract, such as ``stall_seconds=30``.

    Raises:
        ValueError, TypeError: an option is bad.

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await serve(self._telemetry, self.app, scope, receive, send)


async def serve(
    telemetry: Telemetry,
    app: App,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    route: Callable[[], str | None] | None = None,
    server_send: Any = None,
) -> None:
    """Runs ``app`` and tells its stream, if it answers with one.

    ``route`` is asked when the stream starts. ``server_send`` is the server's own ``send``, where
    another is given. A request that is watched already learns its route; and where something has
    wrapped ``send`` since, which may code the bytes or have a span of its own, it is watched from
    inside that from here on.
    """
    if scope["type"] != "http":
        await app(scope, receive, send)
        return
    outer: Responder | None = scope.get(_KEY)
    if outer is not None:
        if outer.route is None:
            outer.route = route
        if send == outer.send:
            await app(scope, receive, send)
            return
        scope[_KEY] = outer.inner = outer.within(send)
        try:
            with outer.request.below():
                await app(scope, receive, outer.inner.send)
        finally:
            scope[_KEY], outer.inner = outer, None
        return
    request = Request()
    attached, served = request.attach(), serving.set(request)
    scope[_KEY] = responder = Responder(telemetry, request, scope, receive, send)
    responder.route = route
    responder.server_send = server_send
    try:
        await app(scope, responder.receive, responder.send)
    except BaseException as error:
        if request.connection is not None:
            request.connection.end(error)
        raise
    else:
        if request.connection is not None:
            request.connection.end()
    finally:
        scope.pop(_KEY, None)
        serving.reset(served)
        otel_context.detach(attached)


class Responder:
    """Watches the messages of one request."""

    route: Callable[[], str | None] | None = None
    server_send: Any = None
    # The responder that watches in its stead.
    inner: Responder | None = None
    _connection: Connection | None = None

    def __init__(
        self, telemetry: Telemetry, request: Request, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._telemetry = telemetry
        self.request = request
        self._scope = scope
        self._receive = receive
        self._send = send

    def within(self, send: Send) -> Responder:
        """A responder for the same request, which watches what comes to ``send``."""
        inner = Responder(self._telemetry, self.request, self._scope, self._receive, send)
        inner.route, inner.server_send = self.route, self.server_send or self._send
        return inner

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.request.left()
        return message

    async def send(self, message: Message) -> None:
        connection = self._connection
        if connection is None:
            await self._send(message)
            if message["type"] == "http.response.start" and _may_stream(message):
                self._start(message)
            return
        # Middleware outside may code the body in place.
        body = message.get("body", b"")
        began = perf_counter()
        try:
            await self._send(message)
        except BaseException as error:
            connection.interrupted(body, began, error)
            raise
        kind = message["type"]
        if kind == "http.response.body":
            connection.sent(body, began, perf_counter())
            if not message.get("more_body", False):
                connection.end(completed=True)
        elif kind == "http.response.pathsend":
            connection.end(completed=True)

    def _start(self, message: Message) -> None:
        if self.inner is not None or self.request.connection is not None:
            return
        try:
            content_type = _first(message.get("headers", ()), b"content-type") or ""
            if not is_stream(self._scope["method"], message["status"], content_type):
                return
            opening = self._opening(message["status"])
            if opening is not None:
                self._connection = lifecycle.open_connection(self._telemetry, opening, self.request)
        except Exception:
            self._telemetry.failed("a connection's start")

    def _opening(self, status: int) -> Opening | None:
        scope = self._scope
        headers = scope["headers"]
        scheme, path = scope.get("scheme", "http"), scope["path"]
        host = _first(headers, b"host") or ""
        if self._telemetry.config.excludes(f"{scheme}://{host}{path}"):
            return None
        client = scope.get("client")
        return Opening(
            method=scope["method"],
            # A framework without a hook of its own may say it in the scope, as Litestar does.
            route=self.route() if self.route is not None else scope.get("path_template"),
            scheme=scheme,
            path=path,
            client=str(client[0]) if client else None,
            user_agent=_first(headers, b"user-agent"),
            protocol=scope.get("http_version", "1.1"),
            status=status,
            resumed=_first(headers, b"last-event-id") is not None,
            carrier=headers,
            getter=_getter,
            transport=transport_of(self.server_send or self._send),
        )


def _may_stream(message: Message) -> bool:
    """Says no, quickly, to nearly every response that is no stream."""
    for name, value in message.get("headers", ()):
        if name == b"content-type":
            return b"stream" in value.lower()
    return True


def _first(headers: Headers, wanted: bytes) -> str | None:
    for name, value in headers:
        if name == wanted or name.lower() == wanted:
            return value.decode("latin-1")
    return None


class _HeaderGetter(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        wanted = key.lower().encode("latin-1")
        found = [value.decode("latin-1") for name, value in carrier if name.lower() == wanted]
        return found or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_getter: Final = _HeaderGetter()
