"""aiohttp.web.

Three hooks. ``RequestHandler._handle_request`` is the frame of a request, in which it starts and
ends. Inside the innermost middleware other instrumentation's span is current. And where
``StreamResponse._start`` finds an event stream, the response's own writer is watched: every way
of writing a body comes by there, before chunking and content coding.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from functools import lru_cache, wraps
from time import perf_counter
from typing import Any, Final

from aiohttp import hdrs, web, web_app
from aiohttp.web_protocol import RequestHandler
from opentelemetry.propagators.textmap import Getter

from otel_sse import lifecycle
from otel_sse.connection import Connection
from otel_sse.current import Request, serving
from otel_sse.instrumentor import SSEInstrumentor
from otel_sse.mark import Marker
from otel_sse.opening import Opening, is_stream
from otel_sse.scanner import as_bytes
from otel_sse.telemetry import Telemetry

Handler = Callable[[Any], Awaitable[Any]]


class SSEAiohttpServerInstrumentor(SSEInstrumentor):
    """Tells every event stream that aiohttp.web serves."""

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("aiohttp >= 3.11",)

    def _install(self) -> None:
        self._patch(RequestHandler, "_handle_request", self._frame)
        self._patch(web_app, "_cached_build_middleware", self._innermost)
        self._patch(web.StreamResponse, "_start", self._start)

    def _frame(self, original: Any) -> Any:
        @wraps(original)
        async def call(protocol: Any, raw: Any, start_time: Any, handler: Handler) -> Any:
            if self.telemetry is None:
                return await original(protocol, raw, start_time, handler)
            raised: BaseException | None = None

            async def watched(raw: Any) -> Any:
                nonlocal raised
                try:
                    return await handler(raw)
                except BaseException as error:
                    raised = error
                    raise

            request = Request()
            request.enter()
            try:
                return await original(protocol, raw, start_time, watched)
            except GeneratorExit as error:
                raised = error
                raise
            finally:
                connection = request.connection
                if connection is not None:
                    _unwatch(raw)
                    lost = getattr(protocol, "_manager", None) is None
                    connection.gone |= lost
                    cut = not lost and getattr(protocol, "_force_close", False)
                    connection.end(raised, cut=cut)
                raised = None
                request.exit()

        return call

    def _innermost(self, original: Any) -> Any:
        @wraps(original)
        def build(handler: Handler, apps: Any) -> Any:
            return original(handler if self.telemetry is None else _inside(handler), apps)

        return build

    def _start(self, original: Any) -> Any:
        @wraps(original)
        async def call(response: Any, raw: Any) -> Any:
            writer = await original(response, raw)
            request, telemetry = serving.get(), self.telemetry
            if request is not None and telemetry is not None and request.connection is None:
                try:
                    opening = _opening(response, raw, telemetry)
                    if opening is not None:
                        if telemetry.config.propagate:
                            _mark(response, writer)
                        _watch(
                            lifecycle.open_connection(telemetry, opening, request), response, writer
                        )
                except Exception:
                    telemetry.failed("a connection's start")
            return writer

        return call


@lru_cache(maxsize=1024)
def _inside(handler: Handler) -> Handler:
    """``handler`` with the request's context attached inside the middlewares' own.

    The same handler gives the same object, because aiohttp caches the chains that it builds.
    """

    @wraps(handler)
    async def inside(raw: Any) -> Any:
        request = serving.get()
        if request is None or request.is_current():
            return await handler(raw)
        with request.below():
            return await handler(raw)

    return inside


def _opening(response: Any, raw: Any, telemetry: Telemetry) -> Opening | None:
    content_type = response.headers.get(hdrs.CONTENT_TYPE, "")
    if not is_stream(raw.method, response.status, content_type):
        return None
    if telemetry.config.excludes(f"{raw.scheme}://{raw.host}{raw.path}"):
        return None
    match = getattr(raw, "match_info", None)
    resource = getattr(getattr(match, "route", None), "resource", None)
    return Opening(
        method=raw.method,
        route=getattr(resource, "canonical", None),
        scheme=raw.scheme,
        known_path=None if resource is None else raw.path,
        client=raw.remote,
        user_agent=raw.headers.get(hdrs.USER_AGENT),
        protocol=f"{raw.version.major}.{raw.version.minor}",
        status=response.status,
        resumed="Last-Event-ID" in raw.headers,
        carrier=raw.headers,
        getter=_getter,
        transport=raw.transport,
    )


def _mark(response: Any, writer: Any) -> None:
    """Lets marks be written to ``writer``, unless the body's length or coding is settled."""
    coded = hdrs.CONTENT_ENCODING in response.headers and not response.compression
    if writer.length is not None or coded or getattr(response, "_compressed_body", None):
        return
    marker = Marker()
    original_write, original_write_eof = writer.write, writer.write_eof

    async def write(chunk: Any, *args: Any, **kwargs: Any) -> Any:
        return await original_write(marker.mark(chunk), *args, **kwargs)

    async def write_eof(chunk: Any = b"") -> Any:
        return await original_write_eof(marker.mark(chunk))

    writer.write, writer.write_eof = write, write_eof


def _watch(connection: Connection, response: Any, writer: Any) -> None:
    """Lets ``connection`` see what is written to ``writer``, until ``_unwatch``."""
    original_write, original_write_eof = writer.write, writer.write_eof

    async def write(chunk: Any, *args: Any, **kwargs: Any) -> Any:
        # Beyond the declared length aiohttp drops what is written.
        body = chunk if writer.length is None else as_bytes(chunk)[: writer.length]
        began = perf_counter()
        try:
            result = await original_write(chunk, *args, **kwargs)
        except BaseException as error:
            connection.interrupted(body, began, error)
            raise
        connection.sent(body, began, perf_counter())
        return result

    async def write_eof(chunk: Any = b"") -> Any:
        body = chunk
        if chunk and chunk is getattr(response, "_compressed_body", None):
            body = response.body
        began = perf_counter()
        try:
            result = await original_write_eof(chunk)
        except BaseException as error:
            connection.interrupted(body, began, error)
            raise
        if body:
            connection.sent(body, began, perf_counter())
        connection.end(completed=True)
        return result

    writer.write, writer.write_eof = write, write_eof


def _unwatch(raw: Any) -> None:
    for name in ("write", "write_eof"):
        vars(raw.writer).pop(name, None)


class _HeaderGetter(Getter[Any]):
    def get(self, carrier: Any, key: str) -> list[str] | None:
        return carrier.getall(key, None)  # type: ignore[no-any-return]

    def keys(self, carrier: Any) -> list[str]:
        return list(carrier.keys())


_getter: Final = _HeaderGetter()
