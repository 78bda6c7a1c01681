"""The standard library's http.client, and what reads by it: urllib.request.

A connection knows its request's line and headers until it has sent them. Where it gets a response
that is an event stream, the response becomes one that records what is read of it; see
``stream.body``. Nothing is decoded here: a body with a content coding counts as bytes alone. What
urllib3 reads is left to its own hooks: its connections are a subclass, which reads chunks itself.
"""

from __future__ import annotations

from functools import partial, wraps
from http.client import HTTPException, IncompleteRead
from time import perf_counter
from types import ModuleType
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from otel_sse.instrumentor import Hooks
from otel_sse.stream.body import BodyReader, Original, observing_class
from otel_sse.stream.info import HTTP_VERSIONS, ClientStreamInfo, caller_context
from otel_sse.stream.nested import upper_request
from otel_sse.stream.sharing import open_client_stream, record_failed_connect
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream, is_redirect
from otel_sse.wire.opaque import is_encoded

# In a connection that waits for a response: its ``_Request``.
_KEY: Final = "_otel_sse"


class HttpClientHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module.HTTPConnection, "endheaders", self._endheaders)
        self._patch(module.HTTPConnection, "getresponse", self._getresponse)

    def _endheaders(self, original: Any) -> Any:
        @wraps(original)
        def endheaders(connection: Any, *args: Any, **kwargs: Any) -> Any:
            telemetry = self.telemetry
            if telemetry is None or upper_request.get() is not None or _is_foreign(connection):
                return original(connection, *args, **kwargs)
            request = _Request(telemetry, connection)
            vars(connection)[_KEY] = request
            try:
                return original(connection, *args, **kwargs)
            except Exception as error:
                vars(connection).pop(_KEY, None)
                request.on_failure(connection, error)
                raise

        return endheaders

    def _getresponse(self, original: Any) -> Any:
        @wraps(original)
        def getresponse(connection: Any, *args: Any, **kwargs: Any) -> Any:
            request = vars(connection).pop(_KEY, None)
            if request is None or self.telemetry is None:
                return original(connection, *args, **kwargs)
            try:
                response = original(connection, *args, **kwargs)
            except Exception as error:
                request.on_failure(connection, error)
                raise
            try:
                content_type = ", ".join(response.headers.get_all("content-type", ()))
                if "stream" in content_type.lower() or response.status >= 400:
                    request.on_response(connection, response, content_type)
            except Exception:
                request.telemetry.failures.log_failure_once("a stream's start")
            return response

        return getresponse


def _is_foreign(connection: Any) -> bool:
    """Whether it is of urllib3, or of a copy that another package brings along."""
    for kind in type(connection).__mro__:  # noqa: SIM110 (any() takes twice the time)
        if "urllib3" in kind.__module__:
            return True
    return False


class _Request:
    """A request that is sent, and not answered yet."""

    __slots__ = ("_lines", "_started", "telemetry")

    def __init__(self, telemetry: Telemetry, connection: Any) -> None:
        self._started = perf_counter()
        self.telemetry = telemetry
        # The request's line, then its headers. It is emptied when they are sent.
        self._lines = tuple(getattr(connection, "_buffer", ()))

    def on_failure(self, connection: Any, error: Exception) -> None:
        record_failed_connect(self.telemetry, partial(self._stream_info, connection, None), error)

    def on_response(self, connection: Any, response: Any, content_type: str) -> None:
        """Of one that may be a stream, or a refusal."""
        status = response.status
        if not is_event_stream(response._method or "", status, content_type):
            if status >= 400:
                known = partial(self._stream_info, connection, response)
                record_failed_connect(self.telemetry, known)
        elif not is_redirect(status, response.headers.get("location")):
            self._observe(connection, response)

    def _observe(self, connection: Any, response: Any) -> None:
        observing_class(type(response), _Reader)  # raises before anything is recorded
        encoded = is_encoded(response.headers.get("content-encoding", ""))
        info = self._stream_info(connection, response)._replace(encoded=encoded)
        stream = open_client_stream(self.telemetry, response, info, (HTTPException,), ())
        if stream is not None:
            _Reader(stream).observe(response)

    def _stream_info(self, connection: Any, response: Any | None) -> ClientStreamInfo:
        """Of a response, or of a request that has none."""
        first, *rest = (line.decode("latin-1") for line in self._lines)
        method, target = first.split(" ")[:2]
        pairs = (line.partition(":") for line in rest)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        # A path, or for a proxy all of it.
        url = urlsplit(target)
        scheme = "https" if connection.default_port == 443 else "http"
        tunnel = getattr(connection, "_tunnel_host", None)
        host, port = connection.host, connection.port
        if tunnel:
            host, port = tunnel, connection._tunnel_port
        return ClientStreamInfo(
            method=method,
            scheme=url.scheme or scheme,
            host=url.hostname or host,
            port=url.port if url.hostname else port,
            known_path=url.path,
            protocol=HTTP_VERSIONS.get(0 if response is None else response.version),
            status=0 if response is None else response.status,
            resumed="last-event-id" in headers,
            context=caller_context(),
            started=self._started,
            accept=headers.get("accept", ""),
        )


class _Reader(BodyReader):
    __slots__ = ()

    methods: ClassVar = {
        "read": "read",
        "read1": "read",
        "readline": "read",
        "readinto": "readinto",
        "peek": "peek",
        "close": "close",
    }

    def is_complete(self, body: Any) -> bool:
        # It is not closed by each method that reads the last byte.
        return body.fp is None or (not body.chunked and body.length == 0)

    def is_broken(self, body: Any, error: BaseException) -> bool:
        return body.fp is None or isinstance(error, (OSError, HTTPException))

    def readinto(self, body: Any, original: Original, buffer: Any) -> Any:
        """Observes what reads into ``buffer``."""
        count = self.wait(body, original, buffer)
        self.on_data(body, bytes(memoryview(buffer).cast("B")[:count]))
        return count

    def peek(self, body: Any, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Observes what waits for bytes, and leaves them to be read."""
        data = self.wait(body, original, *args, **kwargs)
        self.on_data(body, None)
        return data

    def check_complete(self, body: Any) -> None:
        if body.fp is None and (body.chunk_left is not None if body.chunked else body.length):
            # http.client raises nothing for a body of a known length that is cut short, nor where
            # lines are read of chunks.
            self.end(body, IncompleteRead(b""))
        else:
            super().check_complete(body)
