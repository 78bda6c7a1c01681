"""aiohttp's client, and what reads by it.

Where the headers of a response have come, before any middleware, hook or ``raise_for_status`` of
the application sees it, the reader of an event stream becomes one that records what is taken out of
it: every way of reading passes there, after chunking and content coding. Readers have slots and no
room for attributes, so their timer holds ours.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from contextvars import ContextVar, copy_context
from functools import partial, wraps
from time import perf_counter
from types import ModuleType
from typing import Any, Final

from aiohttp import (
    ClientError,
    ClientResponse,
    ClientSession,
    StreamReader,
    client_reqrep,
    compression_utils,
    hdrs,
)
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_sse.instrumentor import Hooks
from otel_sse.process import gc_safety
from otel_sse.stream.info import ClientStreamInfo
from otel_sse.stream.nested import ObservedStream
from otel_sse.stream.sharing import open_client_stream, record_failed_connect
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream, is_redirect
from otel_sse.wire.opaque import is_encoded

# The codings that aiohttp decodes where a session lets it; it passes on any other body as it is.
_CODINGS: Final = {"gzip", "deflate", "br"} | (
    {"zstd"} if hasattr(compression_utils, "HAS_ZSTD") else set()
)


class _Request:
    """A request of the application's, with its redirects and retries.

    Attributes:
        started: monotonic, in seconds.
        decompress: the body is decoded.
        answered: the headers of a response that is no redirect have come.

    """

    __slots__ = ("_variables", "answered", "decompress", "started")

    def __init__(self, decompress: bool) -> None:
        self.started = perf_counter()
        # To copy them takes less than to look up the context in them.
        self._variables = copy_context()
        self.decompress = decompress
        self.answered = False

    @property
    def context(self) -> Context:
        """The call's; another instrumentation makes its own span current after that."""
        return self._variables.run(otel_context.get_current)


# What a session has begun. Tasks inherit it, but each request of their own sets it anew.
_request: Final[ContextVar[_Request | None]] = ContextVar("otel_sse_aiohttp_request", default=None)


class AiohttpHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch(ClientSession, "_request", self._send)
        self._patch(ClientResponse, "start", self._start)

    def _send(self, original: Any) -> Any:
        @wraps(original)
        async def send(session: Any, method: str, str_or_url: Any, **kwargs: Any) -> Any:
            decompress = kwargs.get("auto_decompress")
            request = _Request(session.auto_decompress if decompress is None else decompress)
            token = _request.set(request)
            try:
                return await original(session, method, str_or_url, **kwargs)
            except Exception as error:
                if not request.answered and self.telemetry is not None:
                    known = partial(_failed_info, session, method, str_or_url, kwargs, request)
                    record_failed_connect(self.telemetry, known, error)
                raise
            finally:
                try:
                    _request.reset(token)
                except ValueError:
                    pass  # a coroutine that is garbage is closed in another context

        return send

    def _start(self, original: Any) -> Any:
        @wraps(original)
        async def start(response: Any, connection: Any) -> Any:
            result = await original(response, connection)
            telemetry = self.telemetry
            if telemetry is not None:
                try:
                    _observe(response, connection, telemetry)
                except Exception:
                    telemetry.failures.log_failure_once("a stream's start")
            return result

        return start


def _failed_info(
    session: Any, method: str, url: Any, kwargs: dict[str, Any], request: _Request
) -> ClientStreamInfo:
    headers = session._prepare_headers(kwargs.get("headers"))
    return _stream_info(method.upper(), session._build_url(url), headers, request)


def _stream_info(method: str, url: Any, headers: Any, request: _Request) -> ClientStreamInfo:
    """Of a request that has no response yet."""
    return ClientStreamInfo(
        method=method,
        scheme=url.scheme,
        host=url.host or "",
        port=url.port,
        known_path=url.path,
        protocol=None,
        status=0,
        resumed="Last-Event-ID" in headers,
        context=request.context,
        started=request.started,
        accept=headers.get(hdrs.ACCEPT, ""),
    )


def _response_info(response: Any, request: _Request) -> ClientStreamInfo:
    version = response.version
    return _stream_info(
        response.method, response.url, response.request_info.headers, request
    )._replace(
        protocol=f"{version.major}.{version.minor}" if version else None, status=response.status
    )


def _observe(response: Any, connection: Any, telemetry: Telemetry) -> None:
    headers, status = response.headers, response.status
    if status >= 300 and is_redirect(status, headers.get(hdrs.LOCATION)):
        return
    request = _request.get() or _Request(decompress=True)
    request.answered = True
    content_type = ", ".join(headers.getall(hdrs.CONTENT_TYPE, ()))
    if not is_event_stream(response.method, status, content_type):
        if status >= 400:
            record_failed_connect(telemetry, partial(_response_info, response, request))
        return
    # A reader of another make does not show what is read.
    if type(response.content) is not StreamReader:
        return
    content: Any = response.content
    encoding = headers.get(hdrs.CONTENT_ENCODING, "")
    decoded = request.decompress and encoding.lower() in _CODINGS
    timer = _Timer(content, connection)
    stream = open_client_stream(
        telemetry,
        timer,
        _response_info(response, request)._replace(encoded=is_encoded(encoding) and not decoded),
        (ClientError,),
        (asyncio.TimeoutError,),
    )
    if stream is None:
        return
    timer.stream = stream
    weakref.finalize(response, timer.on_response_freed).atexit = False
    content._timer = timer
    content.__class__ = _Reader
    # The stream may be over by now.
    if content.exception() is not None:
        timer.close_on_error(content.exception())
    elif content.at_eof():
        stream.close(completed=True)


class _Timer:
    """A reader's timer, which is entered for each wait, with the stream: it closes with the timer.

    Attributes:
        counted_offset: up to where the stream has been counted, in bytes.
        complete: all of it has arrived; the response is not needed to read the rest.
        failure: what the last read raised of the reader's own limits; it may read on after it.

    """

    __slots__ = (
        "__weakref__",
        "_connector",
        "_timer",
        "complete",
        "counted_offset",
        "failure",
        "stream",
    )

    stream: ObservedStream

    def __init__(self, content: Any, connection: Any) -> None:
        self._timer = content._timer
        self._connector = weakref.ref(connection._connector)
        self.failure: Exception | None = None
        self.counted_offset: float = content._cursor
        self.complete: bool = content.is_eof()

    def on_response_freed(self) -> None:
        """The response is garbage, which closes its connection."""
        if not self.complete:
            self.stream.on_owner_freed()

    def close_on_error(self, error: BaseException) -> None:
        """The reader will raise ``error`` from now on."""
        connector = self._connector()
        closed = getattr(client_reqrep, "_CONNECTION_CLOSED_EXCEPTION", None)
        if error is closed or (connector is not None and connector.closed):
            # By the application: the response, or the session. It may have failed before.
            self.stream.close(self.failure)
        elif isinstance(error.__cause__, ContentEncodingError):
            self.stream.close(error.__cause__)
        else:
            self.stream.close(error)

    # Each asks by itself, since a call more would be for every wait.

    def __enter__(self) -> Any:
        self.stream.wait_started()
        try:
            return self._timer.__enter__()
        except asyncio.TimeoutError as late:
            self.stream.close(late)
            raise

    def __exit__(self, *error: Any) -> Any:
        if not gc_safety.in_finalizer(error[1]):
            self.stream.wait_ended()
        try:
            return self._timer.__exit__(*error)
        except asyncio.TimeoutError as late:
            self.stream.close(late)
            raise

    def assert_timeout(self) -> None:
        try:
            self._timer.assert_timeout()
        except asyncio.TimeoutError as late:
            self.stream.close(late)
            raise


class _Reader(StreamReader):
    __slots__ = ()

    def _read_nowait_chunk(self, n: int) -> bytes:
        timer: Any = self._timer
        # A piece is counted as it arrived, though it may be taken line by line, and what was put
        # back only once.
        if not self._buffer_offset:
            piece = self._buffer[0]
            new = self._cursor + len(piece) - timer.counted_offset
            if new > 0:
                timer.counted_offset += new
                timer.failure = None
                timer.stream.on_chunk(piece[-new:])
        chunk = StreamReader._read_nowait_chunk(self, n)
        if self._eof and not self._buffer:
            timer.stream.close(completed=True)
        return chunk

    def readuntil(
        self, separator: bytes = b"\n", *, max_size: int | None = None, **options: Any
    ) -> Coroutine[Any, Any, bytes]:
        # A message has several lines. One that has arrived whole, as most have, is not too long,
        # and needs no coroutine of our own.
        if max_size is not None:
            options["max_size"] = max_size  # older versions know none
        elif self._buffer:
            piece = self._buffer[0]
            if len(piece) <= self._high_water and piece.find(separator, self._buffer_offset) >= 0:
                return StreamReader.readuntil(self, separator)
        return self._read_until(separator, options)

    async def _read_until(self, separator: bytes, options: dict[str, Any]) -> bytes:
        try:
            return await StreamReader.readuntil(self, separator, **options)
        except (HttpProcessingError, ValueError) as error:
            # A line too long: what it has read of it is lost to the reader.
            timer: Any = self._timer
            timer.failure = error
            raise

    def feed_eof(self) -> None:
        timer: Any = self._timer
        timer.complete = True
        super().feed_eof()
        if not self._buffer:
            timer.stream.close(completed=True)

    def set_exception(self, exc: BaseException, *args: Any, **kwargs: Any) -> None:
        super().set_exception(exc, *args, **kwargs)
        timer: Any = self._timer
        timer.close_on_error(exc)


# A reader's representation has its class's name.
_Reader.__name__ = StreamReader.__name__
_Reader.__qualname__ = StreamReader.__qualname__
_Reader.__module__ = StreamReader.__module__
