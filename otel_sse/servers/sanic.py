"""Sanic, on its own server and as an ASGI application.

On its own server ``Sanic.handle_request`` is the frame of a request. What sends the response is in
the ``response_func`` of the connection's ``Http``: first what sends the headers, then what each
send has left there for the next one. That is wrapped from send to send, below every way of writing
a body and before it is chunked.

As an ASGI application it is observed as any other, with its own routes. Either way Sanic handles
an error of the application itself, in ``Sanic.handle_exception``.

When it starts, Sanic compiles some methods anew, from the source of what it finds under any
wrapper (``TouchUp``). So those are patched again after that.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from time import perf_counter
from types import ModuleType
from typing import Any, Final

from sanic import Request as SanicRequest
from sanic import Sanic
from sanic.exceptions import RequestCancelled
from sanic.server.protocols.base_protocol import SanicProtocol
from sanic.touchup import TouchUp

from otel_sse.instrumentor import Hooks
from otel_sse.servers.asgi import wrap_asgi_app
from otel_sse.servers.header_getter import HeaderGetter
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import Request, RequestState, current_request
from otel_sse.stream.server import ServerStream
from otel_sse.stream.sharing import open_handler_stream
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream
from otel_sse.wire.opaque import is_encoded
from otel_sse.wire.trace_comment import TraceCommentWriter

Send = Callable[..., Awaitable[None]]


class SanicHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch(TouchUp, "run", self._touch_up)
        self._patch(SanicProtocol, "abort", self._abort)
        self._patch(SanicProtocol, "connection_lost", self._connection_lost)
        self._patch_frame(Sanic, "__call__", wrap_asgi_app, _asgi_route)
        self._patch_touched()
        self._mark_observed(Sanic)

    def _patch_touched(self) -> None:
        self._patch(Sanic, "handle_request", self._frame)
        self._patch(Sanic, "handle_exception", self._handle_exception)

    def _touch_up(self, original: Any) -> Any:
        run = original.__func__

        @wraps(run)
        def call(cls: Any, app: Any) -> Any:
            if self.telemetry is None:
                return run(cls, app)
            for name in ("handle_exception", "handle_request"):
                self._unpatch(Sanic, name)
            try:
                return run(cls, app)
            finally:
                self._patch_touched()

        return classmethod(call)

    def _frame(self, original: Any) -> Any:
        @wraps(original)
        async def call(app: Any, request: Any) -> Any:
            http = request.stream
            send = getattr(http, "response_func", None)
            if self.telemetry is None or send is None:
                return await original(app, request)
            observed = Request()
            previous = current_request.get()
            current_request.set(observed)
            first = partial(self._send_first, http, request, observed, send)
            http.response_func = first
            try:
                return await original(app, request)
            except BaseException as error:
                # Sanic handles any other but a cancellation.
                if observed.stream is not None:
                    observed.state.error = error
                raise
            finally:
                if observed.stream is not None:
                    if response := _live.get(http.protocol):
                        response.on_return()
                    observed.state.error = None
                if http.response_func is first:
                    # What answers in place of a handler that has not is not observed.
                    http.response_func = send
                observed.finish(previous)

        return call

    def _send_first(
        self, http: Any, request: Any, observed: Request, send: Send, data: Any, end_stream: bool
    ) -> Awaitable[None]:
        """Sends the response's headers, with the start or all of its body."""
        telemetry, response = self.telemetry, None
        if telemetry is not None and observed.stream is None:
            try:
                if _may_be_event_stream(http.response):
                    response = _start(http, request, observed, send, end_stream, telemetry)
            except Exception:
                telemetry.failures.log_failure_once("a stream's start")
        if response is None:
            return send(data, end_stream)
        return response.send(data, end_stream, data or http.response.body)

    def _handle_exception(self, original: Any) -> Any:
        @wraps(original)
        async def call(app: Any, request: Any, exception: Any, *args: Any, **kwargs: Any) -> Any:
            observed = current_request.get()
            if self.telemetry is not None and observed is not None and observed.stream is not None:
                # Nothing of the stream comes after it. An error of its clean-up is none.
                response = _live.get(getattr(request.stream, "protocol", None))
                if response is not None:
                    response.check_disconnected()
                observed.stream.close(exception, cut=observed.state.cut)
            return await original(app, request, exception, *args, **kwargs)

        return call

    def _abort(self, original: Any) -> Any:
        @wraps(original)
        def call(protocol: Any) -> Any:
            if (response := _live.get(protocol)) is not None:
                response.on_server_abort()
            return original(protocol)

        return call

    def _connection_lost(self, original: Any) -> Any:
        @wraps(original)
        def call(protocol: Any, exc: Any) -> Any:
            if (response := _live.get(protocol)) is not None:
                response.on_connection_lost()
            return original(protocol, exc)

        return call


def _may_be_event_stream(response: Any) -> bool:
    """Rejects nearly every other response at once."""
    content_type = response.headers.get("content-type") or response.content_type
    return content_type is not None and "stream" in str(content_type).lower()


def _start(
    http: Any,
    request: Any,
    observed: Request,
    send: Send,
    end_stream: bool,
    telemetry: Telemetry,
) -> _Response | None:
    """Starts to record the stream whose headers are about to be sent, if it is one."""
    response = http.response
    headers = response.headers
    content_type = ",".join(map(str, headers.getall("content-type", [response.content_type])))
    if not is_event_stream(request.method, response.status, content_type):
        return None
    if telemetry.config.excludes(f"{request.scheme}://{request.host}{request.path}"):
        return None
    encoded = is_encoded(str(headers.get("content-encoding", "")))
    stream = open_handler_stream(telemetry, _stream_info(request, response, encoded), observed)
    if stream is None:
        return None
    # Sanic computes the length of a body that comes whole.
    whole = end_stream or getattr(response, "body", None) or "content-length" in headers
    grows = not encoded and not whole
    comments = TraceCommentWriter() if grows and telemetry.config.propagate else None
    return _Response(http, observed.state, send, stream, comments)


class _Response:
    """Observes a response that is an event stream."""

    __slots__ = ("_comments", "_http", "_send", "_state", "_stream")

    def __init__(
        self,
        http: Any,
        state: RequestState,
        send: Send,
        stream: ServerStream,
        comments: TraceCommentWriter | None,
    ) -> None:
        self._http = http
        self._state = state
        # What sends the next part.
        self._send = send
        self._stream = stream
        self._comments = comments
        _live[http.protocol] = self

    async def send(self, data: Any, end_stream: bool, body: Any = None) -> None:
        """Sends ``data``, or ``body`` in its place, which is the response's own."""
        http, stream = self._http, self._stream
        body = body or data
        if self._comments is not None:
            data = self._comments.insert(data)
        disconnected = stream.check_disconnected()
        began = perf_counter()
        try:
            await self._send(data, end_stream)
        except BaseException as error:
            refused = disconnected or isinstance(error, RequestCancelled)
            stream.on_send_error(None if refused else body, began, error)
            raise
        if body:
            stream.on_send(body, began, perf_counter())
        if http.response_func is None:
            # What was sent was its end.
            stream.on_response_end(delivered=not disconnected)
            # From now on it is the server that closes the connection.
            stream.transport = None
        elif http.response_func != self.send:
            self._send, http.response_func = http.response_func, self.send

    def check_disconnected(self) -> None:
        if not self._stream.is_over():
            self._stream.check_disconnected()

    def on_connection_lost(self) -> None:
        self._state.mark_disconnected()

    def on_server_abort(self) -> None:
        """The server is about to cut the connection."""
        if not self._stream.check_disconnected():
            self._state.mark_disconnected(cut=True)
        self._stream.transport = None

    def on_return(self) -> None:
        """The application's call has returned, and has ended the response if it could."""
        _live.pop(self._http.protocol, None)
        error, timeout = self._state.error, self._http.exception
        if isinstance(error, CancelledError) and timeout is not None:
            # Cancelled by Sanic's own RESPONSE_TIMEOUT.
            error = TimeoutError(str(timeout))
        self._stream.close(error, cut=self._state.cut)


# The live streams by the protocol that serves them, each of its own loop.
_live: Final[dict[Any, _Response]] = {}


def _stream_info(request: Any, response: Any, encoded: bool) -> ServerStreamInfo:
    return ServerStreamInfo(
        method=request.method,
        route=_route(request),
        scheme=request.scheme,
        known_path=None if request.route is None else request.path,
        client=request.remote_addr or request.ip or None,
        user_agent=request.headers.get("user-agent"),
        protocol=request.version,
        status=response.status,
        resumed="last-event-id" in request.headers,
        carrier=request.headers,
        getter=_getter,
        transport=request.transport,
        encoded=encoded,
    )


def _route(request: Any) -> str | None:
    return None if request.route is None else f"/{request.route.path}"


def _asgi_route(_: Any, scope: dict[str, Any]) -> tuple[str | None, bool]:
    route = _route(SanicRequest.get_current())
    return route, route is not None


_getter: Final = HeaderGetter("getall", lambda headers, key: headers.getall(key, None))
