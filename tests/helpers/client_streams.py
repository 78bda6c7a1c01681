"""What the tests of the clients share: a server that ends its streams in many ways, and all that
has to be reported of what was read.
"""

import asyncio
import contextlib
import gzip
import sys
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from helpers import oracle
from helpers.backend import Backend
from helpers.streams import PIECES, STREAM
from helpers.waiting import until
from otel_sse.frameworks import (
    SSEAiohttpClientInstrumentor,
    SSECurlCffiInstrumentor,
    SSEHttpClientInstrumentor,
    SSEHttpxInstrumentor,
    SSERequestsInstrumentor,
    SSETornadoClientInstrumentor,
    SSEUrllib3Instrumentor,
)

INSTRUMENTORS = (
    SSEAiohttpClientInstrumentor,
    SSECurlCffiInstrumentor,
    SSEHttpClientInstrumentor,
    SSEHttpxInstrumentor,
    SSERequestsInstrumentor,
    SSETornadoClientInstrumentor,
    SSEUrllib3Instrumentor,
)
FIRST = b"data: 1\n\n"
CHUNKED = "Transfer-Encoding: chunked"
BASE = ("http.request.method", "server.address", "server.port")


class ReceivedRequest(NamedTuple):
    path: str
    headers: dict[str, str]


class ServerSide(NamedTuple):
    """A server's side of one connection."""

    request: ReceivedRequest
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self, *headers: str, status: str = "200 OK", kind: str = "event-stream") -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Type: text/{kind}", "Connection: close"]
        lines += [*headers, "", ""]
        await self.send("\r\n".join(lines).encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def client_disconnected(self) -> None:
        """Waits until the client disconnects."""
        await self.reader.read()


Answer = Callable[[ServerSide], Awaitable[None]]


def compress(coding: str, data: bytes) -> bytes:
    """Where the coding's package is missing, so is what reads it."""
    if coding == "br":
        return bytes(pytest.importorskip("brotli").compress(data))
    if coding == "zstd":
        # httpx takes the one below; aiohttp, httpx2 and urllib3 this one, or Python's own.
        if sys.version_info < (3, 14):
            pytest.importorskip("backports.zstd")
        return bytes(pytest.importorskip("zstandard").compress(data))
    codings: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
    }
    return codings[coding](data)


async def _all(wire: ServerSide) -> None:
    await wire.head(CHUNKED)
    for piece in PIECES:
        await wire.chunk(piece)
        await asyncio.sleep(0.001)
    await wire.chunk(b"")


async def _unicode(wire: ServerSide) -> None:
    await wire.head(f"Content-Length: {len(STREAM)}", kind="event-stream; charset=utf-8")
    await wire.send(STREAM)


async def _coded(wire: ServerSide) -> None:
    coding = wire.request.path[1:]
    body = compress(coding, STREAM)
    await wire.head(CHUNKED, f"Content-Encoding: {coding}")
    for start in range(0, len(body), 50):
        await wire.chunk(body[start : start + 50])
    await wire.chunk(b"")


async def _not_gzip(wire: ServerSide) -> None:
    await wire.head(CHUNKED, "Content-Encoding: gzip")
    await wire.chunk(b"this is no gzip")
    await wire.chunk(b"")


async def _empty(wire: ServerSide) -> None:
    await wire.head("Content-Length: 0")


async def _cut(wire: ServerSide) -> None:
    await wire.head(CHUNKED)
    await wire.chunk(FIRST)


async def _short(wire: ServerSide) -> None:
    await wire.head("Content-Length: 100")
    await wire.send(FIRST)


async def _redirect(wire: ServerSide) -> None:
    await wire.head("Location: /all", "Content-Length: 0", status="302 Found", kind="plain")


async def _broken(wire: ServerSide) -> None:
    await wire.head(f"Content-Length: {len(FIRST)}", status="503 Service Unavailable")
    await wire.send(FIRST)


async def _html(wire: ServerSide) -> None:
    await wire.head("Content-Length: 2", kind="html")
    await wire.send(b"hi")


async def _endless(wire: ServerSide) -> None:
    await wire.head(CHUNKED)
    await wire.chunk(FIRST)
    await wire.client_disconnected()


async def _ticking(wire: ServerSide) -> None:
    await wire.head(CHUNKED)
    while not wire.reader.at_eof():
        await wire.chunk(FIRST)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(wire.reader.read(1), 0.02)


_ANSWERS: dict[str, Answer] = {
    "/all": _all,
    "/unicode": _unicode,
    "/gzip": _coded,
    "/deflate": _coded,
    "/br": _coded,
    "/zstd": _coded,
    "/not-gzip": _not_gzip,
    "/empty": _empty,
    "/cut": _cut,
    "/short": _short,
    "/redirect": _redirect,
    "/broken": _broken,
    "/html": _html,
    "/endless": _endless,
    "/ticking": _ticking,
}


async def answer_by_path(wire: ServerSide) -> None:
    await _ANSWERS[wire.request.path.partition("?")[0]](wire)


class StreamServer:
    """One answer a connection; ``requests`` are those that came."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[ReceivedRequest] = []
        self._answer = answer
        self._busy: set[asyncio.Task[None]] = set()
        self._server: asyncio.StreamServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self, *, cut: bool = False) -> None:
        """Takes no more connections; ``cut`` drops those that there are."""
        assert self._server is not None
        self._server.close()
        for task in self._busy:
            if cut:
                task.cancel()
        await asyncio.wait_for(asyncio.gather(*self._busy, return_exceptions=True), 60)
        self._busy.clear()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._busy.add(asyncio.ensure_future(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *rest = head.strip().split("\r\n")
                fields = (line.split(": ", 1) for line in rest)
                headers = {name.lower(): value for name, value in fields}
                request = ReceivedRequest(first.split()[1], headers)
                self.requests.append(request)
                await self._answer(ServerSide(request, reader, writer))
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(answer: Answer = answer_by_path) -> AsyncIterator[StreamServer]:
    server = StreamServer(answer)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def table(backend: Backend, name: str, *extra: str) -> dict[tuple[Any, ...], Any]:
    """A client metric's values (a histogram's counts) by base attributes and the extra ones."""
    return {
        tuple(attributes.get(key) for key in (*BASE, *extra)): getattr(
            point, "value", getattr(point, "count", None)
        )
        for attributes, point in backend.points(f"sse.client.{name}")
    }


async def assert_read(
    backend: Backend,
    port: int,
    stream: bytes = STREAM,
    *,
    reason: str = "completed",
    method: str = "GET",
    status: int = 200,
    error_type: str | None = None,
    resumed: bool = False,
) -> ReadableSpan:
    """The only stream is reported once, completely, with these bytes; gives its span."""
    await until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    messages, comments = oracle.read(stream)
    base = (method, "127.0.0.1", port)
    types = Counter(message.type for message in messages)
    assert table(backend, "messages", "sse.event.type") == {
        (*base, kind): count for kind, count in types.items()
    }
    assert table(backend, "comments") == {base: comments}
    assert table(backend, "io") == {base: len(stream)}
    assert table(backend, "active_connections") == {base: 0}
    assert table(backend, "connections", "sse.resumed") == {
        (*base, False): int(not resumed),
        (*base, True): int(resumed),
    }
    assert table(backend, "reconnections") == {base: int(resumed)}
    assert table(backend, "connect.duration") == {base: 1}
    firsts = table(backend, "connection.time_to_first_message")
    assert firsts == ({base: 1} if messages else {})
    gaps = table(backend, "message.gap")
    assert gaps == ({base: len(messages) - 1} if len(messages) > 1 else {})
    labels = ("sse.close.reason", "http.response.status_code", "error.type")
    durations = table(backend, "connection.duration", *labels)
    assert durations == {(*base, reason, status, error_type): 1}

    found = dict(span.attributes or {})
    assert span.name == f"SSE {method}"
    assert span.kind.name == "INTERNAL"
    assert found["server.address"] == "127.0.0.1"
    assert found["server.port"] == port
    assert found["http.response.status_code"] == status
    assert found["network.protocol.version"] == "1.1"
    assert found["sse.resumed"] is resumed
    assert found["sse.messages"] == len(messages)
    assert found["sse.comments"] == comments
    assert found["sse.io"] == len(stream)
    assert found["sse.close.reason"] == reason
    assert found["sse.segment.final"] is True
    assert found.get("error.type") == error_type
    assert span.status.is_ok is (error_type is None)

    opened, closed = backend.events("sse.connection.")
    assert opened.event_name == "sse.connection.opened"
    assert closed.event_name == "sse.connection.closed"
    assert closed.attributes["sse.close.reason"] == reason
    return span
