"""aiohttp's client, and what reads by it.

The session notes when a request starts. Where a response's headers say that it is an event stream,
its reader becomes one that tells what is taken out of it: every way of reading comes by there,
after chunking and content coding. Readers have no room for attributes; their timer holds ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextvars import ContextVar
from functools import wraps
from time import perf_counter
from types import TracebackType
from typing import Any

from aiohttp import (
    ClientError,
    ClientResponse,
    ClientSession,
    StreamReader,
    client_reqrep,
    hdrs,
)
from opentelemetry import context as otel_context

from otel_sse.instrumentor import SSEInstrumentor
from otel_sse.opening import Call, is_stream
from otel_sse.reading import Reading
from otel_sse.semconv import CLIENT
from otel_sse.telemetry import Telemetry

_started: ContextVar[float] = ContextVar("otel_sse_request_started")


class SSEAiohttpClientInstrumentor(SSEInstrumentor):
    """Tells every event stream that an aiohttp client reads."""

    side = CLIENT

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("aiohttp >= 3.11",)

    def _install(self) -> None:
        self._patch(ClientSession, "_request", self._request)
        self._patch(ClientResponse, "start", self._start)

    def _request(self, original: Any) -> Any:
        @wraps(original)
        async def request(*args: Any, **kwargs: Any) -> Any:
            token = _started.set(perf_counter())
            try:
                return await original(*args, **kwargs)
            finally:
                _started.reset(token)

        return request

    def _start(self, original: Any) -> Any:
        @wraps(original)
        async def start(response: Any, connection: Any) -> Any:
            result = await original(response, connection)
            telemetry = self.telemetry
            if telemetry is not None:
                try:
                    content_type = response.headers.get(hdrs.CONTENT_TYPE, "")
                    if is_stream(response.method, response.status, content_type):
                        _watch(response, telemetry)
                except Exception:
                    telemetry.failed("a connection's start")
            return result

        return start


def _watch(response: Any, telemetry: Telemetry) -> None:
    url: Any = response.url
    content: Any = response.content
    if type(content) is not StreamReader:
        return  # an empty body
    if telemetry.config.excludes(f"{url.scheme}://{url.host}{url.path}"):
        return
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
    started = _started.get(perf_counter())
    reading = Reading(telemetry, call, started, (ClientError,), (asyncio.TimeoutError,))
    timer: Any = _Timer(content._timer, reading)
    content._timer = timer
    content.__class__ = _Reader


class _Timer:
    """A reader's timer, which is entered for each wait, with the reading."""

    __slots__ = ("_timer", "reading")

    def __init__(self, timer: Any, reading: Reading) -> None:
        self._timer = timer
        self.reading = reading

    def __enter__(self) -> Any:
        self.reading.asked()
        return self._timer.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        self.reading.waited()
        try:
            return self._timer.__exit__(kind, error, traceback)
        except asyncio.TimeoutError as late:
            self.reading.end(late)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timer, name)


class _Reader(StreamReader):
    __slots__ = ()

    def _read_nowait_chunk(self, n: int) -> bytes:
        chunk = super()._read_nowait_chunk(n)
        reading = self._timer.reading  # type: ignore[attr-defined]
        reading.received(chunk)
        if self._eof and not self._buffer:
            reading.end(completed=True)
        return chunk

    def feed_eof(self) -> None:
        super().feed_eof()
        if not self._buffer:
            self._timer.reading.end(completed=True)  # type: ignore[attr-defined]

    def set_exception(self, exc: BaseException, *args: Any, **kwargs: Any) -> None:
        super().set_exception(exc, *args, **kwargs)
        left = exc is getattr(client_reqrep, "_CONNECTION_CLOSED_EXCEPTION", None)
        self._timer.reading.end(None if left else exc)  # type: ignore[attr-defined]

    def __del__(self) -> None:
        self._timer.reading.end()  # type: ignore[attr-defined]
