"""Tornado's ``AsyncHTTPClient``, in its own implementation; that by libcurl is not seen.

Each request has a connection of its own, which is the delegate of Tornado's HTTP reader: it gets
the headers, the decoded pieces of the body, and the end. Where the response is an event stream, the
connection becomes one that records them; see ``stream.body``. The pieces are pushed, so the reader
waits from where it has taken one until the next one comes.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import copy_context
from functools import partial, wraps
from time import perf_counter
from types import ModuleType
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from tornado.iostream import StreamClosedError
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError

from otel_sse.instrumentor import Hooks
from otel_sse.stream.body import BodyReader, Original, observing_class
from otel_sse.stream.info import ClientStreamInfo, caller_context
from otel_sse.stream.sharing import open_client_stream, record_failed_connect
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream, is_redirect
from otel_sse.wire.opaque import is_encoded

# In a request that is sent: its ``_Request``.
_KEY: Final = "_otel_sse"
# The response that Tornado makes where there is none.
_NO_RESPONSE: Final = 599


class TornadoClientHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module.SimpleAsyncHTTPClient, "fetch_impl", self._fetch)
        self._patch(module._HTTPConnection, "headers_received", _headers_received)

    def _fetch(self, original: Any) -> Any:
        @wraps(original)
        def fetch_impl(client: Any, request: Any, callback: Any) -> Any:
            telemetry = self.telemetry
            if telemetry is None:
                return original(client, request, callback)
            # A redirect is a request within another one.
            first = getattr(request, "original_request", None)
            if first is not None:
                vars(request)[_KEY] = vars(first).get(_KEY)
                return original(client, request, callback)
            sent = vars(request)[_KEY] = _Request(telemetry)

            @wraps(callback)
            def on_response(response: Any) -> Any:
                if response.code == _NO_RESPONSE:
                    sent.on_failure(request, response.error)
                return callback(response)

            return original(client, request, on_response)

        return fetch_impl


def _headers_received(original: Any) -> Any:
    @wraps(original)
    def headers_received(connection: Any, first_line: Any, headers: Any) -> Any:
        sent = vars(connection.request).get(_KEY)
        if sent is not None and first_line.code >= 200:
            sent.on_headers(connection, first_line, headers)
        return original(connection, first_line, headers)

    return headers_received


class _Request:
    """A request of the application's, with its redirects."""

    __slots__ = ("_answered", "_started", "_telemetry", "_variables")

    def __init__(self, telemetry: Telemetry) -> None:
        self._started = perf_counter()
        self._telemetry = telemetry
        # The call's: the request may wait in the client's queue for another one's end.
        self._variables = copy_context()
        # The headers of a response that is no redirect have come.
        self._answered = False

    def on_failure(self, request: Any, error: Exception) -> None:
        if not self._answered:
            record_failed_connect(self._telemetry, partial(self._stream_info, request, 0), error)

    def on_headers(self, connection: Any, first_line: Any, headers: Any) -> None:
        try:
            status, request = first_line.code, connection.request
            if is_redirect(status, headers.get("Location")):
                return
            self._answered = True
            content_type = headers.get("Content-Type", "")
            if is_event_stream(request.method, status, content_type):
                self._observe(connection, first_line, headers)
            elif status >= 400:
                record_failed_connect(self._telemetry, partial(self._stream_info, request, status))
        except Exception:
            self._telemetry.failures.log_failure_once("a stream's start")

    def _observe(self, connection: Any, first_line: Any, headers: Any) -> None:
        observing_class(type(connection), _Reader)  # raises before anything is recorded
        info = self._stream_info(connection.request, first_line.code)._replace(
            protocol=first_line.version.partition("/")[2] or None,
            # Tornado removes the header of what it decodes.
            encoded=is_encoded(headers.get("Content-Encoding", "")),
        )
        stream = open_client_stream(
            self._telemetry,
            connection,
            info,
            (HTTPStreamClosedError, StreamClosedError),
            (HTTPTimeoutError,),
        )
        if stream is not None:
            _Reader(stream).observe(connection)
            stream.wait_started()

    def _stream_info(self, request: Any, status: int) -> ClientStreamInfo:
        """``status`` is 0 where there is no response."""
        url = urlsplit(request.url)
        return ClientStreamInfo(
            method=request.method,
            scheme=url.scheme,
            host=url.hostname or "",
            port=url.port,
            known_path=url.path,
            protocol=None,
            status=status,
            resumed="Last-Event-ID" in request.headers,
            context=self._variables.run(caller_context),
            started=self._started,
            accept=request.headers.get("Accept", ""),
        )


class _Reader(BodyReader):
    __slots__ = ()

    methods: ClassVar = {
        "data_received": "data_received",
        "finish": "finish",
        "_handle_exception": "on_exception",
    }

    def is_complete(self, body: Any) -> bool:
        return False

    def data_received(self, body: Any, original: Original, chunk: bytes) -> Any:
        """Observes a piece of the body, which the application's callback takes."""
        self.stream.on_chunk(chunk, waited=True)
        try:
            taken = original(chunk)
        except BaseException:
            # The application's own, which makes Tornado close the connection.
            self.end(body)
            raise
        if taken is not None:
            return self._take(body, taken)
        self.stream.wait_started()
        return None

    async def _take(self, body: Any, taken: Awaitable[None]) -> None:
        try:
            await taken
        except BaseException:
            self.end(body)
            raise
        self.stream.wait_started()

    def finish(self, body: Any, original: Original) -> Any:
        self.end(body, completed=True)
        return original()

    def on_exception(self, body: Any, original: Original, kind: Any, error: Any, *args: Any) -> Any:
        """Observes what ends the request without a whole response."""
        inner = error.real_error if isinstance(error, StreamClosedError) else None
        self.end(body, error if inner is None else inner)
        return original(kind, error, *args)
