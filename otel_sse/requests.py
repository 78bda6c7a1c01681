"""requests, and what reads by it, such as sseclient-py.

Where an adapter gives a response that is an event stream, the response gets a ``Reading``, which is
told of what its ``iter_content`` gives: every way of reading comes by there, after content coding.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Generator
from functools import wraps
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from opentelemetry import context as otel_context
from requests.adapters import HTTPAdapter
from urllib3.exceptions import TimeoutError

from otel_sse.instrumentor import SSEInstrumentor
from otel_sse.opening import Call, is_stream
from otel_sse.reading import Reading
from otel_sse.semconv import CLIENT
from otel_sse.telemetry import Telemetry

# In a response that is watched: its reading.
_KEY: Final = "_otel_sse"
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
            if telemetry is not None:
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
    if telemetry.config.excludes(f"{url.scheme}://{url.hostname}{url.path}"):
        return
    call = Call(
        method=request.method,
        host=url.hostname or "",
        port=url.port or {"http": 80, "https": 443}.get(url.scheme),
        known_path=url.path,
        protocol={10: "1.0", 11: "1.1", 20: "2"}.get(response.raw.version),
        status=response.status_code,
        resumed="Last-Event-ID" in request.headers,
        context=otel_context.get_current(),
    )
    reading = Reading(telemetry, call, started, _BREAKS, (requests.Timeout, TimeoutError))
    # Whoever forgets the response has closed it.
    weakref.finalize(response, reading.end).atexit = False
    vars(response)[_KEY] = reading


def _iter_content(original: Any) -> Any:
    @wraps(original)
    def iter_content(response: Any, *args: Any, **kwargs: Any) -> Any:
        reading = vars(response).get(_KEY)
        chunks = original(response, *args, **kwargs)
        return chunks if reading is None else _read(chunks, reading)

    return iter_content


def _read(chunks: Any, reading: Reading) -> Generator[Any, None, None]:
    try:
        reading.asked()
        for chunk in chunks:
            reading.waited()
            reading.received(chunk.encode() if isinstance(chunk, str) else chunk)
            yield chunk
            reading.asked()
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
        try:
            original(response)
        finally:
            if _KEY in vars(response):
                vars(response)[_KEY].end()

    return close
