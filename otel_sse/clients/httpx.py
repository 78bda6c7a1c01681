"""httpx and httpx2, and what reads by them: httpx-sse, the SDKs of OpenAI, Anthropic and MCP.

A client sends each request singly, behind its redirects and authentication: there a response is
detected as an event stream, and its byte stream gets a ``ClientStream``. The classes of those byte
streams are patched to record what is read. Where the content is encoded, its decoder is wrapped.
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
from otel_sse.semconv import CLIENT
from otel_sse.stream.client import ClientStream, nested_suppression, suppress_nested
from otel_sse.stream.info import ClientStreamInfo
from otel_sse.stream.sharing import open_client_stream
from otel_sse.wire.media_type import is_event_stream

# In a byte stream that is observed: its ClientStream, and whether the decoder gives the bytes.
_KEY: Final = "_otel_sse"
_PACKAGES: Final = {"httpx": "httpx >= 0.25, < 1", "httpx2": "httpx2 >= 2.0"}


class SSEHttpxInstrumentor(SSEInstrumentor):
    """Records every event stream that an httpx or httpx2 client reads."""

    role = CLIENT

    def instrumentation_dependencies(self) -> Collection[str]:
        # Any one is enough, and each that is installed has to be new enough.
        return tuple(_PACKAGES[name] for name in _present()) or (_PACKAGES["httpx"],)

    def _install(self) -> None:
        for name in _present():
            client = import_module(name + "._client")
            package = import_module(name)
            self._patch(client.Client, "_send_single_request", partial(self._send, package))
            self._patch(
                client.AsyncClient, "_send_single_request", partial(self._send_async, package)
            )
            self._patch(package.WSGITransport, "handle_request", _call_app)
            self._patch(package.ASGITransport, "handle_async_request", _call_app_async)
            self._patch(client.BoundSyncStream, "__iter__", partial(_iterate, _read))
            self._patch(client.BoundSyncStream, "close", _close)
            self._patch(client.BoundAsyncStream, "__aiter__", partial(_iterate, _read_async))
            self._patch(client.BoundAsyncStream, "aclose", _close_async)

    def _send(self, package: Any, original: Any) -> Any:
        @wraps(original)
        def send(client: Any, request: Any) -> Any:
            started = perf_counter()
            with nested_suppression(True):
                response = original(client, request)
            self._observe(package, request, response, started)
            return response

        return send

    def _send_async(self, package: Any, original: Any) -> Any:
        @wraps(original)
        async def send(client: Any, request: Any) -> Any:
            started = perf_counter()
            with nested_suppression(True):
                response = await original(client, request)
            self._observe(package, request, response, started)
            return response

        return send

    def _observe(self, package: Any, request: Any, response: Any, started: float) -> None:
        telemetry = self.telemetry
        # A transport may return a response that has been read.
        if telemetry is None or suppress_nested.get() or response.is_closed:
            return
        try:
            content_type = response.headers.get("content-type", "")
            if not is_event_stream(request.method, response.status_code, content_type):
                return
            stream = open_client_stream(
                telemetry,
                response.stream,
                _stream_info(request, response, started),
                (package.NetworkError, package.RemoteProtocolError),
                (package.TimeoutException,),
            )
            if stream is None:
                return
            encoded = response.headers.get("content-encoding", "identity") != "identity"
            vars(response.stream)[_KEY] = stream, encoded
            if encoded:
                response._decoder = _Decoder(response._get_content_decoder(), stream)
        except Exception:
            telemetry.failures.log_failure_once("a stream's start")


def _present() -> list[str]:
    return [name for name in _PACKAGES if name in sys.modules or find_spec(name) is not None]


def _call_app(original: Any) -> Any:
    """Of a transport that calls an application: that may make requests of its own."""

    @wraps(original)
    def answer(transport: Any, request: Any) -> Any:
        with nested_suppression(False):
            return original(transport, request)

    return answer


def _call_app_async(original: Any) -> Any:
    @wraps(original)
    async def answer(transport: Any, request: Any) -> Any:
        with nested_suppression(False):
            return await original(transport, request)

    return answer


def _stream_info(request: Any, response: Any, started: float) -> ClientStreamInfo:
    url = request.url
    return ClientStreamInfo(
        method=request.method,
        scheme=url.scheme,
        host=url.host,
        port=url.port,
        known_path=url.path,
        protocol=response.http_version.partition("/")[2] or None,
        status=response.status_code,
        resumed="last-event-id" in request.headers,
        context=otel_context.get_current(),
        started=started,
    )


def _iterate(reader: Callable[..., Any], original: Any) -> Any:
    @wraps(original)
    def iterate(byte_stream: Any) -> Any:
        observed = vars(byte_stream).get(_KEY)
        chunks = original(byte_stream)
        return chunks if observed is None else reader(chunks, *observed)

    return iterate


def _read(chunks: Any, stream: ClientStream, encoded: bool) -> Generator[bytes, None, None]:
    try:
        with stream.read_to_eof():
            for chunk in chunks:
                _on_chunk(stream, chunk, encoded)
                yield chunk
                stream.wait_started()
    finally:
        chunks.close()


async def _read_async(
    chunks: Any, stream: ClientStream, encoded: bool
) -> AsyncGenerator[bytes, None]:
    try:
        with stream.read_to_eof():
            async for chunk in chunks:
                _on_chunk(stream, chunk, encoded)
                yield chunk
                stream.wait_started()
    finally:
        await chunks.aclose()


def _on_chunk(stream: ClientStream, chunk: bytes, encoded: bool) -> None:
    if encoded:
        stream.wait_ended()
    else:
        stream.on_chunk(chunk, waited=True)


def _close(original: Any) -> Any:
    @wraps(original)
    def close(byte_stream: Any) -> None:
        # Before the close, which breaks a read in another thread or task.
        _on_close(byte_stream)
        original(byte_stream)

    return close


def _close_async(original: Any) -> Any:
    @wraps(original)
    async def aclose(byte_stream: Any) -> None:
        _on_close(byte_stream)
        await original(byte_stream)

    return aclose


def _on_close(byte_stream: Any) -> None:
    if _KEY in vars(byte_stream):
        vars(byte_stream)[_KEY][0].close()


class _Decoder:
    """A response's content decoder, observed. It returns bytes, or yields them in pieces."""

    def __init__(self, decoder: Any, stream: ClientStream) -> None:
        self._decoder = decoder
        self._stream = stream

    def decode(self, data: bytes) -> Any:
        return self._observed(partial(self._decoder.decode, data))

    def flush(self) -> Any:
        return self._observed(self._decoder.flush)

    def _observed(self, decode: Callable[[], Any]) -> Any:
        try:
            decoded = decode()
        except Exception as error:
            self._stream.close(error)
            raise
        if not isinstance(decoded, bytes):
            return self._pieces(decoded)
        self._stream.on_chunk(decoded)
        return decoded

    def _pieces(self, decoded: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for piece in decoded:
                self._stream.on_chunk(piece)
                yield piece
        except Exception as error:
            self._stream.close(error)
            raise
