"""What the end-to-end tests share: a stream, its reader, and all that has to be reported."""

import asyncio
import contextlib
import gzip
import re
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from helpers import oracle
from helpers.backend import Attributes, Backend
from helpers.waiting import until

# A stream in which no piece is a message: several in one piece, one in several, a CRLF cut in
# two, comments around and inside of blocks, blocks without data, an open one at the end.
PIECES = (
    b"\xef\xbb\xbf: hello\n\n",
    b"data: 1\n\ndata: 2\n\nevent: tick\nda",
    b"ta: 3\r\n\r",
    b"\nid: 4\nevent: tick\ndata: a\n: inside\ndata: b\n\n",
    b"retry: 10\n\n",
    b"event: nothing\n\n",
    b": ping\n\n",
    b"data\n\n",
    "event: größe\ndata: ü\n\n".encode(),
    b"data: %s\n\n" % (b"x" * 3000),
    b"\r\rdata: cr\r\r",
    b": tail\ndata: cut off",
)
STREAM = b"".join(PIECES)
BASE = ("http.request.method", "http.route", "url.scheme")


def pieces() -> Iterator[bytes]:
    yield from PIECES


async def apieces() -> AsyncIterator[bytes]:
    """The pieces, each in a turn of the loop of its own."""
    for piece in PIECES:
        yield piece
        await asyncio.sleep(0)


class Reply(NamedTuple):
    """A response; ``raw`` is all of it as it came, but for its date."""

    raw: bytes
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def stream(self) -> bytes:
        """The body without its content coding."""
        coding = self.headers.get("content-encoding", "identity")
        if coding == "identity":
            return self.body
        if coding == "gzip":
            # Of several members, where each part has been encoded by itself.
            return gzip.decompress(self.body)
        assert coding == "deflate"
        for window in (15, -15):
            with contextlib.suppress(zlib.error):
                return zlib.decompress(self.body, window)
        raise AssertionError(f"not {coding}: {self.body!r}")


async def fetch(
    port: int,
    path: str,
    *headers: str,
    method: str = "GET",
    host: str = "localhost",
    body: bytes = b"",
) -> Reply:
    """Asks on a socket of its own, and reads until the server closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    try:
        raw = await asyncio.wait_for(reader.read(-1), 60)
    finally:
        writer.close()
    return parse(raw)


def parse(raw: bytes) -> Reply:
    """A whole response as it came on the wire."""
    raw = re.sub(rb"\r\n[Dd]ate: [^\r]*", b"", raw, count=1)
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    fields = (line.split(":", 1) for line in rest)
    headers = {name.lower(): value.strip() for name, value in fields}
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join(_chunks(body))
    return Reply(raw, int(first.split()[1]), headers, body)


def _chunks(body: bytes) -> Iterator[bytes]:
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert body == b"\r\n"
            return
        yield body[:length]
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]


def table(backend: Backend, name: str, *extra: str) -> dict[tuple[Any, ...], Any]:
    """A metric's values (a histogram's counts) by base attributes and the extra ones named."""
    return {
        tuple(attributes.get(key) for key in (*BASE, *extra)): getattr(
            point, "value", getattr(point, "count", None)
        )
        for attributes, point in backend.points(name)
    }


async def assert_reported(
    backend: Backend,
    stream: bytes,
    *,
    route: str | None,
    method: str = "GET",
    reason: str = "completed",
    status: int = 200,
) -> ReadableSpan:
    """The only stream is reported with these bytes, once, completely; gives its span."""
    messages, comments = oracle.read(stream)
    name = f"SSE {route}" if route else "SSE"
    spans = await until(lambda: backend.spans("SSE"))
    assert [span.name for span in spans] == [name]
    base = (method, route, "http")
    types = Counter(message.type for message in messages)
    assert table(backend, "sse.server.messages", "sse.event.type") == {
        (*base, kind): count for kind, count in types.items()
    }
    assert table(backend, "sse.server.comments") == {base: comments}
    assert table(backend, "sse.server.io") == {base: len(stream)}
    assert table(backend, "sse.server.active_connections") == {base: 0}
    connections = table(backend, "sse.server.connections", "sse.resumed")
    assert connections == {(*base, False): 1, (*base, True): 0}
    error_type = str(status) if status >= 500 else None
    labels = ("sse.close.reason", "http.response.status_code", "error.type")
    durations = table(backend, "sse.server.connection.duration", *labels)
    assert durations == {(*base, reason, status, error_type): 1}
    firsts = table(backend, "sse.server.connection.time_to_first_message")
    assert firsts == ({base: 1} if messages else {})

    (span,) = spans
    found = _attributes(span)
    assert found.get("http.route") == route
    assert found["http.request.method"] == method
    assert found["http.response.status_code"] == status
    assert found["sse.messages"] == len(messages)
    assert found["sse.comments"] == comments
    assert found["sse.io"] == len(stream)
    assert found["sse.close.reason"] == reason
    assert found["sse.segment.final"] is True
    assert span.status.is_ok is (error_type is None)

    opened, closed = backend.events("sse.connection.")
    assert opened.event_name == "sse.connection.opened"
    assert closed.event_name == "sse.connection.closed"
    assert closed.attributes["sse.close.reason"] == reason
    assert closed.attributes["sse.messages"] == len(messages)
    context = span.get_span_context()
    for event in (opened, closed):
        assert (event.trace_id, event.span_id) == (context.trace_id, context.span_id)
        assert event.attributes["sse.connection.id"] == found["sse.connection.id"]
    return span


def closed(backend: Backend) -> tuple[str, str | None]:
    """The reason and the error of the one stream, the same in span, event and metric."""
    (span,) = backend.spans("SSE")
    (event,) = backend.events("sse.connection.closed")
    ((duration, _),) = backend.points("sse.server.connection.duration")
    found = [
        (each["sse.close.reason"], each.get("error.type"))
        for each in (span.attributes, event.attributes, duration)
    ]
    assert found == [found[0]] * 3
    assert backend.value("sse.server.active_connections") == 0
    return found[0]


def assert_silent(backend: Backend) -> None:
    """No stream has been reported."""
    assert backend.spans("SSE") == []
    assert backend.events("sse.") == []
    for name in backend.metrics():
        for attributes, point in backend.points(name):
            assert not getattr(point, "value", getattr(point, "count", None)), (name, attributes)


def _attributes(span: ReadableSpan) -> Attributes:
    return dict(span.attributes or {})
