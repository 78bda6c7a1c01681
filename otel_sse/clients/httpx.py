"""httpx and httpx2, and what reads by them: httpx-sse, the SDKs of OpenAI, Anthropic and MCP.

A client sends each request singly, behind its redirects and authentication: there a response is
detected as an event stream, and its byte stream gets a ``ClientStream``, and a subclass of its own
class that records what is read. Where the content is encoded, its decoder is wrapped: the reader
may have the bytes decoded or not, and the decoder may find the body incomplete only behind its end.
Transports of other classes may send by another client; see ``stream.nested``.
"""

from __future__ import annotations

import weakref
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from functools import cache, partial, wraps
from importlib import import_module
from time import perf_counter
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_sse.instrumentor import Hooks
from otel_sse.process import gc_safety
from otel_sse.stream.body import make_subclass
from otel_sse.stream.info import ClientStreamInfo
from otel_sse.stream.nested import ObservedStream, TransportCall, iterate_within
from otel_sse.stream.sharing import open_client_stream, record_failed_connect
from otel_sse.wire.media_type import is_event_stream, is_redirect
from otel_sse.wire.opaque import is_encoded

# In a byte stream that is observed: its ``_Reader``.
_KEY: Final = "_otel_sse"


class HttpxHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        client = import_module(module.__name__ + "._client")
        # How a client chooses its transport, unless a subclass does.
        self._choices = [kind._transport_for_url for kind in (client.Client, client.AsyncClient)]
        self._patch(client.Client, "_send_single_request", partial(self._send, module))
        self._patch(client.AsyncClient, "_send_single_request", partial(self._send_async, module))

    def _send(self, package: Any, original: Any) -> Any:
        @wraps(original)
        def send(client: Any, request: Any) -> Any:
            started = perf_counter()
            call = self._transport_call(package, client, request)
            try:
                if call is None:
                    response = original(client, request)
                else:
                    with call:
                        response = original(client, request)
            except Exception as error:
                self._on_failure(request, started, error)
                raise
            self._observe(package, client, request, response, started, call)
            return response

        return send

    def _send_async(self, package: Any, original: Any) -> Any:
        @wraps(original)
        async def send(client: Any, request: Any) -> Any:
            started = perf_counter()
            call = self._transport_call(package, client, request)
            try:
                if call is None:
                    response = await original(client, request)
                else:
                    with call:
                        response = await original(client, request)
            except Exception as error:
                self._on_failure(request, started, error)
                raise
            self._observe(package, client, request, response, started, call)
            return response

        return send

    def _transport_call(self, package: Any, client: Any, request: Any) -> TransportCall | None:
        """None for a transport of the package: it sends by no other client. What an application
        does that one calls is the application's own.
        """
        try:
            choose = client._transport_for_url
            # A choice of the application's may be another one each time, so it is made once.
            if getattr(choose, "__func__", None) not in self._choices:
                return TransportCall()
            transport = type(choose(request.url))
        except Exception:
            return None  # the client raises it again
        known = (
            package.HTTPTransport,
            package.AsyncHTTPTransport,
            package.WSGITransport,
            package.ASGITransport,
        )
        return None if transport in known else TransportCall()

    def _on_failure(self, request: Any, started: float, error: Exception) -> None:
        if self.telemetry is not None:
            known = partial(_stream_info, request, None, started)
            record_failed_connect(self.telemetry, known, error)

    def _observe(
        self,
        package: Any,
        client: Any,
        request: Any,
        response: Any,
        started: float,
        call: TransportCall | None,
    ) -> None:
        if call is not None:
            call.sending = False
        telemetry = self.telemetry
        if telemetry is None:
            return
        try:
            # Its headers are slow to read, so no more of them than it takes.
            headers = response.headers
            status = response.status_code
            content_type = headers.get("content-type", "")
            if (
                "stream" not in content_type.lower()
                or not is_event_stream(request.method, status, content_type)
                or is_redirect(status, headers.get("location"))
                # A transport may return a response that has been read.
                or response.is_closed
            ):
                if status >= 400:
                    known = partial(_stream_info, request, response, started)
                    record_failed_connect(telemetry, known)
                return
            encoded = is_encoded(headers.get("content-encoding", ""))
            decodable = encoded and _is_decodable(package, headers)
            info = _stream_info(request, response, started)
            stream = open_client_stream(
                telemetry,
                response.stream,
                info._replace(encoded=encoded and not decodable),
                (package.NetworkError, package.RemoteProtocolError),
                (package.TimeoutException,),
            )
            decoder = None
            if stream is not None and decodable:
                decoder = _Decoder(response._get_content_decoder(), stream)
                response._decoder = decoder
            if call is not None:
                call.observed = stream is not None
            if stream is not None or call is not None:
                kind: Any = type(response.stream)
                vars(response.stream)[_KEY] = _Reader(stream, decoder, call, client)
                response.stream.__class__ = _observing_class(kind)
        except Exception:
            telemetry.failures.log_failure_once("a stream's start")


def _is_decodable(package: Any, headers: Any) -> bool:
    """Whether the client has a decoder for each coding; it passes over what it does not know."""
    known = import_module(package.__name__ + "._decoders").SUPPORTED_DECODERS
    codings = headers.get_list("content-encoding", split_commas=True)
    return all(coding.strip().lower() in known for coding in codings)


def _stream_info(request: Any, response: Any | None, started: float) -> ClientStreamInfo:
    """Of a response, or of a request that has none."""
    url = request.url
    version = "" if response is None else response.http_version
    return ClientStreamInfo(
        method=request.method,
        scheme=url.scheme,
        host=url.host,
        port=url.port,
        known_path=url.path,
        protocol=version.partition("/")[2] or None,
        status=0 if response is None else response.status_code,
        resumed="last-event-id" in request.headers,
        context=otel_context.get_current(),
        started=started,
        accept=request.headers.get("accept", ""),
    )


class _Reader:
    """What is known of a byte stream, in between the library's reader and the ``ClientStream``."""

    __slots__ = ("_client", "_raw", "call", "decoder", "stream")

    def __init__(
        self,
        stream: ObservedStream | None,
        decoder: _Decoder | None,
        call: TransportCall | None,
        client: Any,
    ) -> None:
        self.stream = stream
        # None where the bytes count as they come.
        self.decoder = decoder
        self.call = call
        self._client = weakref.ref(client)
        # The chunk that is not known to be decoded.
        self._raw = b""

    def hooks(self) -> tuple[Callable[[], None], Callable[[bytes, bool], None]]:
        """What is called before and after each wait: the stream itself where nothing is to be
        decided.
        """
        if self.stream is None or self.decoder is not None:
            return self.wait_started, self.on_chunk
        return self.stream.wait_started, self.stream.on_chunk

    def on_chunk(self, chunk: bytes, waited: bool) -> None:
        if self.stream is None:
            return
        if self.decoder is None:
            self.stream.on_chunk(chunk, waited)
            return
        self.stream.wait_ended()
        if not self.decoder.used:
            self._raw = chunk

    def wait_started(self) -> None:
        if self.stream is not None:
            self._check_raw()
            self.stream.wait_started()

    def on_end(self, error: BaseException | None, *, completed: bool = False) -> None:
        if self.stream is None:
            return
        if gc_safety.in_finalizer(error):
            gc_safety.defer(partial(self.on_end, None))
            return
        self._check_raw()
        client = self._client()
        if isinstance(error, Exception) and client is not None and client.is_closed:
            error = None  # its application has closed it, which breaks the read
        if completed and self.decoder is not None:
            error = self.decoder.finish()
            completed = error is None
        self.stream.close(error, completed=completed)

    def on_close(self) -> None:
        if gc_safety.in_finalizer():
            gc_safety.defer(self.on_close)
        elif self.stream is not None:
            self._check_raw()
            self.stream.close()

    def _check_raw(self) -> None:
        """Each chunk is decoded before the next one is asked for, or none is."""
        raw, self._raw = self._raw, b""
        if raw and self.stream is not None and self.decoder is not None and not self.decoder.used:
            self.decoder = None
            self.stream.set_opaque()
            self.stream.on_chunk(raw)


@cache
def _observing_class(kind: Any) -> type:
    """The subclass of a byte stream's class that records what is read."""

    def iterate(byte_stream: Any) -> Any:
        return _read(kind.__iter__(byte_stream), vars(byte_stream)[_KEY])

    def iterate_async(byte_stream: Any) -> Any:
        return _read_async(kind.__aiter__(byte_stream), vars(byte_stream)[_KEY])

    def close(byte_stream: Any) -> None:
        # Before the close, which breaks a read in another thread or task.
        vars(byte_stream)[_KEY].on_close()
        kind.close(byte_stream)

    async def aclose(byte_stream: Any) -> None:
        vars(byte_stream)[_KEY].on_close()
        await kind.aclose(byte_stream)

    methods = {"__iter__": iterate, "__aiter__": iterate_async, "close": close, "aclose": aclose}
    # Looked up at each call, above: another instrumentation may patch them at any time.
    return make_subclass(
        kind,
        {
            name: wraps(getattr(kind, name))(method)
            for name, method in methods.items()
            if hasattr(kind, name)
        },
    )


def _read(chunks: Any, reader: _Reader) -> Generator[bytes, None, None]:
    wait_started, on_chunk = reader.hooks()
    try:
        wait_started()
        for chunk in chunks if reader.call is None else iterate_within(reader.call, chunks):
            on_chunk(chunk, True)
            yield chunk
            wait_started()
    except BaseException as error:
        reader.on_end(error)
        raise
    else:
        reader.on_end(None, completed=True)
    finally:
        chunks.close()


async def _read_async(chunks: Any, reader: _Reader) -> AsyncGenerator[bytes, None]:
    wait_started, on_chunk = reader.hooks()
    source = chunks if reader.call is None else _within(reader.call, chunks)
    try:
        wait_started()
        async for chunk in source:
            on_chunk(chunk, True)
            yield chunk
            wait_started()
    except BaseException as error:
        reader.on_end(error)
        raise
    else:
        reader.on_end(None, completed=True)
    finally:
        if source is not chunks:
            await source.aclose()
        await chunks.aclose()


async def _within(call: TransportCall, chunks: Any) -> AsyncGenerator[bytes, None]:
    """``chunks``, each of them read within ``call``."""
    while True:
        with call:
            chunk = await anext(chunks, None)
        if chunk is None:
            return
        yield chunk


class _Decoder:
    """A response's content decoder, observed. It returns bytes, or yields them in pieces.

    Attributes:
        used: something has been decoded.

    """

    def __init__(self, decoder: Any, stream: ObservedStream) -> None:
        self._decoder = decoder
        self._stream = stream
        self.used = False
        # What the flush at the end gave, or raised.
        self._rest: Any = None
        self._error: Exception | None = None

    def decode(self, data: bytes) -> Any:
        self.used = True
        try:
            decoded = self._decoder.decode(data)
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

    def finish(self) -> Exception | None:
        """Flushes at the body's end, before the library does: it closes the response first.

        Returns:
            What that raised: the body is incomplete.

        """
        if not self.used:
            return None
        try:
            rest = self._decoder.flush()
            self._rest = rest if isinstance(rest, bytes) else list(rest)
        except Exception as error:
            self._error = error
            return error
        for piece in [self._rest] if isinstance(self._rest, bytes) else self._rest:
            self._stream.on_chunk(piece)
        return None

    def flush(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._decoder.flush() if self._rest is None else self._rest
