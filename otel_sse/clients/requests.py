"""requests, and what reads by it, such as sseclient-py.

Where an adapter returns a response that is an event stream, the response gets a ``ClientStream``,
which records what its ``iter_content`` yields: every way of reading but that of ``response.raw``
passes there, after content coding. Of what is read raw only the end is known: urllib3 catches the
errors of each read in one place, and closes its own response at the body's end.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from requests.adapters import HTTPAdapter
from urllib3.exceptions import TimeoutError

from otel_sse.instrumentor import Hooks
from otel_sse.process.server_facts import CONTRIB_REQUESTS_SCOPE
from otel_sse.stream.info import ClientStreamInfo
from otel_sse.stream.nested import ObservedStream
from otel_sse.stream.sharing import open_client_stream, record_failed_connect
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream, is_redirect
from otel_sse.wire.opaque import is_encoded

# In a response that is observed: its ``_Reader``.
_KEY: Final = "_otel_sse"
_decode: Final[Any] = requests.utils.stream_decode_response_unicode
_DISCONNECT_ERRORS: Final = (
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ConnectionError,
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
            try:
                response = original(adapter, request, *args, **kwargs)
            except Exception as error:
                self._on_failure(request, started, error)
                raise
            telemetry = self.telemetry
            if telemetry is not None:
                try:
                    _observe(request, response, telemetry, started)
                except Exception:
                    telemetry.failures.log_failure_once("a stream's start")
            return response

        return send

    def _on_failure(self, request: Any, started: float, error: Exception) -> None:
        telemetry = self.telemetry
        if telemetry is None:
            return
        try:
            record_failed_connect(telemetry, _stream_info(request, None, started), error)
        except Exception:
            telemetry.failures.log_failure_once("a failed connect")


def _observe(request: Any, response: Any, telemetry: Telemetry, started: float) -> None:
    headers = response.headers
    status = response.status_code
    is_stream = is_event_stream(request.method, status, headers.get("content-type", ""))
    if not is_stream or is_redirect(status, headers.get("location")):
        if status >= 400:
            record_failed_connect(telemetry, _stream_info(request, response, started))
        return
    encoding = headers.get("content-encoding", "")
    encoded = is_encoded(encoding) and not _is_decodable(response.raw, encoding)
    info = _stream_info(request, response, started)._replace(encoded=encoded)
    timeouts = (requests.Timeout, TimeoutError)
    stream = open_client_stream(telemetry, response, info, _DISCONNECT_ERRORS, timeouts)
    if stream is not None:
        vars(response)[_KEY] = reader = _Reader(stream)
        _observe_raw(response.raw, reader)


def _is_decodable(raw: Any, encoding: str) -> bool:
    """Whether urllib3 has a decoder for each coding; it passes over what it does not know."""
    known = getattr(raw, "CONTENT_DECODERS", ())
    return all(coding.strip().lower() in known for coding in encoding.split(","))


class _Reader:
    """A response's stream; ``raw`` as long as it is not read by ``iter_content``."""

    __slots__ = ("raw", "stream")

    def __init__(self, stream: ObservedStream) -> None:
        self.stream = stream
        self.raw = True


def _observe_raw(raw: Any, reader: _Reader) -> None:
    """Observes how the body ends, if it is read raw: its bytes do not pass here."""
    catch = getattr(type(raw), "_error_catcher", None)
    if catch is None or not hasattr(raw, "_original_response"):
        return
    # The response holds what is made here, and must not hold itself by it.
    reference = weakref.ref(raw)

    @contextmanager
    def error_catcher() -> Iterator[None]:
        response: Any = reference()
        try:
            with catch(response):
                yield
        except Exception as error:
            if reader.raw:
                reader.stream.close(error)
            raise
        original = response._original_response
        if reader.raw and original is not None and original.isclosed():
            reader.stream.close(completed=True)

    raw._error_catcher = error_catcher


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
        protocol={10: "1.0", 11: "1.1", 20: "2"}.get(version or 0),
        status=0 if response is None else response.status_code,
        resumed="Last-Event-ID" in request.headers,
        context=_context(),
        started=started,
        accept=_text(request.headers.get("accept", "")),
    )


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _context() -> Context:
    """The call's context: by now contrib's instrumentation has made its own span current, and that
    span has to be beside ours.
    """
    context = otel_context.get_current()
    span: Any = trace.get_current_span(context)
    scope = getattr(span, "instrumentation_scope", None)
    if scope is None or scope.name != CONTRIB_REQUESTS_SCOPE:
        return context
    parent = trace.INVALID_SPAN if span.parent is None else trace.NonRecordingSpan(span.parent)
    return trace.set_span_in_context(parent, context)


def _iter_content(original: Any) -> Any:
    @wraps(original)
    def iter_content(
        response: Any, chunk_size: int | None = 1, decode_unicode: bool = False
    ) -> Any:
        reader = vars(response).get(_KEY)
        if reader is None:
            return original(response, chunk_size, decode_unicode)
        reader.raw = False
        # The bytes are counted, then decoded.
        chunks = _read(original(response, chunk_size), response, reader.stream)
        return _decode(chunks, response) if decode_unicode else chunks

    return iter_content


def _read(chunks: Any, response: Any, stream: ObservedStream) -> Generator[bytes, None, None]:
    try:
        stream.wait_started()
        for chunk in chunks:
            stream.on_chunk(chunk, waited=True)
            yield chunk
            stream.wait_started()
    except GeneratorExit:
        chunks.close()
        # Where that has left the connection open, another call may read the rest.
        if getattr(response.raw, "closed", True):
            stream.close()
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
            vars(response)[_KEY].stream.close()
        original(response)

    return close
