"""Any ASGI application: ``SSEMiddleware``, and the observer of one request.

The middleware is stateless; an observer belongs to one request. It passes every message on before
anything is recorded of it, so what is recorded is what really went out, and no error of the
telemetry reaches the application. Source of the rules: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from time import perf_counter
from typing import Any, Final

from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import TracerProvider

from otel_sse.process.server_facts import find_transport, route_in_scope
from otel_sse.process.server_stops import is_server_stopping
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request_span import RequestSpan
from otel_sse.stream.server import ServerStream
from otel_sse.stream.sharing import acquire_telemetry, open_server_stream, shutdown_handler
from otel_sse.telemetry.providers import Providers
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream
from otel_sse.wire.trace_comment import TraceCommentWriter

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

# The key of the observer in the scope of its request.
_KEY: Final = "otel_sse"
_BODIES: Final = ("http.response.body", "http.response.pathsend")


def wrap_asgi_app(
    run: Callable[..., Awaitable[None]],
    telemetry_of: Callable[[Any], Telemetry | None],
    route_of: Callable[..., tuple[str | None, bool]] | None = None,
) -> Callable[[Any, Scope, Receive, Send], Awaitable[None]]:
    """An ASGI ``__call__`` that runs ``run`` with the same arguments and records its stream.

    Args:
        run: takes the owner of the call, scope, receive and send.
        telemetry_of: gives the owner's telemetry, or None where nothing is to be recorded.
        route_of: gives the route when a stream starts, and whether it matches the whole path; it
            takes the owner, the root path as it was before routing, and the scope.

    """

    async def call(owner: Any, scope: Scope, receive: Receive, send: Send) -> None:
        telemetry = telemetry_of(owner)
        if telemetry is None or scope["type"] != "http":
            if telemetry is not None and scope["type"] == "lifespan":
                send = _exporting(telemetry, send)
            await run(owner, scope, receive, send)
            return
        route = None
        if route_of is not None:
            # The root path is read now: routing changes it.
            route = (route_of, owner, scope.get("root_path", ""))
        outer: RequestObserver | None = scope.get(_KEY)
        if outer is not None:
            outer.route = outer.route or route
            await _run_nested(outer, run, owner, scope, receive, send)
            return
        request = RequestSpan()
        request.attach()
        scope[_KEY] = observer = RequestObserver(telemetry, request, scope, receive, send)
        # Not held by this frame, which lives as long as the stream.
        observer.route, route = route, None
        try:
            await run(owner, scope, observer.receive, observer.send)
        except BaseException as error:
            if request.stream is not None:
                request.stream.close(error, cut=is_server_stopping(send))
            raise
        else:
            if request.stream is not None:
                request.stream.close(cut=is_server_stopping(send))
        finally:
            scope.pop(_KEY, None)
            request.detach()

    return call


def _exporting(telemetry: Telemetry, send: Send) -> Send:
    """``send`` of a lifespan: after its end the process may end without any other sign."""

    async def exporting(message: Message) -> None:
        kind = message.get("type") if isinstance(message, MutableMapping) else None
        if kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            try:
                await shutdown_handler.export()
            except Exception:
                telemetry.failures.log_failure_once("the lifespan's end")
        await send(message)

    return exporting


async def _run_nested(
    outer: RequestObserver, run: Any, owner: Any, scope: Scope, receive: Receive, send: Send
) -> None:
    """Runs a part of a request that is observed already.

    Where middleware in between has wrapped ``send``, which may encode the bytes or have a span of
    its own, the request is observed from inside that.
    """
    if send == outer.send:
        await run(owner, scope, receive, send)
        return
    scope[_KEY] = outer.inner = inner = outer.nested(send)
    try:
        with outer.request.attach_below_current():
            await run(owner, scope, receive, inner.send)
    except Exception as error:
        # Closed here: what is outside may go on waiting for a client that does not read.
        inner.close(error)
        raise
    finally:
        scope[_KEY], outer.inner = outer, None


class SSEMiddleware:
    """Records the event streams of an ASGI application.

    Put it innermost, inside other instrumentation, so that its spans are children of theirs.
    Everything that is not a stream, and every byte of one, passes unchanged.

    Args:
        app: the application.
        tracer_provider: the global one by default, as the other two.
        meter_provider: likewise.
        logger_provider: likewise.
        options: those of ``config.Config``, such as ``stall_seconds=30``.

    Raises:
        ValueError: an option has a bad value.
        TypeError: there is no such option.

    """

    def __init__(
        self,
        app: App,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        **options: Any,
    ) -> None:
        self.app = app
        providers = Providers(tracer_provider, meter_provider, logger_provider)
        self._telemetry = acquire_telemetry(SSEMiddleware, providers, options)

    __call__ = wrap_asgi_app(
        lambda self, scope, receive, send: self.app(scope, receive, send),
        lambda self: self._telemetry,
    )


class RequestObserver:
    """Observes the messages of one request.

    Attributes:
        request: the request's proxy span.
        inner: the observer that observes in its place, inside of a middleware.
        route: how to find the route: a function and its arguments before the scope.

    """

    __slots__ = (
        "_receive",
        "_scope",
        "_send",
        "_stream",
        "_telemetry",
        "inner",
        "request",
        "route",
    )

    def __init__(
        self,
        telemetry: Telemetry,
        request: RequestSpan,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._telemetry = telemetry
        self.request = request
        self._scope = scope
        self._receive = receive
        self._send = send
        self._stream: ServerStream | None = None
        self.inner: RequestObserver | None = None
        self.route: tuple[Any, ...] | None = None

    def nested(self, send: Send) -> RequestObserver:
        """An observer of the same request, of what comes to ``send``."""
        inner = RequestObserver(self._telemetry, self.request, self._scope, self._receive, send)
        inner.route = self.route
        return inner

    def close(self, error: Exception) -> None:
        """The application raised ``error``; what is around it may not have ended yet."""
        if self._stream is not None:
            self._stream.close(error, cut=is_server_stopping(self._send))

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.request.mark_disconnected()
        return message

    async def send(self, message: Message) -> None:
        stream = self._stream
        if stream is None:
            await self._send(message)
            self._maybe_start_stream(message)
            return
        try:
            # Read before the send: middleware outside may encode the body in place.
            kind, body = message["type"], message.get("body", b"")
        except Exception:
            # Not an ASGI message: the server refuses it as it would without us.
            await self._send(message)
            return
        if kind == "http.response.start" and self._is_stopping():
            # The application has given up the stream, and starts a response that comes too late.
            stream.close(cut=True)
        last = not message.get("more_body", False) and kind in _BODIES
        # A peer that disconnects during this send was there when it began.
        disconnected = stream.check_disconnected() if last else stream.disconnected
        began = perf_counter()
        try:
            await self._send(message)
        except BaseException as error:
            stream.on_send_error(None if disconnected else body, began, error)
            now_gone = last and not disconnected and stream.disconnected
            if now_gone and not isinstance(error, Exception):
                # Cancelled because of the disconnect, which a server may report at the end of
                # every response: the stream is complete, unless its transport is closed.
                stream.disconnected = False
                stream.close(completed=not stream.check_disconnected())
            raise
        if kind == "http.response.body" and not disconnected:
            stream.on_send(body, began, perf_counter())
        if last:
            stream.close(completed=not disconnected)

    def _is_stopping(self) -> bool:
        return self._telemetry.stopping or is_server_stopping(self._send)

    def _maybe_start_stream(self, message: Message) -> None:
        """Starts to record the stream that ``message`` starts, if it does."""
        try:
            if message["type"] != "http.response.start":
                return
            content_type = _text(message.get("headers", ()), b"content-type")
            if not is_event_stream(self._scope["method"], message["status"], content_type):
                return
            # After the application has returned nothing would close what a task of it starts.
            returned = _KEY not in self._scope
            if returned or self.inner is not None or self.request.stream is not None:
                return
            route, self.route = self.route, None
            info = self._stream_info(message["status"], route or (None,))
            if info is not None:
                self._stream = open_server_stream(self._telemetry, info, self.request)
                shutdown_handler.observe_server(self._send)
                if self._stream is not None and self._telemetry.config.propagate:
                    self._write_trace_comments(message.get("headers", ()))
        except Exception:
            self._telemetry.failures.log_failure_once("a stream's start")

    def _write_trace_comments(self, headers: Headers) -> None:
        """Only where the body may grow: neither its length nor its coding is settled."""
        names = (b"content-length", b"content-encoding")
        if all(_first(headers, name) in (None, b"identity") for name in names):
            self._send = _with_trace_comments(self._send)

    def _stream_info(self, status: int, route: tuple[Any, ...]) -> ServerStreamInfo | None:
        """What is known of the stream; None where its URL is excluded."""
        scope = self._scope
        headers = scope["headers"]
        scheme, path = scope.get("scheme", "http"), scope["path"]
        host = _text(headers, b"host")
        if self._telemetry.config.excludes(f"{scheme}://{host}{path}"):
            return None
        client = scope.get("client")
        route_of, *arguments = route
        template = route_in_scope(scope)
        known, whole = route_of(*arguments, scope) if route_of else (template, template is not None)
        return ServerStreamInfo(
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
            transport=find_transport(self._send) or find_transport(self._receive),
        )


def _first(headers: Headers, wanted: bytes) -> bytes | None:
    for name, value in headers:
        if len(name) == len(wanted) and name.lower() == wanted:
            return value
    return None


def _text(headers: Headers, wanted: bytes) -> str:
    return (_first(headers, wanted) or b"").decode("latin-1")


def _with_trace_comments(send: Send) -> Send:
    writer = TraceCommentWriter()

    async def inserting(message: Message) -> None:
        if message["type"] == "http.response.body" and message.get("body"):
            message = {**message, "body": writer.insert(message["body"])}
        await send(message)

    return inserting


class _HeaderGetter(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        wanted = key.lower().encode("latin-1")
        found = [value.decode("latin-1") for name, value in carrier if name.lower() == wanted]
        return found or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_getter: Final = _HeaderGetter()
