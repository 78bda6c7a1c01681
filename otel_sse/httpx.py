"""httpx and httpx2, and what reads by them: httpx-sse, the SDKs of OpenAI, Anthropic and MCP.

A client sends each request singly, behind its redirects and authentication: there a response is
found to be an event stream, and its stream gets a ``Reading``. The classes of those streams are
patched to tell that of what is read. Where the content is coded, the decoder tells the bytes.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator
from functools import partial, wraps
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_sse.instrumentor import SSEInstrumentor
from otel_sse.opening import Call, is_stream
from otel_sse.reading import Reading, in_hand, read, taken
from otel_sse.semconv import CLIENT

# In a stream that is watched: its reading, and whether another tells it the bytes.
_KEY: Final = "_otel_sse"
_PACKAGES: Final = {"httpx": "httpx >= 0.25, < 1", "httpx2": "httpx2 >= 2.0"}


class SSEHttpxInstrumentor(SSEInstrumentor):
    """Tells every event stream that an httpx or httpx2 client reads."""

    side = CLIENT

    def instrumentation_dependencies(self) -> Collection[str]:
        # One of them is enough, and each that is there has to be new enough.
        return tuple(_PACKAGES[name] for name in _present()) or (_PACKAGES["httpx"],)

    def _install(self) -> None:
        for name in _present():
            client = import_module(name + "._client")
            package = import_module(name)
            self._patch(client.Client, "_send_single_request", partial(self._send, package))
            self._patch(
                client.AsyncClient, "_send_single_request", partial(self._send_async, package)
            )
            self._patch(package.WSGITransport, "handle_request", _answer)
            self._patch(package.ASGITransport, "handle_async_request", _answer_async)
            self._patch(client.BoundSyncStream, "__iter__", partial(_iterate, _read))
            self._patch(client.BoundSyncStream, "close", _close)
            self._patch(client.BoundAsyncStream, "__aiter__", partial(_iterate, _read_async))
            self._patch(client.BoundAsyncStream, "aclose", _close_async)

    def _send(self, package: Any, original: Any) -> Any:
        @wraps(original)
        def send(client: Any, request: Any) -> Any:
            started = perf_counter()
            with taken(True):
                response = original(client, request)
            self._watch(package, request, response, started)
            return response

        return send

    def _send_async(self, package: Any, original: Any) -> Any:
        @wraps(original)
        async def send(client: Any, request: Any) -> Any:
            started = perf_counter()
            with taken(True):
                response = await original(client, request)
            self._watch(package, request, response, started)
            return response

        return send

    def _watch(self, package: Any, request: Any, response: Any, started: float) -> None:
        telemetry = self.telemetry
        # What a transport gives may have been read before.
        if telemetry is None or in_hand.get() or response.is_closed:
            return
        try:
            content_type = response.headers.get("content-type", "")
            if not is_stream(request.method, response.status_code, content_type):
                return
            reading = read(
                telemetry,
                response.stream,
                _call(request, response),
                request.url.scheme,
                started,
                (package.NetworkError, package.RemoteProtocolError),
                (package.TimeoutException,),
            )
            if reading is None:
                return
            coded = response.headers.get("content-encoding", "identity") != "identity"
            vars(response.stream)[_KEY] = reading, coded
            if coded:
                response._decoder = _Decoder(response._get_content_decoder(), reading)
        except Exception:
            telemetry.failed("a connection's start")


def _present() -> list[str]:
    return [name for name in _PACKAGES if name in sys.modules or find_spec(name) is not None]


def _answer(original: Any) -> Any:
    """Of a transport that calls an application, which has calls of its own."""

    @wraps(original)
    def answer(transport: Any, request: Any) -> Any:
        with taken(False):
            return original(transport, request)

    return answer


def _answer_async(original: Any) -> Any:
    @wraps(original)
    async def answer(transport: Any, request: Any) -> Any:
        with taken(False):
            return await original(transport, request)

    return answer


def _call(request: Any, response: Any) -> Call:
    url = request.url
    return Call(
        method=request.method,
        host=url.host,
        port=url.port,
        known_path=url.path,
        protocol=response.http_version.partition("/")[2] or None,
        status=response.status_code,
        resumed="last-event-id" in request.headers,
        context=otel_context.get_current(),
    )


def _iterate(reader: Callable[..., Any], original: Any) -> Any:
    @wraps(original)
    def iterate(stream: Any) -> Any:
        watched = vars(stream).get(_KEY)
        chunks = original(stream)
        return chunks if watched is None else reader(chunks, *watched)

    return iterate


def _read(chunks: Any, reading: Reading, coded: bool) -> Generator[bytes, None, None]:
    try:
        with reading.to_the_end():
            for chunk in chunks:
                _got(reading, chunk, coded)
                yield chunk
                reading.asked()
    finally:
        chunks.close()


async def _read_async(chunks: Any, reading: Reading, coded: bool) -> AsyncGenerator[bytes, None]:
    try:
        with reading.to_the_end():
            async for chunk in chunks:
                _got(reading, chunk, coded)
                yield chunk
                reading.asked()
    finally:
        await chunks.aclose()


def _got(reading: Reading, chunk: bytes, coded: bool) -> None:
    if coded:
        reading.waited()
    else:
        reading.received(chunk, True)


def _close(original: Any) -> Any:
    @wraps(original)
    def close(stream: Any) -> None:
        # First, since who reads it in another thread or task finds it broken then.
        _closed(stream)
        original(stream)

    return close


def _close_async(original: Any) -> Any:
    @wraps(original)
    async def aclose(stream: Any) -> None:
        _closed(stream)
        await original(stream)

    return aclose


def _closed(stream: Any) -> None:
    if _KEY in vars(stream):
        vars(stream)[_KEY][0].end()


class _Decoder:
    """A response's content decoder, watched. It gives bytes, or some at a time."""

    def __init__(self, decoder: Any, reading: Reading) -> None:
        self._decoder = decoder
        self._reading = reading

    def decode(self, data: bytes) -> Any:
        return self._seen(partial(self._decoder.decode, data))

    def flush(self) -> Any:
        return self._seen(self._decoder.flush)

    def _seen(self, decode: Callable[[], Any]) -> Any:
        try:
            decoded = decode()
        except Exception as error:
            self._reading.end(error)
            raise
        if not isinstance(decoded, bytes):
            return self._each(decoded)
        self._reading.received(decoded)
        return decoded

    def _each(self, decoded: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for piece in decoded:
                self._reading.received(piece)
                yield piece
        except Exception as error:
            self._reading.end(error)
            raise
