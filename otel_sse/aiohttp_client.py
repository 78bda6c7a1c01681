"""aiohttp's client, and what reads by it.

Where a session gives a response that is an event stream, the response's reader becomes one that
tells what is taken out of it: every way of reading comes by there, after chunking and content
coding. Readers have no room for attributes; their timer holds ours.
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
from otel_sse.opening import Call, is_stream
from otel_sse.reading import Reading, in_hand, read
from otel_sse.semconv import CLIENT
from otel_sse.telemetry import Telemetry


class SSEAiohttpClientInstrumentor(SSEInstrumentor):
    """Tells every event stream that an aiohttp client reads."""

    side = CLIENT

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
            if telemetry is not None and not in_hand.get():
                try:
                    content_type = response.headers.get(hdrs.CONTENT_TYPE, "")
                    if is_stream(response.method, response.status, content_type):
                        _watch(session, response, telemetry, started)
                except Exception:
                    telemetry.failed("a connection's start")
            return response

        return request


def _watch(session: Any, response: Any, telemetry: Telemetry, started: float) -> None:
    url: Any = response.url
    content: Any = response.content
    version = response.version
    call = Call(
        method=response.method,
        host=url.host or "",
        port=url.port,
        known_path=url.path,
        protocol=f"{version.major}.{version.minor}" if version else None,
        status=response.status,
        resumed="Last-Event-ID" in response.request_info.headers,
        context=otel_context.get_current(),
    )
    timer = _Timer(content) if type(content) is StreamReader else None
    reading = read(
        telemetry,
        timer or response,
        call,
        url.scheme,
        started,
        (ClientError,),
        (asyncio.TimeoutError,),
    )
    if reading is None:
        return
    if timer is not None:
        timer.reading = reading
        if not session.auto_decompress and hdrs.CONTENT_ENCODING in response.headers:
            timer.told = math.inf
        weakref.finalize(response, timer.forgotten).atexit = False
        content._timer = timer
        content.__class__ = _Reader
    # By now it may all be over.
    if content.exception() is not None:
        _fail(reading, content.exception())
    elif content.at_eof():
        reading.end(completed=True)


def _fail(reading: Reading, error: BaseException) -> None:
    if error is getattr(client_reqrep, "_CONNECTION_CLOSED_EXCEPTION", None):
        reading.end()  # the reader's own close
    elif isinstance(error.__cause__, ContentEncodingError):
        reading.end(error.__cause__)
    else:
        reading.end(error)


class _Timer:
    """A reader's timer, which is entered for each wait, with the reading: that ends with it."""

    __slots__ = ("__weakref__", "_timer", "reading", "told", "whole")

    reading: Reading

    def __init__(self, content: Any) -> None:
        self._timer = content._timer
        # Up to where the stream has been told, in bytes.
        self.told: float = content._cursor
        # All of it has come: no response is needed to read the rest.
        self.whole: bool = content.is_eof()

    def forgotten(self) -> None:
        """The response is: that closes its connection."""
        if not self.whole:
            self.reading.end()

    def __enter__(self) -> Any:
        self.reading.asked()
        return self._ask(self._timer.__enter__)

    def __exit__(self, *error: Any) -> Any:
        self.reading.waited()
        return self._ask(self._timer.__exit__, *error)

    def assert_timeout(self) -> None:
        self._ask(self._timer.assert_timeout)

    def _ask(self, timer: Callable[..., Any], *args: Any) -> Any:
        try:
            return timer(*args)
        except asyncio.TimeoutError as late:
            self.reading.end(late)
            raise


# Found once: a message may be taken in many lines.
_take: Final = StreamReader._read_nowait_chunk


class _Reader(StreamReader):
    __slots__ = ()

    def _read_nowait_chunk(self, n: int) -> bytes:
        timer: Any = self._timer
        # A piece as it came, though it may be taken a line at a time; less what was put back.
        if not self._buffer_offset:
            piece = self._buffer[0]
            new = self._cursor + len(piece) - timer.told
            if new > 0:
                timer.told += new
                timer.reading.received(piece[-new:])
        chunk = _take(self, n)
        if self._eof and not self._buffer:
            timer.reading.end(completed=True)
        return chunk

    def feed_eof(self) -> None:
        timer: Any = self._timer
        timer.whole = True
        super().feed_eof()
        if not self._buffer:
            timer.reading.end(completed=True)

    def set_exception(self, exc: BaseException, *args: Any, **kwargs: Any) -> None:
        super().set_exception(exc, *args, **kwargs)
        timer: Any = self._timer
        _fail(timer.reading, exc)
