"""requests, and what reads by it, such as sseclient-py.

Where an adapter returns a response that is an event stream, the response gets a ``ClientStream``,
which records what its ``iter_content`` yields: every way of reading but that of ``response.raw``
passes there, after content coding.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from functools import wraps
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from requests.adapters import HTTPAdapter
from urllib3.exceptions import TimeoutError

from otel_sse.instrumentor import SSEInstrumentor
from otel_sse.process.server_facts import CONTRIB_REQUESTS_SCOPE
from otel_sse.semconv import CLIENT
from otel_sse.stream.client import ClientStream, suppress_nested
from otel_sse.stream.info import ClientStreamInfo
from otel_sse.stream.sharing import open_client_stream
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream

# In a response that is observed: its stream.
_KEY: Final = "_otel_sse"
_decode: Final[Any] = requests.utils.stream_decode_response_unicode
_DISCONNECT_ERRORS: Final = (
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ConnectionError,
)


class SSERequestsInstrumentor(SSEInstrumentor):
    """Records every event stream that a requests session reads."""

    role = CLIENT

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("requests >= 2.28",)

    def _install(self) -> None:
        self._patch(HTTPAdapter, "send", self._send)
        self._patch(requests.Response, "iter_content", _iter_content)
        self._patch(requests.Response, "close", _close)

    def _send(self, original: Any) -> Any:
        @wraps(original)
        def send(adapter: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            response = original(adapter, request, *args, **kwargs)
            telemetry = self.telemetry
            if telemetry is not None and not suppress_nested.get():
                try:
                    content_type = response.headers.get("content-type", "")
                    if is_event_stream(request.method, response.status_code, content_type):
                        _observe(request, response, telemetry, started)
                except Exception:
                    telemetry.failures.log_failure_once("a stream's start")
            return response

        return send


def _observe(request: Any, response: Any, telemetry: Telemetry, started: float) -> None:
    url = urlsplit(request.url)
    info = ClientStreamInfo(
        method=request.method,
        scheme=url.scheme,
        host=url.hostname or "",
        port=url.port,
        known_path=url.path,
        protocol={10: "1.0", 11: "1.1", 20: "2"}.get(response.raw.version),
        status=response.status_code,
        resumed="Last-Event-ID" in request.headers,
        context=_context(),
        started=started,
    )
    timeouts = (requests.Timeout, TimeoutError)
    stream = open_client_stream(telemetry, response, info, _DISCONNECT_ERRORS, timeouts)
    if stream is not None:
        vars(response)[_KEY] = stream


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
        stream = vars(response).get(_KEY)
        if stream is None:
            return original(response, chunk_size, decode_unicode)
        # The bytes are counted, then decoded.
        chunks = _read(original(response, chunk_size), response, stream)
        return _decode(chunks, response) if decode_unicode else chunks

    return iter_content


def _read(chunks: Any, response: Any, stream: ClientStream) -> Generator[bytes, None, None]:
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
            vars(response)[_KEY].close()
        original(response)

    return close
