"""aiohttp.web.

Three hooks. ``RequestHandler._handle_request`` is the frame of a request, in which it starts and
ends. Inside the innermost middleware another instrumentation's span is current. And where
``StreamResponse._start`` finds an event stream, the response's own writer is observed: every way
of writing a body passes there, before chunking and content coding.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache, wraps
from time import perf_counter
from types import ModuleType
from typing import Any, Final

from aiohttp import hdrs, web, web_app
from aiohttp.web_protocol import RequestHandler
from opentelemetry.propagators.textmap import Getter

from otel_sse.instrumentor import Hooks
from otel_sse.process.server_facts import is_aiohttp_peer_lost
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
        self._patch(RequestHandler, "shutdown", self._shutdown)
        self._patch(web_app, "_cached_build_middleware", self._innermost)
        self._patch(web.StreamResponse, "_start", self._start)

    def _frame(self, original: Any) -> Any:
        @wraps(original)
        async def call(protocol: Any, request: Any, start_time: Any, handler: Handler) -> Any:
            if self.telemetry is None:
                return await original(protocol, request, start_time, handler)
            raised: BaseException | None = None
            observed = Request()
            setattr(request.writer, _KEY, observed)
            previous = current_request.get()
            current_request.set(observed)

            async def handle(request: Any) -> Any:
                nonlocal raised
                try:
                    return await handler(request)
                except BaseException as error:
                    # Before the stream it is another response, as an HTTPException is.
                    if observed.stream is not None:
                        raised = error
                        if is_aiohttp_peer_lost(protocol):
                            # It was before this, which is the clean-up's.
                            observed.state.mark_disconnected()
                    raise

            try:
                return await original(protocol, request, start_time, handle)
            except GeneratorExit as error:
                raised = error
                raise
            finally:
                if observed.stream is not None:
                    _stop_observing(request)
                    _live.pop(protocol, None)
                    state = observed.state
                    if raised is None and is_aiohttp_peer_lost(protocol):
                        state.mark_disconnected()
                    observed.stream.close(raised or state.error)
                    state.error = None
                setattr(request.writer, _KEY, None)
                raised = None
                observed.finish(previous)

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

    def _innermost(self, original: Any) -> Any:
        @wraps(original)
        def build(handler: Handler, apps: Any) -> Any:
            return original(handler if self.telemetry is None else _innermost(handler), apps)

        return build

    def _start(self, original: Any) -> Any:
        @wraps(original)
        async def call(response: Any, request: Any) -> Any:
            writer = await original(response, request)
            # Of the request that is answered: another one's task may do that.
            observed, telemetry = getattr(request.writer, _KEY, None), self.telemetry
            if observed is None or telemetry is None:
                return writer
            if observed.stream is not None:
                # Another response on the same writer: it is no part of the stream.
                _stop_observing(request)
                return writer
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
            return writer

        return call


# More handlers than most applications have; one that is dropped from the cache is wrapped anew.
@lru_cache(maxsize=1024)
def _innermost(handler: Handler) -> Handler:
    """``handler``, with a note of the context that the middlewares have made for it, and of the
    error that leaves it within a stream: a middleware may answer that by another response.

    The same handler gives the same object, because aiohttp caches the chains that it builds.
    """

    @wraps(handler)
    async def innermost(request: Any) -> Any:
        observed: Request | None = getattr(request.writer, _KEY, None)
        if observed is None or observed.stream is not None:
            return await handler(request)
        observed.enter_middleware()
        try:
            return await handler(request)
        except BaseException as error:
            if observed.stream is not None:
                observed.state.error = error
            raise
        finally:
            # What the middlewares do after the handler is not the stream's.
            observed.detach()

    return innermost


def _stream_info(response: Any, request: Any, telemetry: Telemetry) -> ServerStreamInfo | None:
    content_type = ",".join(response.headers.getall(hdrs.CONTENT_TYPE, ()))
    if not is_event_stream(request.method, response.status, content_type):
        return None
    if telemetry.config.excludes(f"{request.scheme}://{request.host}{request.path}"):
        return None
    match = getattr(request, "match_info", None)
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
            result = await original_write(chunk, *args, **kwargs)
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


class _HeaderGetter(Getter[Any]):
    def get(self, carrier: Any, key: str) -> list[str] | None:
        return carrier.getall(key, None)  # type: ignore[no-any-return]

    def keys(self, carrier: Any) -> list[str]:
        return list(carrier.keys())


_getter: Final = _HeaderGetter()
