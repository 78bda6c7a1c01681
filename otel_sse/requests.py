"""requests, and what reads by it, such as sseclient-py.

Where an adapter gives a response that is an event stream, the response gets a ``Reading``, which is
told of what its ``iter_content`` gives: every way of reading comes by there, after content coding.
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
from otel_sse.opening import Call, is_stream
from otel_sse.reading import Reading, in_hand, read
from otel_sse.semconv import CLIENT
from otel_sse.telemetry import Telemetry

# In a response that is watched: its reading.
_KEY: Final = "_otel_sse"
_decoded: Final[Any] = requests.utils.stream_decode_response_unicode
_BREAKS: Final = (requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)


class SSERequestsInstrumentor(SSEInstrumentor):
    """Tells every event stream that a requests session reads."""

    side = CLIENT

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
            if telemetry is not None and not in_hand.get():
                try:
                    content_type = response.headers.get("content-type", "")
                    if is_stream(request.method, response.status_code, content_type):
                        _watch(request, response, telemetry, started)
                except Exception:
                    telemetry.failed("a connection's start")
            return response

        return send


def _watch(request: Any, response: Any, telemetry: Telemetry, started: float) -> None:
    url = urlsplit(request.url)
    call = Call(
        method=request.method,
        host=url.hostname or "",
        port=url.port,
        known_path=url.path,
        protocol={10: "1.0", 11: "1.1", 20: "2"}.get(response.raw.version),
        status=response.status_code,
        resumed="Last-Event-ID" in request.headers,
        context=_context(),
    )
    reading = read(
        telemetry, response, call, url.scheme, started, _BREAKS, (requests.Timeout, TimeoutError)
    )
    if reading is not None:
        vars(response)[_KEY] = reading


def _context() -> Context:
    """The call's: contrib's instrumentation is within it by then, and its span is beside ours."""
    context = otel_context.get_current()
    span: Any = trace.get_current_span(context)
    scope = getattr(span, "instrumentation_scope", None)
    if scope is None or scope.name != "opentelemetry.instrumentation.requests":
        return context
    above = trace.INVALID_SPAN if span.parent is None else trace.NonRecordingSpan(span.parent)
    return trace.set_span_in_context(above, context)


def _iter_content(original: Any) -> Any:
    @wraps(original)
    def iter_content(
        response: Any, chunk_size: int | None = 1, decode_unicode: bool = False
    ) -> Any:
        reading = vars(response).get(_KEY)
        if reading is None:
            return original(response, chunk_size, decode_unicode)
        # Counted as they come, then decoded.
        chunks = _read(original(response, chunk_size), response, reading)
        return _decoded(chunks, response) if decode_unicode else chunks

    return iter_content


def _read(chunks: Any, response: Any, reading: Reading) -> Generator[bytes, None, None]:
    try:
        reading.asked()
        for chunk in chunks:
            reading.received(chunk, True)
            yield chunk
            reading.asked()
    except GeneratorExit:
        chunks.close()
        # Where that has left the connection open, another call may read the rest.
        if getattr(response.raw, "closed", True):
            reading.end()
        raise
    except BaseException as error:
        # A time-out in the body comes as a ConnectionError that holds it.
        inner = error.args[0] if error.args else None
        reading.end(inner if isinstance(inner, TimeoutError) else error)
        raise
    else:
        reading.end(completed=True)


def _close(original: Any) -> Any:
    @wraps(original)
    def close(response: Any) -> None:
        # First, since who reads it in another thread finds it broken then.
        if _KEY in vars(response):
            vars(response)[_KEY].end()
        original(response)

    return close
