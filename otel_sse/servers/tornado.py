"""Tornado.

``RequestHandler._execute`` is the frame of a request, a task of its own. A response starts with the
handler's first ``flush``. Where that is an event stream, a transform of the handler sees the chunk
of each flush, before it is compressed, and the ``write`` of its connection is observed, which sends
that: every way of writing a body passes there, also the ``flush`` of a handler's own class.

A flush gives a future, and an application need not await it. While it is pending its chunk is
still to be recorded: with the wait until it is done, or with none once the application has gone on
without it, to its next flush or to its end. Tornado never resolves such a future.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from time import perf_counter
from types import ModuleType
from typing import Any, Final

from tornado import web
from tornado.http1connection import HTTP1ServerConnection
from tornado.routing import PathMatches

from otel_sse.instrumentor import Hooks
from otel_sse.process import gc_safety
from otel_sse.process.server_facts import tornado_transport
from otel_sse.servers.header_getter import HeaderGetter
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import Request, current_request
from otel_sse.stream.server import ServerStream
from otel_sse.stream.sharing import open_handler_stream
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream
from otel_sse.wire.opaque import is_encoded
from otel_sse.wire.trace_comment import TraceCommentWriter

Send = Callable[..., "asyncio.Future[None]"]

# In a handler: our ``Request``.
_KEY: Final = "_otel_sse"
# What is observed of a handler, and of its connection, from the start of its stream to its close.
_OF_HANDLER: Final = ("_handle_request_exception", "detach")
_OF_CONNECTION: Final = ("write_headers", "write")


class TornadoHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch(web.RequestHandler, "_execute", self._frame)
        self._patch(web.RequestHandler, "flush", self._flush)
        self._patch(web, "_has_stream_request_body", self._prepared)
        self._patch(HTTP1ServerConnection, "close", self._close)

    def _frame(self, original: Any) -> Any:
        @wraps(original)
        async def call(handler: Any, *args: Any, **kwargs: Any) -> Any:
            if self.telemetry is None:
                return await original(handler, *args, **kwargs)
            request = Request()
            # Not by vars, which makes each later access to an attribute of the handler slower.
            setattr(handler, _KEY, request)
            previous = current_request.get()
            current_request.set(request)
            try:
                return await original(handler, *args, **kwargs)
            except BaseException as error:
                # Tornado handles any other but a cancellation.
                if request.stream is not None:
                    request.state.error = error
                raise
            finally:
                if request.stream is not None:
                    response = _live.get(request)
                    if response is not None:
                        response.on_return()
                    request.state.error = None
                request.finish(previous)

        return call

    def _prepared(self, original: Any) -> Any:
        """Called between ``prepare``, where another instrumentation's span starts, and the
        handler's own method.
        """

        @wraps(original)
        def call(cls: Any) -> Any:
            request = current_request.get()
            if request is not None and request.stream is None and self.telemetry is not None:
                request.enter_middleware()
            return original(cls)

        return call

    def _flush(self, original: Any) -> Any:
        @wraps(original)
        def call(handler: Any, include_footers: bool = False) -> Any:
            if getattr(handler, "_headers_written", True):
                return original(handler, include_footers)
            telemetry, request = self.telemetry, getattr(handler, _KEY, None)
            if telemetry is None or request is None or request.stream is not None:
                return original(handler, include_footers)
            try:
                # Not by get, which takes thrice the time.
                content_type = handler._headers["Content-Type"]
            except Exception:
                # A response without a body has none.
                content_type = ""
            if "stream" not in content_type.lower():
                return original(handler, include_footers)
            try:
                _start(handler, request, content_type, telemetry)
            except Exception:
                telemetry.failures.log_failure_once("a stream's start")
            return original(handler, include_footers)

        return call

    def _close(self, original: Any) -> Any:
        @wraps(original)
        async def call(connection: Any) -> Any:
            response = _live.get(connection.stream)
            if response is not None:
                response.on_server_close()
            result = await original(connection)
            if response is not None:
                # Nothing cancels its handler.
                response.close()
            return result

        return call


def _start(handler: Any, observed: Request, content_type: str, telemetry: Telemetry) -> None:
    """Starts to record the stream that the next flush of ``handler`` starts, if it does."""
    request, headers = handler.request, handler._headers
    if not is_event_stream(request.method, handler.get_status(), content_type):
        return
    if telemetry.config.excludes(f"{request.protocol}://{request.host}{request.path}"):
        return
    info = _stream_info(handler)
    stream = open_handler_stream(telemetry, info, observed)
    if stream is None:
        return
    grows = not info.encoded and "Content-Length" not in headers
    comments = TraceCommentWriter() if grows and telemetry.config.propagate else None
    _Response(handler, observed, stream, comments)


class _Response:
    """Observes a handler whose response is an event stream; it is one of the handler's transforms,
    the first.
    """

    __slots__ = (
        "_chunk",
        "_comments",
        "_connection",
        "_detach",
        "_ends",
        "_handle",
        "_handler",
        "_keys",
        "_pending",
        "_request",
        "_state",
        "_stream",
    )

    def __init__(
        self,
        handler: Any,
        request: Request,
        stream: ServerStream,
        comments: TraceCommentWriter | None,
    ) -> None:
        self._handler = handler
        self._request = request
        self._state = request.state
        self._stream = stream
        self._comments = comments
        # What the handler is about to send, and whether that is the last.
        self._chunk: bytes | None = None
        self._ends = False
        # A flush that is not done, its chunk, and when it began.
        self._pending: tuple[asyncio.Future[None], bytes, float] | None = None
        self._handle: Callable[[BaseException], None] = handler._handle_request_exception
        self._detach: Callable[[], Any] = handler.detach
        self._connection = connection = handler.request.connection
        for name in _OF_HANDLER:
            vars(handler)[name] = getattr(self, name)
        for name in _OF_CONNECTION:
            vars(connection)[name] = partial(self._send, getattr(connection, name))
        handler._transforms.insert(0, self)
        # Not looked up in the connection later, which loses its stream where that is detached.
        self._keys = (request, getattr(connection, "stream", connection))
        for key in self._keys:
            _live[key] = self
        notify = getattr(connection, "_close_callback", None)
        # It has none any more once the response is finished.
        if notify is not None:
            connection.set_close_callback(partial(self._on_connection_close, notify))

    def transform_first_chunk(
        self, status: int, headers: Any, chunk: bytes, ends: bool
    ) -> tuple[int, Any, bytes]:
        return status, headers, self.transform_chunk(chunk, ends)

    def transform_chunk(self, chunk: bytes, ends: bool) -> bytes:
        if self._pending is not None:
            self._settle()
        self._chunk = chunk
        self._ends = ends
        return chunk if self._comments is None or not chunk else self._comments.insert(chunk)

    def _send(self, send: Send, *args: Any, **kwargs: Any) -> asyncio.Future[None]:
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            # Not by the handler.
            return send(*args, **kwargs)
        stream = self._stream
        disconnected = stream.check_disconnected()
        began = perf_counter()
        try:
            # Tornado's own call; to unpack what is empty takes time.
            future = send(*args, **kwargs) if kwargs else send(*args)
        except BaseException:
            # Where Tornado refuses the chunk, it closes the connection itself.
            stream.transport = None
            raise
        if disconnected:
            self._record(future, None, began)
        elif future.done():
            self._record(future, chunk, began)
        elif chunk:
            self._pending = (future, chunk, began)
            future.add_done_callback(self._on_done)
        if self._ends:
            self._settle()
            # Tornado finishes the response of a handler that is cancelled, too.
            cancelled = isinstance(sys.exc_info()[1], asyncio.CancelledError)
            stream.on_response_end(delivered=not disconnected and not cancelled)
            # From now on it is the server that closes the connection.
            stream.transport = None
            if self._request.over:
                self.close()
        return future

    def detach(self) -> Any:
        """The application takes the connection over; what it sends then is not seen."""
        stream = self._detach()
        self._settle()
        self._stream.check_disconnected()
        self._stream.transport = None
        if self._request.over:
            self.close()
        return stream

    def on_return(self) -> None:
        """The handler has returned; the response may go on without it."""
        is_over = self._stream.check_disconnected() or getattr(self._handler, "_finished", True)
        if gc_safety.in_finalizer(self._state.error):
            gc_safety.defer(partial(self.close, self._state.error))
        elif is_over or self._state.error is not None:
            self.close(self._state.error)

    def on_server_close(self) -> None:
        """The server is about to close the connection."""
        if not self._stream.check_disconnected():
            self._state.mark_disconnected(cut=True)
        self._stream.transport = None

    def close(self, error: BaseException | None = None) -> None:
        self._settle()
        handler = self._handler
        for observed, names in ((handler, _OF_HANDLER), (self._connection, _OF_CONNECTION)):
            for name in names:
                vars(observed).pop(name, None)
        handler._transforms = [each for each in handler._transforms if each is not self]
        for key in self._keys:
            # The next request of the connection may be a stream already.
            if _live.get(key) is self:
                del _live[key]
        self._stream.close(self._state.error if error is None else error, cut=self._state.cut)

    def _on_done(self, future: asyncio.Future[None]) -> None:
        if self._pending is not None and self._pending[0] is future:
            self._settle()

    def _settle(self) -> None:
        """Records the chunk that is pending: the application does not wait for it any more."""
        pending, self._pending = self._pending, None
        if pending is not None:
            future, chunk, began = pending
            if future.done():
                self._record(future, chunk, began)
            else:
                self._stream.on_send(chunk, began, began)

    def _record(self, future: asyncio.Future[None], chunk: bytes | None, began: float) -> None:
        """Records the flush of ``chunk`` (None: after the peer had disconnected)."""
        error: BaseException | None = None
        if future.cancelled():
            error = asyncio.CancelledError()
        elif future.done():
            error = future.exception()
        if error is not None:
            # After an error of the application's it is the server that has closed.
            if self._state.error is None:
                self._stream.on_send_error(chunk, began, error)
        elif chunk:
            self._stream.on_send(chunk, began, perf_counter())

    def _handle_request_exception(self, error: BaseException) -> None:
        if not isinstance(error, web.Finish):
            # Tornado finishes the response now: that shows whether the peer had disconnected.
            self._state.error = error
        self._handle(error)

    def _on_connection_close(self, notify: Callable[[], None]) -> None:
        self._state.mark_disconnected()
        notify()
        if self._request.over:
            self.close()


# The live streams by their request, and by what their connection reads and writes, each of its own
# loop.
_live: Final[dict[Any, _Response]] = {}


def _stream_info(handler: Any) -> ServerStreamInfo:
    request, headers = handler.request, handler.request.headers
    matcher = _matcher(handler.application.default_router, handler)
    method = getattr(type(handler), request.method.lower(), None)
    whole = matcher is not None and matcher.regex.fullmatch(request.path)
    return ServerStreamInfo(
        method=request.method,
        route=None if matcher is None else _template(matcher, method),
        scheme=request.protocol,
        known_path=request.path if whole else None,
        client=request.remote_ip,
        user_agent=headers.get("User-Agent"),
        protocol=request.version.removeprefix("HTTP/"),
        status=handler.get_status(),
        resumed="Last-Event-ID" in headers,
        carrier=headers,
        getter=_getter,
        transport=tornado_transport(request.connection),
        encoded=is_encoded(handler._headers.get("Content-Encoding", "")),
    )


def _matcher(router: Any, handler: Any) -> PathMatches | None:
    """What has matched the path of the request of ``handler``, found as the router did."""
    for rule in getattr(router, "rules", ()):
        if rule.matcher.match(handler.request) is None:
            continue
        if rule.target is type(handler):
            return rule.matcher if isinstance(rule.matcher, PathMatches) else None
        if not hasattr(rule.target, "rules"):
            break
        found = _matcher(rule.target, handler)
        if found is not None:
            return found
    return None


@lru_cache(maxsize=1024)
def _template(matcher: PathMatches, method: Any) -> str:
    """The path with the names of its parameters, as contrib's instrumentation has it; where they
    have none the regular expression.
    """
    regex = matcher.regex
    pattern: str = regex.pattern.removeprefix("^").removesuffix("$")
    path: str | None = getattr(matcher, "_path", None)
    names = list(regex.groupindex)
    if not names and callable(method):
        names = list(inspect.signature(method).parameters)[1:]
    if path is None or (regex.groups and len(names) != regex.groups):
        return pattern
    first, *rest = path.split("%s") if regex.groups else [path]
    return first + "".join(f"{{{name}}}{part}" for name, part in zip(names, rest, strict=False))


_getter: Final = HeaderGetter("get_list", lambda headers, key: headers.get_list(key) or None)
