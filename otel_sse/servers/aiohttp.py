"""aiohttp.web.

``RequestHandler._handle_request`` is the frame of a request, in which it starts and ends. What it
calls after the handler, ``handle_error`` and ``finish_response``, shows what that has raised.
Inside the innermost middleware another instrumentation's span is current. And where an event
stream's headers are written, the response's own writer is observed: every way of writing a body
passes there, before chunking and content coding. Most requests are no streams, so hooks are plain
functions where they can be: each coroutine around another takes time.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import lru_cache, wraps
from time import perf_counter
from types import ModuleType
from typing import Any, Final
from weakref import WeakSet

from aiohttp import hdrs, web, web_app
from aiohttp.web_protocol import RequestHandler
from wrapt import CallableObjectProxy

from otel_sse.instrumentor import Hooks
from otel_sse.process.server_facts import is_aiohttp_peer_lost
from otel_sse.servers.header_getter import HeaderGetter
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import Request, current_request
from otel_sse.stream.server import ServerStream
from otel_sse.stream.sharing import open_server_stream
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream
from otel_sse.wire.opaque import is_encoded
from otel_sse.wire.parser import byte_view
from otel_sse.wire.trace_comment import TraceCommentWriter

Handler = Callable[[Any], Awaitable[Any]]

# In the writer of a request: our ``Request``. Clones of a request, which middlewares make,
# share its writer.
_KEY: Final = "_otel_sse"

# The live streams by the protocol that serves them, each of its own loop.
_live: Final[dict[Any, ServerStream]] = {}


class AiohttpHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch(RequestHandler, "_handle_request", self._frame)
        self._patch(RequestHandler, "finish_response", _on_finish)
        self._patch(RequestHandler, "handle_error", _on_error)
        self._patch(RequestHandler, "shutdown", self._shutdown)
        self._patch(web_app, "_cached_build_middleware", _observe_innermost)
        self._patch(web.View, "_iter", _observe_view)
        self._patch(web.StreamResponse, "_write_headers", self._write_headers)

    def _frame(self, original: Any) -> Any:
        @wraps(original)
        async def call(
            protocol: Any, request: Any, start_time: Any, request_handler: Handler
        ) -> Any:
            if self.telemetry is None:
                return await original(protocol, request, start_time, request_handler)
            observed = request._payload_writer._otel_sse = _Request()
            current_request.set(observed)
            try:
                return await original(protocol, request, start_time, request_handler)
            except BaseException as error:
                if not observed.returned:
                    observed.on_return(protocol, error)
                elif isinstance(error, GeneratorExit):
                    observed.raised = error
                raise
            finally:
                if observed.stream is not None:
                    _stop_observing(request)
                    _live.pop(protocol, None)
                    state = observed.state
                    if observed.raised is None and is_aiohttp_peer_lost(protocol):
                        state.mark_disconnected()
                    observed.stream.close(
                        state.error if observed.raised is None else observed.raised
                    )
                    state.error = None
                # aiohttp makes a task for each request: there was none before it.
                observed.finish(None)
                observed.handled = observed.raised = None

        return call

    def _shutdown(self, original: Any) -> Any:
        @wraps(original)
        async def call(protocol: Any, *args: Any, **kwargs: Any) -> Any:
            live = _live.get(protocol)
            if live is not None:
                # From now on it is the server that closes the transport.
                if is_aiohttp_peer_lost(protocol):
                    live.mark_disconnected()
                live.transport = None
            result = await original(protocol, *args, **kwargs)
            # It has cancelled the handler, whose clean-up will find its peer disconnected.
            stream = _live.pop(protocol, None)
            if stream is not None:
                stream.close(cut=True)
            return result

        return call

    def _write_headers(self, original: Any) -> Any:
        @wraps(original)
        def call(response: Any) -> Awaitable[None]:
            # Of the request that is answered: another one's task may do that.
            observed: _Request | None = getattr(response._payload_writer, _KEY, None)
            if observed is None or (observed.known_state is None and _is_no_stream(response)):
                return original(response)  # type: ignore[no-any-return]
            return self._start(original, response, observed)

        return call

    async def _start(self, original: Any, response: Any, observed: _Request) -> None:
        await original(response)
        telemetry = self.telemetry
        if telemetry is None or observed.over:
            return
        request, writer = response._req, response._payload_writer
        if observed.stream is not None:
            # Another response on the same writer: it is no part of the stream.
            _stop_observing(request)
            return
        try:
            info = _stream_info(response, request, telemetry)
            stream = info and open_server_stream(telemetry, info, observed.state)
            if stream:
                if telemetry.config.propagate:
                    _write_trace_comments(response, writer)
                _observe(stream, response, writer)
                _live[request.protocol] = stream
        except Exception:
            telemetry.failures.log_failure_once("a stream's start")


class _Request(Request):
    """A request, and what its handler has raised.

    aiohttp handles that by itself, and no caller sees it; but it does so within the ``except``
    clause.

    Attributes:
        handled: what the code around the request handles, which is not the request's.
        returned: the handler has returned or raised; what fails from then on is the connection.
        raised: what it has raised within a stream, or what has ended its task.

    """

    __slots__ = ("handled", "raised", "returned")

    def __init__(self) -> None:
        Request.__init__(self)
        self.handled = sys.exc_info()[1]
        self.returned = False
        self.raised: BaseException | None = None

    def on_return(self, protocol: Any, error: BaseException | None) -> None:
        # Before the stream it is another response, as an HTTPException is.
        if self.stream is not None and error is not None and error is not self.handled:
            self.raised = error
            if is_aiohttp_peer_lost(protocol):
                # It was before this, which is the clean-up's.
                self.state.mark_disconnected()


def _on_finish(original: Any) -> Any:
    """What is called once the handler has returned or raised: in the ``except`` clause then."""

    @wraps(original)
    def call(protocol: Any, request: Any, resp: Any, start_time: Any) -> Any:
        _note_return(protocol, request)
        # No coroutine of our own around one: each takes time, as ``*args`` does.
        return original(protocol, request, resp, start_time)

    return call


def _on_error(original: Any) -> Any:
    """What may be called before that, in the ``except`` clause."""

    @wraps(original)
    def call(protocol: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _note_return(protocol, request)
        return original(protocol, request, *args, **kwargs)

    return call


def _note_return(protocol: Any, request: Any) -> None:
    observed: _Request | None = getattr(request._payload_writer, _KEY, None)
    if observed is not None:
        observed.returned = True
        if observed.known_state is not None:
            observed.on_return(protocol, sys.exc_info()[1])


def _is_no_stream(response: Any) -> bool:
    """Whether ``response`` is certainly none: nearly every one is."""
    try:
        # Of several the last one counts.
        values = response._headers.getall(hdrs.CONTENT_TYPE, ())
        return "stream" not in ",".join(values).lower()
    except Exception:
        return False


class _InnermostHandler(CallableObjectProxy):  # type: ignore[type-arg]
    """The handler as the innermost middleware gets it, which may look it up or ask what it is."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handler = self.__wrapped__
        if kwargs or len(args) != 1:
            # None of aiohttp's own calls.
            return handler(*args, **kwargs)
        request = args[0]
        return _handle(request, handler, request)


def _observe_innermost(original: Any) -> Any:
    """What builds the chain of the middlewares around a handler."""
    uncached = getattr(original, "__wrapped__", original)

    # A cache in place of aiohttp's, in which a handler is equal to its proxy.
    @lru_cache(maxsize=1024)
    @wraps(uncached)
    def build(handler: Handler, apps: Any) -> Any:
        if isinstance(handler, type):
            # It stays itself: no proxy passes for a subclass of an abstract class.
            _views.add(handler)
        else:
            handler = _InnermostHandler(handler)
        return uncached(handler, apps)

    return build


# Classes of views that have middlewares.
_views: Final[WeakSet[type]] = WeakSet()


def _observe_view(original: Any) -> Any:
    """What an instance of ``View`` is awaited by."""

    @wraps(original)
    def call(view: Any) -> Any:
        if type(view) in _views:
            request = view.request
            match = getattr(request, "_match_info", None)
            # Another handler may await a view, too.
            if getattr(match, "handler", None) is type(view):
                return _handle(request, original, view)
        # No coroutine of our own around one.
        return original(view)

    return call


async def _handle(request: Any, handler: Handler, argument: Any) -> Any:
    """Calls ``handler`` with a note of the context that the middlewares have made for it, and of
    the error that leaves it within a stream: a middleware may answer that by another response.
    """
    observed: Request | None = getattr(getattr(request, "writer", None), _KEY, None)
    if observed is None or observed.stream is not None:
        return await handler(argument)
    observed.enter_middleware()
    try:
        return await handler(argument)
    except BaseException as error:
        if observed.stream is not None:
            observed.state.error = error
        raise
    finally:
        # What the middlewares do after the handler is not the stream's.
        observed.detach()


def _stream_info(response: Any, request: Any, telemetry: Telemetry) -> ServerStreamInfo | None:
    content_type = ",".join(response.headers.getall(hdrs.CONTENT_TYPE, ()))
    if not is_event_stream(request.method, response.status, content_type):
        return None
    if telemetry.config.excludes(f"{request.scheme}://{request.host}{request.path}"):
        return None
    # Not the property, which is an assertion where nothing has been resolved.
    match = getattr(request, "_match_info", None)
    resource = getattr(getattr(match, "route", None), "resource", None)
    return ServerStreamInfo(
        method=request.method,
        route=getattr(resource, "canonical", None),
        scheme=request.scheme,
        known_path=None if resource is None else request.path,
        client=request.remote,
        user_agent=request.headers.get(hdrs.USER_AGENT),
        protocol=f"{request.version.major}.{request.version.minor}",
        status=response.status,
        resumed="Last-Event-ID" in request.headers,
        carrier=request.headers,
        getter=_getter,
        transport=request.transport,
        encoded=_is_encoded_by_app(response),
    )


def _is_encoded_by_app(response: Any) -> bool:
    """Whether what the application writes is encoded, rather than encoded below the hook."""
    encoding = response.headers.get(hdrs.CONTENT_ENCODING, "")
    return is_encoded(encoding) and not response.compression


def _write_trace_comments(response: Any, writer: Any) -> None:
    """Has trace comments written to ``writer``, unless the body's length or coding is settled."""
    compressed = getattr(response, "_compressed_body", None)
    if compressed or writer.length is not None or _is_encoded_by_app(response):
        return
    comments = TraceCommentWriter()
    original_write, original_write_eof = writer.write, writer.write_eof

    async def write(chunk: Any, *args: Any, **kwargs: Any) -> Any:
        return await original_write(comments.insert(chunk), *args, **kwargs)

    async def write_eof(chunk: Any = b"") -> Any:
        return await original_write_eof(comments.insert(chunk))

    writer.write, writer.write_eof = write, write_eof


def _observe(stream: ServerStream, response: Any, writer: Any) -> None:
    """Has ``stream`` record what is written to ``writer``, until ``_stop_observing``."""
    original_write, original_write_eof = writer.write, writer.write_eof

    async def write(chunk: Any, *args: Any, **kwargs: Any) -> Any:
        # aiohttp drops what is written beyond the declared length.
        body = chunk if writer.length is None else byte_view(chunk)[: writer.length]
        began = perf_counter()
        try:
            # To unpack what is empty takes as long as a good part of this.
            if args or kwargs:
                result = await original_write(chunk, *args, **kwargs)
            else:
                result = await original_write(chunk)
        except BaseException as error:
            stream.on_send_error(body, began, error)
            raise
        stream.on_send(body, began, perf_counter())
        return result

    async def write_eof(chunk: Any = b"") -> Any:
        body = chunk
        if chunk and chunk is getattr(response, "_compressed_body", None):
            body = response.body
        disconnected = stream.check_disconnected()
        began = perf_counter()
        try:
            result = await original_write_eof(chunk)
        except BaseException as error:
            stream.on_send_error(body, began, error)
            raise
        if body:
            stream.on_send(body, began, perf_counter())
        stream.on_response_end(delivered=not disconnected)
        return result

    writer.write, writer.write_eof = write, write_eof


def _stop_observing(request: Any) -> None:
    for name in ("write", "write_eof"):
        vars(request.writer).pop(name, None)


_getter: Final = HeaderGetter("getall", lambda headers, key: headers.getall(key, None))
