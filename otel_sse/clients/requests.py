"""requests, and what reads by it, such as sseclient-py.

Where an adapter returns a response that is an event stream, urllib3's response in it records what
is read of it, however that is: by ``iter_content`` or raw. An adapter may return one of its own
instead, as those of tests do: of that, what ``iter_content`` yields is recorded.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial, wraps
from time import perf_counter
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ProtocolError, SSLError, TimeoutError
from urllib3.response import HTTPResponse

from otel_sse.clients.urllib3_body import Urllib3Reader, is_decodable
from otel_sse.instrumentor import Hooks
from otel_sse.stream.body import observing_class
from otel_sse.stream.info import HTTP_VERSIONS, ClientStreamInfo, caller_context
from otel_sse.stream.nested import ObservedStream, upper_request
from otel_sse.stream.sharing import open_client_stream, record_failed_connect
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream, is_redirect
from otel_sse.wire.opaque import is_encoded

# In a response that is not of urllib3: its stream.
_KEY: Final = "_otel_sse"
_decode: Final[Any] = requests.utils.stream_decode_response_unicode
_DISCONNECT_ERRORS: Final = (
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ConnectionError,
    ProtocolError,
    SSLError,
)


class RequestsHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch(HTTPAdapter, "send", self._send)
        self._patch(requests.Response, "iter_content", _iter_content)
        self._patch(requests.Response, "close", _close)

    def _send(self, original: Any) -> Any:
        @wraps(original)
        def send(adapter: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            token = upper_request.set(request)
            try:
                response = original(adapter, request, *args, **kwargs)
            except Exception as error:
                self._on_failure(request, started, error)
                raise
            finally:
                upper_request.reset(token)
            telemetry = self.telemetry
            if telemetry is not None:
                try:
                    _observe(request, response, telemetry, started)
                except Exception:
                    telemetry.failures.log_failure_once("a stream's start")
            return response

        return send

    def _on_failure(self, request: Any, started: float, error: Exception) -> None:
        if self.telemetry is not None:
            known = partial(_stream_info, request, None, started)
            record_failed_connect(self.telemetry, known, error)


def _observe(request: Any, response: Any, telemetry: Telemetry, started: float) -> None:
    headers = response.headers
    status = response.status_code
    is_stream = is_event_stream(request.method, status, headers.get("content-type", ""))
    if not is_stream or is_redirect(status, headers.get("location")):
        if status >= 400:
            record_failed_connect(telemetry, partial(_stream_info, request, response, started))
        return
    encoding = headers.get("content-encoding", "")
    raw, encoded = response.raw, is_encoded(encoding)
    of_urllib3 = isinstance(raw, HTTPResponse)
    if of_urllib3:
        observing_class(type(raw), Urllib3Reader)  # raises before anything is recorded
    decodable = encoded and is_decodable(raw, encoding)
    info = _stream_info(request, response, started)._replace(encoded=encoded and not decodable)
    timeouts = (requests.Timeout, TimeoutError)
    owner = raw if of_urllib3 else response
    stream = open_client_stream(telemetry, owner, info, _DISCONNECT_ERRORS, timeouts)
    if stream is None:
        return
    if of_urllib3:
        Urllib3Reader(stream, decodable).observe(raw)
    else:
        vars(response)[_KEY] = stream


def _stream_info(request: Any, response: Any | None, started: float) -> ClientStreamInfo:
    """Of a response, or of a request that has none."""
    url = urlsplit(request.url)
    version = None if response is None else getattr(response.raw, "version", None)
    return ClientStreamInfo(
        method=request.method,
        scheme=url.scheme,
        host=url.hostname or "",
        port=url.port,
        known_path=url.path,
        protocol=HTTP_VERSIONS.get(version or 0),
        status=0 if response is None else response.status_code,
        resumed="Last-Event-ID" in request.headers,
        context=caller_context(),
        started=started,
        accept=_text(request.headers.get("accept", "")),
    )


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _iter_content(original: Any) -> Any:
    @wraps(original)
    def iter_content(
        response: Any, chunk_size: int | None = 1, decode_unicode: bool = False
    ) -> Any:
        stream = vars(response).get(_KEY)
        if stream is None:
            return original(response, chunk_size, decode_unicode)
        # The bytes are counted, then decoded.
        chunks = _read(original(response, chunk_size), response, stream)
        return _decode(chunks, response) if decode_unicode else chunks

    return iter_content


def _read(chunks: Any, response: Any, stream: ObservedStream) -> Generator[bytes, None, None]:
    try:
        stream.wait_started()
        for chunk in chunks:
            stream.on_chunk(chunk, waited=True)
            yield chunk
            stream.wait_started()
    except GeneratorExit as error:
        chunks.close()
        # Where that has left the connection open, another call may read the rest.
        if getattr(response.raw, "closed", True):
            # What comes after this is not the stream's, though its close may be deferred.
            vars(response).pop(_KEY, None)
            stream.close(error)
        raise
    except BaseException as error:
        # A time-out in the body comes as a ConnectionError that holds it.
        inner = error.args[0] if error.args else None
        stream.close(inner if isinstance(inner, TimeoutError) else error)
        raise
    else:
        stream.close(completed=True)


def _close(original: Any) -> Any:
    @wraps(original)
    def close(response: Any) -> None:
        # Before the close, which breaks a read in another thread.
        if _KEY in vars(response):
            vars(response)[_KEY].close()
        original(response)

    return close
