"""curl_cffi's sessions, where they stream.

libcurl receives the body in a thread or task of its own, and puts its pieces into a queue of the
response, which a session returns with the first one. Where that is an event stream, the response
becomes one that records what is taken out of the queue; see ``stream.body``. Every way of reading
passes ``iter_content`` or ``aiter_content``, after content coding. What is read without
``stream=True`` is not seen: libcurl collects it, and returns it at its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from functools import partial, wraps
from time import perf_counter
from types import ModuleType
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from curl_cffi import CurlECode
from curl_cffi.requests.exceptions import (
    ConnectionError,
    IncompleteRead,
    RequestException,
    Timeout,
    code2error,
)
from opentelemetry import context as otel_context

from otel_sse.instrumentor import Hooks
from otel_sse.stream.body import BodyReader, Original, observing_class
from otel_sse.stream.info import ClientStreamInfo
from otel_sse.stream.nested import ObservedStream
from otel_sse.stream.sharing import open_client_stream, record_failed_connect
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream, is_redirect
from otel_sse.wire.opaque import is_encoded

# By libcurl's numbers.
_VERSIONS: Final = {1: "1.0", 2: "1.1", 3: "2", 30: "3"}
# Breaks of a connection whose class is that of any other HTTP error.
_BREAKS: Final = {CurlECode.HTTP2, CurlECode.HTTP2_STREAM, CurlECode.HTTP3}


class CurlCffiHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module.Session, "request", self._request)
        self._patch(module.AsyncSession, "request", self._request_async)

    def _request(self, original: Any) -> Any:
        @wraps(original)
        def request(session: Any, *args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            try:
                response = original(session, *args, **kwargs)
            except Exception as error:
                self._on_failure(error, started)
                raise
            self._on_response(response, kwargs, started)
            return response

        return request

    def _request_async(self, original: Any) -> Any:
        @wraps(original)
        async def request(session: Any, *args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            try:
                response = await original(session, *args, **kwargs)
            except Exception as error:
                self._on_failure(error, started)
                raise
            self._on_response(response, kwargs, started)
            return response

        return request

    def _on_failure(self, error: Exception, started: float) -> None:
        # That of a request which was sent has one, though there be no status.
        response = getattr(error, "response", None)
        if self.telemetry is None or response is None:
            return
        # Without a code it is the session that raises, for the status.
        of_curl = error if getattr(error, "code", 0) else None
        known = partial(_stream_info, response, started)
        record_failed_connect(self.telemetry, known, of_curl)

    def _on_response(self, response: Any, kwargs: dict[str, Any], started: float) -> None:
        telemetry = self.telemetry
        if telemetry is None or (response.queue is None and response.status_code < 400):
            return
        try:
            _observe(response, telemetry, kwargs.get("accept_encoding", ""), started)
        except Exception:
            telemetry.failures.log_failure_once("a stream's start")


def _observe(response: Any, telemetry: Telemetry, codings: str | None, started: float) -> None:
    headers, status = response.headers, response.status_code
    is_stream = response.queue is not None and is_event_stream(
        response.request.method, status, ", ".join(headers.get_list("content-type"))
    )
    if not is_stream or is_redirect(status, headers.get("location")):
        if status >= 400:
            record_failed_connect(telemetry, partial(_stream_info, response, started))
        return
    reader = _Reader if response.astream_task is None else _AsyncReader
    observing_class(type(response), reader)  # raises before anything is recorded
    # libcurl decodes where it is given codings, whatever they are, and fails where it cannot.
    encoded = codings is None and is_encoded(headers.get("content-encoding", ""))
    stream = open_client_stream(
        telemetry,
        response,
        _stream_info(response, started)._replace(encoded=encoded),
        (ConnectionError, IncompleteRead),
        (Timeout,),
    )
    if stream is not None:
        reader(stream).observe(response)


def _stream_info(response: Any, started: float) -> ClientStreamInfo:
    """Of a response, or of what stands for it where there is none."""
    request = response.request
    url = urlsplit(response.url)
    return ClientStreamInfo(
        method=request.method,
        scheme=url.scheme,
        host=url.hostname or "",
        port=url.port,
        known_path=url.path,
        protocol=_VERSIONS.get(response.http_version),
        status=response.status_code,
        resumed="last-event-id" in request.headers,
        context=otel_context.get_current(),
        started=started,
        accept=request.headers.get("accept") or "",
    )


class _Reader(BodyReader):
    __slots__ = ()

    methods: ClassVar = {"iter_content": "iter_content", "close": "close"}

    def is_complete(self, body: Any) -> bool:
        return False

    def is_broken(self, body: Any, error: BaseException) -> bool:
        return isinstance(error, RequestException)

    def iter_content(
        self, body: Any, original: Original, *args: Any, **kwargs: Any
    ) -> Generator[bytes, None, None]:
        """Observes a generator that raises unless the body is complete."""
        yield from self.iterate(body, original(*args, **kwargs))
        self.end(body, completed=True)

    # Up to 0.14 at least, what a stream raises has no class of its own, only the code.
    def end(
        self, body: Any, error: BaseException | None = None, *, completed: bool = False
    ) -> None:
        if isinstance(error, RequestException):
            code: Any = error.code
            kind = ConnectionError if code in _BREAKS else code2error(code, str(error))
            if not isinstance(error, kind):
                error = kind(str(error), code)
        super().end(body, error, completed=completed)


class _AsyncReader(_Reader):
    __slots__ = ("_task",)

    methods: ClassVar = {"aiter_content": "aiter_content", "aclose": "close", "close": "close"}

    def __init__(self, stream: ObservedStream) -> None:
        super().__init__(stream)
        # The task that is in a read.
        self._task: asyncio.Task[Any] | None = None

    def is_reading(self) -> bool:
        """Whether this task is in a read, which closes the response at its end."""
        task = self._task
        return task is not None and asyncio.current_task(task.get_loop()) is task

    async def aiter_content(
        self, body: Any, original: Original, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[bytes, None]:
        """Observes what ``iter_content`` does, asynchronously."""
        chunks = original(*args, **kwargs)
        try:
            while (chunk := await self._next(body, chunks)) is not None:
                self.stream.on_chunk(chunk, waited=True)
                yield chunk
            self.end(body, completed=True)
        finally:
            await chunks.aclose()

    async def _next(self, body: Any, chunks: Any) -> bytes | None:
        self._task = asyncio.current_task()
        self.stream.wait_started()
        try:
            chunk: bytes | None = await anext(chunks, None)
            return chunk
        except BaseException as error:
            self.on_error(body, error)
            raise
        finally:
            self._task = None
