"""Any ASGI application: ``SSEMiddleware``, and the observer of one request.

The middleware is stateless; an observer belongs to one request. It passes every message on before
anything is recorded of it, so what is recorded is what really went out, and no error of the
telemetry reaches the application. Source of the rules: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from time import perf_counter
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import TracerProvider

from otel_sse.process.server_facts import find_transport, route_in_scope
from otel_sse.process.server_stops import is_server_stopping
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import Request, RequestState, current_request
from otel_sse.stream.server import ServerStream
from otel_sse.stream.sharing import acquire_telemetry, open_server_stream, shutdown_handler
from otel_sse.telemetry.providers import Providers
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream
from otel_sse.wire.opaque import is_encoded
from otel_sse.wire.trace_comment import TraceCommentWriter

_log = logging.getLogger("otel_sse")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]
RouteOf = Callable[[Any, dict[str, Any]], tuple["str | None", bool]]


# How to find a route: a function and its owner, the path and the root path before its routing,
# and the router around it. A plain tuple, since every request makes one.
Router = tuple["RouteOf | None", Any, str, str, "Router | None"]

# The key of the observer in the scope of its request.
_KEY: Final = "otel_sse"
# What headers usually are, and where there are none.
_PLAIN: Final = (list, tuple, type(None))
_BODIES: Final = ("http.response.body", "http.response.pathsend")


def wrap_asgi_app(
    run: Callable[..., Awaitable[None]],
    telemetry_of: Callable[[Any], Telemetry | None],
    route_of: RouteOf | None = None,
) -> Callable[[Any, Scope, Receive, Send], Awaitable[None]]:
    """An ASGI ``__call__`` that runs ``run`` with the same arguments and records its stream.

    Args:
        run: takes the owner of the call, scope, receive and send.
        telemetry_of: gives the owner's telemetry, or None where nothing is to be recorded.
        route_of: gives the route when a stream starts, and whether it matches the whole path; it
            takes the owner and a scope with the paths as they were before routing, and leaves in
            that the root path that it has reached.

    """

    async def call(owner: Any, scope: Scope, receive: Receive, send: Send) -> None:
        telemetry = telemetry_of(owner)
        if telemetry is None or scope["type"] != "http":
            if telemetry is not None and scope["type"] == "lifespan":
                send = _exporting(telemetry, send)
            await run(owner, scope, receive, send)
            return
        outer: RequestObserver | None = scope.get(_KEY)
        # The paths are read now: routing changes them, and so do some applications.
        around = None if outer is None else outer.router
        router: Router = (route_of, owner, scope["path"], scope.get("root_path", ""), around)
        if outer is not None:
            outer.router = router
            await _run_nested(outer, run, owner, scope, receive, send)
            return
        previous = current_request.get()
        observer = RequestObserver(telemetry, scope, receive, send)
        observer.router = router
        current_request.set(observer)
        scope[_KEY] = observer
        # Not held by this frame, which lives as long as the stream.
        del router
        try:
            await run(owner, scope, observer.receive, observer.send)
        except BaseException as error:
            if observer.stream is not None:
                observer.stream.close(error, cut=is_server_stopping(send))
            raise
        else:
            if observer.stream is not None:
                observer.stream.close(cut=is_server_stopping(send))
        finally:
            scope.pop(_KEY, None)
            observer.finish(previous)

    return call


def request_of(scope: Scope) -> Request | None:
    """The request of ``scope``, while it is observed."""
    request: Request | None = scope.get(_KEY)
    return request


def note_route(scope: Scope, route: str | None) -> None:
    """Notes the route of a framework that shows it only within its own call."""
    observer: RequestObserver | None = scope.get(_KEY)
    if observer is None or observer.router is None or not route:
        return
    found = (route, True)
    observer.router = (lambda *_: found, *observer.router[1:])


def attach_early(scope: Scope) -> RequestState | None:
    """Attaches the context of the request of ``scope`` before its response starts, unless the
    application has a span of its own current or the response has no body.

    Returns:
        The request, where that has been done.

    """
    observer: RequestObserver | None = scope.get(_KEY)
    if observer is None or observer.state.span is not None or scope["method"] == "HEAD":
        return None
    observer.state.attach()
    return observer.state


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
    state = outer.state
    context = state.context
    if state.stream is None:
        # A stream that starts in here has the span that is current now as its parent.
        state.context = otel_context.get_current()
    try:
        await run(owner, scope, receive, inner.send)
    except Exception as error:
        # Closed here: what is outside may go on waiting for a client that does not read.
        inner.close(error)
        raise
    finally:
        # The span that is the parent in here may not be one outside.
        state.detach()
        scope[_KEY], outer.inner = outer, None
        outer.router = outer.router and outer.router[4]
        if state.stream is None:
            state.context = context


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


class RequestObserver(Request):
    """Observes the messages of one request.

    Attributes:
        inner: the observer that observes in its place, inside of a middleware.
        router: how to find the route, until the stream starts.

    """

    __slots__ = (
        "_passes",
        "_receive",
        "_scope",
        "_send",
        "_stream",
        "_telemetry",
        "inner",
        "router",
    )

    def __init__(self, telemetry: Telemetry, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__()
        self._telemetry = telemetry
        self._scope = scope
        self._receive = receive
        self._send = send
        # The stream that it observes; an observer of the same request may observe it instead.
        self._stream: ServerStream | None = None
        # The response has started, and is no stream.
        self._passes = False
        self.inner: RequestObserver | None = None
        self.router: Router | None = None

    def nested(self, send: Send) -> RequestObserver:
        """An observer of the same request, of what comes to ``send``."""
        inner = RequestObserver(self._telemetry, self._scope, self._receive, send)
        inner._state = self.state
        inner.router = self.router
        return inner

    def close(self, error: Exception) -> None:
        """The application raised ``error``; what is around it may not have ended yet."""
        if self._stream is not None:
            self._stream.close(error, cut=is_server_stopping(self._send))

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.state.mark_disconnected(cut=is_server_stopping(self._receive))
        return message

    async def send(self, message: Message) -> None:
        stream = self._stream
        if stream is None:
            if self._passes or _starts_no_stream(message):
                self._passes = True
                await self._send(message)
                return
            message = _with_header_list(message)
            await self._send(message)
            self._on_start(message)
            return
        try:
            # Read before the send: middleware outside may encode the body in place, and a view may
            # be released.
            kind, body = message["type"], message.get("body", b"")
            if type(body) is memoryview:
                body = bytes(body)
        except Exception:
            # Not an ASGI message: the server refuses it as it would without us.
            await self._send(message)
            return
        if kind == "http.response.start":
            await self._send_second_start(stream, message)
            return
        last = not message.get("more_body", False) and kind in _BODIES
        # A peer that disconnects during this send was there when it began.
        disconnected = stream.disconnected
        if not disconnected and (transport := stream.transport) is not None:
            try:
                # Here rather than by a call of check_disconnected, since this is for every message.
                disconnected = transport.is_closing() and stream.check_disconnected()
            except Exception:
                # A transport of another make.
                stream.transport = None
        began = perf_counter()
        try:
            await self._send(message)
        except BaseException as error:
            stream.on_send_error(None if disconnected else body, began, error)
            if last and not isinstance(error, Exception):
                # Cancelled, often because of a disconnect, which a server may report at the end of
                # every response: the stream is complete, unless its transport is closed.
                stream.disconnected = disconnected
                stream.on_response_end(delivered=not stream.check_disconnected())
            raise
        if kind == "http.response.body" and not disconnected:
            stream.on_send(body, began, perf_counter())
        if last or disconnected:
            stream.on_response_end(delivered=not disconnected)

    async def _send_second_start(self, stream: ServerStream, message: Message) -> None:
        """Another response, of an application whose stream is over. The server raises, since a
        response has started: that is not the stream's error.
        """
        try:
            await self._send(message)
        except BaseException:
            cut = self._is_stopping()
            if cut or stream.is_over():
                stream.close(cut=cut)
            raise

    def _is_stopping(self) -> bool:
        return self._telemetry.stopping or is_server_stopping(self._send)

    def _on_start(self, message: Message) -> None:
        """Starts to record the stream that ``message`` starts, if it does."""
        try:
            if message["type"] != "http.response.start":
                return
            content_type = _joined(message.get("headers", ()), b"content-type")
            if not is_event_stream(self._scope["method"], message["status"], content_type):
                return
            # After the application has returned nothing would close what a task of it starts.
            returned = _KEY not in self._scope
            if returned or self.inner is not None or self.stream is not None:
                return
            router, self.router = self.router, None
            encoding = _joined(message.get("headers", ()), b"content-encoding")
            info = self._stream_info(message["status"], router, is_encoded(encoding))
            if info is not None:
                self._stream = open_server_stream(self._telemetry, info, self.state)
                shutdown_handler.observe_server(self._send)
                if self._stream is not None and self._telemetry.config.propagate:
                    self._write_trace_comments(message.get("headers", ()))
        except Exception:
            self._telemetry.failures.log_failure_once("a stream's start")

    def _write_trace_comments(self, headers: Headers) -> None:
        """Only where the body may grow: neither its length nor its coding is settled."""
        encoded = is_encoded(_joined(headers, b"content-encoding"))
        if not encoded and _first(headers, b"content-length") is None:
            self._send = _with_trace_comments(self._send)

    def _stream_info(
        self, status: int, router: Router | None, encoded: bool
    ) -> ServerStreamInfo | None:
        """What is known of the stream; None where its URL is excluded."""
        scope = self._scope
        headers = scope["headers"]
        scheme, path = scope.get("scheme", "http"), scope["path"]
        host = _text(headers, b"host")
        if self._telemetry.config.excludes(f"{scheme}://{host}{path}"):
            return None
        client = scope.get("client")
        route, whole = self._route(router)
        return ServerStreamInfo(
            method=scope["method"],
            route=route,
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
            encoded=encoded,
        )

    def _route(self, router: Router | None) -> tuple[str | None, bool]:
        """The route through all routers, and whether it matches the whole path."""
        routers: list[Router] = []
        while router is not None:
            routers.insert(0, router)
            router = router[4]
        route = reached = None
        for route_of, owner, path, root_path, _ in routers:
            # Mounts are followed into the routers below them. Where middleware stands in between,
            # the next router goes on from where the last one ended.
            if route_of is None or reached not in (None, root_path):
                continue
            scope = {**self._scope, "path": path, "root_path": root_path}
            try:
                part, whole = route_of(owner, scope)
            except Exception:
                # A router of another make: a missing route never costs the stream.
                _log.debug("otel_sse: the route is unknown", exc_info=True)
                break
            if route and part and not part.startswith("/"):
                # Django's begin without one.
                part = f"/{part}"
            route = (route or "") + (part or "") or None
            if whole:
                return route, True
            reached = scope["root_path"]
        template = route_in_scope(self._scope)
        return (route, False) if template is None else (template, True)


def _starts_no_stream(message: Message) -> bool:
    """Whether ``message`` starts a response that is certainly none: nearly every one is."""
    try:
        headers = message["headers"]
        if type(headers) is not list or message["type"] != "http.response.start":
            return False
        for name, value in headers:
            if len(name) == 12 and b"stream" in value.lower():
                return False
    except Exception:
        # Not an ASGI message, or one without headers.
        return False
    return True


def _first(headers: Headers, wanted: bytes) -> bytes | None:
    for name, value in headers:
        if len(name) == len(wanted) and name.lower() == wanted:
            return value
    return None


def _text(headers: Headers, wanted: bytes) -> str:
    return (_first(headers, wanted) or b"").decode("latin-1")


def _joined(headers: Headers, wanted: bytes) -> str:
    """The values of all headers of a name, as one (RFC 9110, section 5.2)."""
    values = [
        value for name, value in headers if len(name) == len(wanted) and name.lower() == wanted
    ]
    return b",".join(values).decode("latin-1")


def _with_header_list(message: Message) -> Message:
    """``message`` with headers that can be read twice: a server uses up an iterator."""
    try:
        headers = message.get("headers")
        if type(headers) not in _PLAIN and isinstance(headers, Iterator):
            return {**message, "headers": list(headers)}
    except Exception:
        # Not an ASGI message: the server refuses it as it would without us.
        pass
    return message


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
