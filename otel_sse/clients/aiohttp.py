"""aiohttp's client, and what reads by it.

Where a session returns a response that is an event stream, the response's reader becomes one that
records what is taken out of it: every way of reading passes there, after chunking and content
coding. Readers have slots and no room for attributes, so their timer holds ours.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Callable, Collection
from functools import wraps
from time import perf_counter
from typing import Any, Final

from aiohttp import ClientError, ClientSession, StreamReader, client_reqrep, hdrs
from aiohttp.http_exceptions import ContentEncodingError
from opentelemetry import context as otel_context

from otel_sse.instrumentor import SSEInstrumentor
from otel_sse.semconv import CLIENT
from otel_sse.stream.client import ClientStream, suppress_nested
from otel_sse.stream.info import ClientStreamInfo
from otel_sse.stream.sharing import open_client_stream
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream


class SSEAiohttpClientInstrumentor(SSEInstrumentor):
    """Records every event stream that an aiohttp client reads."""

    role = CLIENT

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("aiohttp >= 3.11",)

    def _install(self) -> None:
        self._patch(ClientSession, "_request", self._request)

    def _request(self, original: Any) -> Any:
        @wraps(original)
        async def request(session: Any, *args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            response = await original(session, *args, **kwargs)
            telemetry = self.telemetry
            if telemetry is not None and not suppress_nested.get():
                try:
                    content_type = response.headers.get(hdrs.CONTENT_TYPE, "")
                    if is_event_stream(response.method, response.status, content_type):
                        _observe(session, response, telemetry, started)
                except Exception:
                    telemetry.failures.log_failure_once("a stream's start")
            return response

        return request


def _observe(session: Any, response: Any, telemetry: Telemetry, started: float) -> None:
    url: Any = response.url
    content: Any = response.content
    version = response.version
    info = ClientStreamInfo(
        method=response.method,
        scheme=url.scheme,
        host=url.host or "",
        port=url.port,
        known_path=url.path,
        protocol=f"{version.major}.{version.minor}" if version else None,
        status=response.status,
        resumed="Last-Event-ID" in response.request_info.headers,
        context=otel_context.get_current(),
        started=started,
    )
    timer = _Timer(content) if type(content) is StreamReader else None
    stream = open_client_stream(
        telemetry, timer or response, info, (ClientError,), (asyncio.TimeoutError,)
    )
    if stream is None:
        return
    if timer is not None:
        timer.stream = stream
        if not session.auto_decompress and hdrs.CONTENT_ENCODING in response.headers:
            # Nobody decodes it, so its messages are unknown.
            timer.counted_offset = math.inf
        weakref.finalize(response, timer.on_response_freed).atexit = False
        content._timer = timer
        content.__class__ = _Reader
    # The stream may be over by now.
    if content.exception() is not None:
        _close_on_error(stream, content.exception())
    elif content.at_eof():
        stream.close(completed=True)


def _close_on_error(stream: ClientStream, error: BaseException) -> None:
    if error is getattr(client_reqrep, "_CONNECTION_CLOSED_EXCEPTION", None):
        stream.close()  # the reader's own
    elif isinstance(error.__cause__, ContentEncodingError):
        stream.close(error.__cause__)
    else:
        stream.close(error)


class _Timer:
    """A reader's timer, which is entered for each wait, with the stream: it closes with the timer.

    Attributes:
        counted_offset: up to where the stream has been counted, in bytes.
        complete: all of it has arrived; the response is not needed to read the rest.

    """

    __slots__ = ("__weakref__", "_timer", "complete", "counted_offset", "stream")

    stream: ClientStream

    def __init__(self, content: Any) -> None:
        self._timer = content._timer
        self.counted_offset: float = content._cursor
        self.complete: bool = content.is_eof()

    def on_response_freed(self) -> None:
        """The response is garbage, which closes its connection."""
        if not self.complete:
            self.stream.close()

    def __enter__(self) -> Any:
        self.stream.wait_started()
        return self._ask(self._timer.__enter__)

    def __exit__(self, *error: Any) -> Any:
        self.stream.wait_ended()
        return self._ask(self._timer.__exit__, *error)

    def assert_timeout(self) -> None:
        self._ask(self._timer.assert_timeout)

    def _ask(self, timer: Callable[..., Any], *args: Any) -> Any:
        try:
            return timer(*args)
        except asyncio.TimeoutError as late:
            self.stream.close(late)
            raise


# Looked up once: a message may be taken in many lines.
_take: Final = StreamReader._read_nowait_chunk


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
                timer.stream.on_chunk(piece[-new:])
        chunk = _take(self, n)
        if self._eof and not self._buffer:
            timer.stream.close(completed=True)
        return chunk

    def feed_eof(self) -> None:
        timer: Any = self._timer
        timer.complete = True
        super().feed_eof()
        if not self._buffer:
            timer.stream.close(completed=True)

    def set_exception(self, exc: BaseException, *args: Any, **kwargs: Any) -> None:
        super().set_exception(exc, *args, **kwargs)
        timer: Any = self._timer
        _close_on_error(timer.stream, exc)
