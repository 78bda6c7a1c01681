"""Reads one event stream over HTTP, measures it, and never keeps more than a bounded part."""

from __future__ import annotations

import os
import socket
import ssl
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from time import perf_counter
from typing import Any, Final

import anyio
import httpx

from otel_sse.cli.distribution import Distribution
from otel_sse.cli.parser import Comment, Message, Parser
from otel_sse.cli.rhythm import Arrival, Chunk

MEDIA_TYPE: Final = "text/event-stream"
CONNECT_TIMEOUT: Final = 10.0
# Of a stream that is longer, the rhythm of its beginning is judged.
_MAX_SAMPLES: Final = 5000
# Ids that are compared when a stream is resumed.
_MAX_IDS: Final = 10_000
_MAX_PIECE: Final = 65536
_WINDOWS: Final = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}

# Kinds of failures that have a remedy of their own, the narrower before the wider.
FAILURES: Final[dict[str, tuple[type[BaseException], ...]]] = {
    "host": (socket.gaierror,),
    "certificate": (ssl.SSLCertVerificationError,),
    "tls": (ssl.SSLError,),
    "unreached": (httpx.ConnectError, httpx.ConnectTimeout),
    "coding": (httpx.DecodingError,),
}

Item = Message | Comment
OnItem = Callable[[Item], None]


@dataclass(frozen=True)
class Request:
    """What is asked of the server."""

    url: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    http2: bool = False
    verify: bool = True

    def all_headers(self, last_event_id: str | None) -> list[tuple[str, str]]:
        """What an EventSource sends, but for what the user has set."""
        defaults = {
            "Accept": MEDIA_TYPE,
            "Cache-Control": "no-store",
            # What this client decodes.
            "Accept-Encoding": "gzip, deflate",
            "User-Agent": "otel-sse-probe",
        }
        if last_event_id:
            defaults["Last-Event-ID"] = last_event_id
        given = {name.lower() for name, _ in self.headers}
        return [*((n, v) for n, v in defaults.items() if n.lower() not in given), *self.headers]

    def client(self) -> httpx.AsyncClient:
        """One network connection's client: proxies and ``.netrc`` of the environment are not used,
        so that what is measured is the server that the URL names.
        """
        # Over http:// there is no negotiation: HTTP/2 is spoken from the start.
        prior = self.http2 and self.url.startswith("http:")
        return httpx.AsyncClient(
            http1=not prior,
            http2=self.http2,
            verify=_tls(self.verify) if self.url.startswith("https:") else False,
            trust_env=False,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=1),
        )


@cache
def _tls(verify: bool) -> ssl.SSLContext:
    """One for all clients: to load the certificates takes a tenth of a second."""
    return httpx.create_ssl_context(verify=verify, trust_env=False)


@dataclass
class Reading:
    """What was seen of one stream. Times are in seconds since the request was begun.

    ``ending`` is one of ``ended`` (the server ended it), ``cut`` (the connection broke within
    it), ``stopped`` (this client did), ``refused`` (no event stream came) and ``failed`` (no
    response came); ``error`` is the reason of ``cut`` and ``failed``, and ``failure`` the kind of
    that reason, where it is one of ``FAILURES``.
    """

    began: float = field(default_factory=perf_counter)
    status: int | None = None
    http_version: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    # Where a redirect leads; empty where the response is none.
    location: str = ""
    connected: float | None = None
    headers_after: float | None = None
    first_byte: float | None = None
    first_message: float | None = None
    last_message: float | None = None
    duration: float = 0.0
    wire_bytes: int = 0
    bytes: int = 0
    chunks: int = 0
    longest_message: int = 0
    ending: str = "stopped"
    error: str = ""
    failure: str = ""
    body_start: str = ""
    within_message: bool = False
    gaps: Distribution = field(default_factory=Distribution)
    delivery: Distribution = field(default_factory=Distribution)
    # The longest time without any byte.
    longest_silence: float = 0.0
    parser: Parser = field(default_factory=Parser)
    arrivals: list[Arrival] = field(default_factory=list)
    samples: list[Chunk] = field(default_factory=list)
    ids: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_IDS))
    # Whether arrivals, samples and ids are kept: of a crowd only one reading does.
    detailed: bool = True

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def coding(self) -> str:
        coding = self.headers.get("content-encoding", "").strip().lower()
        return "" if coding == "identity" else coding

    @property
    def is_stream(self) -> bool:
        return self.status == 200 and self.media_type == MEDIA_TYPE


async def read(
    request: Request,
    *,
    last_event_id: str | None = None,
    on_item: OnItem | None = None,
    max_messages: int | None = None,
    reading: Reading | None = None,
) -> Reading:
    """Reads until the stream ends, ``max_messages`` have come, or the scope is cancelled.

    Pass a ``reading`` to have what was seen so far at any time, also after a cancellation.
    """
    reading = reading or Reading()
    try:
        await _read(request, last_event_id, on_item, max_messages, reading)
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error:
        reading.ending = "failed" if reading.status is None else "cut"
        reading.failure, reading.error = _explain(error)
    finally:
        reading.duration = perf_counter() - reading.began
        reading.within_message = reading.parser.within_message
        if reading.ending in ("ended", "cut"):
            reading.parser.finish()
    return reading


def _explain(error: BaseException) -> tuple[str, str]:
    """The kind of a failure, empty where it is none of ``FAILURES``, and what to call it.

    The libraries wrap what the system says, often without its text.
    """
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    cause = chain[-1]
    found = (kind for kind, types in FAILURES.items() if any(isinstance(e, types) for e in chain))
    kind = next(found, "")
    if isinstance(error, httpx.ConnectTimeout):
        return kind, f"no connection within {CONNECT_TIMEOUT:g} s"
    if kind in ("", "unreached") and isinstance(cause, OSError) and cause.errno:
        # asyncio's own text has the address, and not what happened to it.
        return kind, os.strerror(cause.errno)
    text = cause.strerror if isinstance(cause, socket.gaierror) else str(error) or str(cause)
    return kind, (text or type(error).__name__).rstrip(".")


async def _read(
    request: Request,
    last_event_id: str | None,
    on_item: OnItem | None,
    max_messages: int | None,
    reading: Reading,
) -> None:
    async def trace(name: str, _: dict[str, Any]) -> None:
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            reading.connected = perf_counter() - reading.began

    async with request.client() as client:
        outgoing = client.build_request(
            request.method,
            request.url,
            headers=request.all_headers(last_event_id),
            content=request.body or None,
            extensions={"trace": trace},
        )
        reading.began = perf_counter()
        response = await client.send(outgoing, stream=True)
        try:
            reading.headers_after = perf_counter() - reading.began
            reading.status = response.status_code
            reading.http_version = response.http_version
            reading.headers = {
                name.lower(): value[:1024] for name, value in list(response.headers.items())[:100]
            }
            if response.next_request is not None:
                reading.location = str(response.next_request.url)
            await _read_body(response, on_item, max_messages, reading)
        finally:
            # A server that does not read must not keep the probe.
            with anyio.move_on_after(1, shield=True):
                await response.aclose()


async def _read_body(
    response: httpx.Response,
    on_item: OnItem | None,
    max_messages: int | None,
    reading: Reading,
) -> None:
    decoder = Decoder(reading.coding)
    last = reading.began
    async for raw in response.aiter_raw():
        now = perf_counter()
        reading.wire_bytes += len(raw)
        if reading.first_byte is None:
            reading.first_byte = now - reading.began
        else:
            reading.longest_silence = max(reading.longest_silence, now - last)
        last = now
        for chunk in decoder.decode(raw):
            if not reading.is_stream:
                reading.ending = "refused"
                reading.body_start = chunk[:200].decode("utf-8", "replace")
                return
            _take(chunk, now, on_item, reading)
            if max_messages is not None and reading.parser.messages >= max_messages:
                return
    reading.ending = "ended" if reading.is_stream else "refused"


def _take(chunk: bytes, now: float, on_item: OnItem | None, reading: Reading) -> None:
    parser = reading.parser
    reading.bytes += len(chunk)
    reading.chunks += 1
    for item in parser.feed(chunk):
        if isinstance(item, Message):
            _take_message(item, now, reading)
        if on_item is not None:
            on_item(item)
    if reading.detailed and len(reading.samples) < _MAX_SAMPLES:
        reading.samples.append(Chunk(now, len(chunk), parser.within_message))


def _take_message(message: Message, now: float, reading: Reading) -> None:
    since = now - reading.began
    if reading.last_message is None:
        reading.first_message = since
    else:
        reading.gaps.add(since - reading.last_message)
    reading.last_message = since
    reading.longest_message = max(reading.longest_message, message.size)
    if reading.detailed and message.id:
        reading.ids.append(message.id)
    if message.sent is not None:
        reading.delivery.add(max(time.time() - message.sent / 1e9, 0.0))
    if reading.detailed and len(reading.arrivals) < _MAX_SAMPLES:
        reading.arrivals.append(Arrival(now, message.sent))


class Decoder:
    """Takes a content coding away, in pieces of at most 64 KiB however much a byte stands for.

    Raises ``httpx.DecodingError`` from ``decode`` where the coding is unknown or broken.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._windows = _WINDOWS.get(coding, ())
        self._inflate = zlib.decompressobj(self._windows[0]) if self._windows else None

    def decode(self, raw: bytes) -> Iterator[bytes]:
        if not self._coding:
            yield raw
            return
        if self._inflate is None:
            raise httpx.DecodingError(f"the content coding {self._coding!r} was not asked for")
        rest = raw
        while True:
            try:
                piece = self._inflate.decompress(rest, _MAX_PIECE)
            except zlib.error as error:
                # "deflate" comes with a zlib header or, against the standard, without one.
                if len(self._windows) < 2 or self._inflate.unconsumed_tail:
                    raise httpx.DecodingError(str(error)) from error
                self._windows = self._windows[1:]
                self._inflate = zlib.decompressobj(self._windows[0])
                continue
            rest = self._inflate.unconsumed_tail
            if piece:
                yield piece
            # A full piece may have more behind it, of which zlib has taken the input already.
            if not rest and len(piece) < _MAX_PIECE:
                return
