"""The observer of one ASGI request.

It passes every message on before anything is recorded of it, so what is recorded is what really
went out, and no error of the telemetry reaches the application. ``asgi`` makes one for each
request. Source of the rules: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from time import perf_counter
from typing import Any, Final

from opentelemetry.propagators.textmap import Getter

from otel_sse.process.server_facts import find_transport, route_in_scope
from otel_sse.process.server_stops import is_server_stopping
from otel_sse.servers.content import Content
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import HeldInScope, Request
from otel_sse.stream.server import ServerStream
from otel_sse.stream.sharing import open_server_stream, shutdown_handler
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
KEY: Final = "otel_sse"
# What headers usually are, and where there are none.
_PLAIN: Final = (list, tuple, type(None))
_BODIES: Final = ("http.response.body", "http.response.pathsend")


class RequestObserver(HeldInScope):
    """Observes the messages of one request.

    Apart from the request itself: that is in the context variables of every task that the
    application starts, and must not keep the scope and the server's objects for as long as such a
    task lives. This one lives as long as what has ``send`` or ``receive``.

    Attributes:
        telemetry: what a stream is recorded with.
        request: the request, for which there may be several observers.
        scope: its scope; None once the application's call has returned.
        inner: the observer that observes in its place, inside of a middleware.
        router: how to find the route, until the stream starts.
        content: what its messages hold before a content coding, where the framework shows that.

    """

    __slots__ = (
        "__weakref__",
        "_passes",
        "_receive",
        "_send",
        "_stream",
        "content",
        "inner",
        "request",
        "router",
        "scope",
        "telemetry",
    )

    def __init__(
        self,
        telemetry: Telemetry,
        request: Request,
        scope: Scope | None,
        receive: Receive,
        send: Send,
        router: Router | None,
    ) -> None:
        self.telemetry = telemetry
        self.request = request
        self.scope = scope
        self._receive = receive
        self._send = send
        # The stream that it observes; an observer of the same request may observe it instead.
        self._stream: ServerStream | None = None
        # The response has started, and is no stream.
        self._passes = False
        self.inner: RequestObserver | None = None
        self.router = router
        self.content: Content | None = None

    def nested(self, telemetry: Telemetry, send: Send) -> RequestObserver:
        """An observer of the same request, of what comes to ``send``."""
        return RequestObserver(
            telemetry, self.request, self.scope, self._receive, send, self.router
        )

    def close(self, error: Exception) -> None:
        """The application raised ``error``; what is around it may not have ended yet."""
        if self._stream is not None:
            self._stream.close(error, cut=is_server_stopping(self._send))

    async def receive(self) -> Message:
        message = await self._receive()
        try:
            if message["type"] == "http.disconnect":
                self.request.state.mark_disconnected(cut=is_server_stopping(self._receive))
        except Exception:
            # Not an ASGI message: the application gets it as it would without us.
            pass
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
            if self.content is not None:
                body = self.content.take()
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
                stream.on_response_end(delivered=not stream.check_disconnected(), error=error)
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
        return self.telemetry.stopping or is_server_stopping(self._send)

    def _on_start(self, message: Message) -> None:
        """Starts to record the stream that ``message`` starts, if it does."""
        try:
            if message["type"] != "http.response.start":
                return
            content_type = _joined(message.get("headers", ()), b"content-type")
            scope, request = self.scope, self.request
            # After the application has returned nothing would close what a task of it starts.
            if scope is None or self.inner is not None or request.stream is not None:
                return
            if not is_event_stream(scope.get("method", ""), message["status"], content_type):
                return
            router, self.router = self.router, None
            headers = message.get("headers", ())
            encoded = is_encoded(_joined(headers, b"content-encoding"))
            if self.content is not None and not self.content.is_needed(encoded):
                self.content = None
            encoded = encoded and self.content is None
            info = self._stream_info(scope, message["status"], router, encoded)
            if info is None:
                return
            stream = self._stream = open_server_stream(self.telemetry, info, request.state)
            shutdown_handler.observe_server(self._send)
            if stream is None:
                return
            comments = None
            # Only where the body may grow: neither its length nor its coding is settled.
            grows = not encoded and _first(headers, b"content-length") is None
            if grows and self.telemetry.config.propagate:
                comments = TraceCommentWriter()
            if self.content is not None:
                self.content.start(stream, comments)
            elif comments is not None:
                self._send = _with_trace_comments(self._send, comments)
        except Exception:
            self.telemetry.failures.log_failure_once("a stream's start")

    def _stream_info(
        self, scope: Scope, status: int, router: Router | None, encoded: bool
    ) -> ServerStreamInfo | None:
        """What is known of the stream; None where its URL is excluded."""
        headers = scope.get("headers", ())
        scheme, path = scope.get("scheme", "http"), scope.get("path", "")
        host = _text(headers, b"host")
        if self.telemetry.config.excludes(f"{scheme}://{host}{path}"):
            return None
        client = scope.get("client")
        route, whole = _route(scope, router)
        return ServerStreamInfo(
            method=scope.get("method", ""),
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


def _route(of: Scope, router: Router | None) -> tuple[str | None, bool]:
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
        scope = {**of, "path": path, "root_path": root_path}
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
    template = route_in_scope(of)
    return (route, False) if template is None else (template, True)


def _starts_no_stream(message: Message) -> bool:
    """Whether ``message`` starts a response that is certainly none: nearly every one is."""
    try:
        headers = message["headers"]
        if type(headers) is not list or message["type"] != "http.response.start":
            return False
        # find, since ``in`` takes twice as long for bytes.
        for name, value in headers:
            # No content type of fewer than 17 characters is the one.
            if len(value) > 16 and len(name) == 12 and value.lower().find(b"stream") >= 0:
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


def _with_trace_comments(send: Send, writer: TraceCommentWriter) -> Send:
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
