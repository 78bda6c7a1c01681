"""A client to copy: it decompresses, and comes back for what it has missed.

    async with httpx.AsyncClient() as http:
        async for event in events(http, "http://127.0.0.1:8080/events?topic=news"):
            print(event.type, event.data)

Not by httpx-sse, which gives out blocks without data, as the one that opens our streams, and
reads ``retry: 1_000``; nor by httpx's own lines, which end at eight more characters than those of
an event stream, as U+2028 in a JSON text.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import httpx

from server.envelope import unwrap

# Bytes of one message at most.
MAX_BYTES: Final = 16 * 2**20
# Seconds between two tries at most.
MOST_SECONDS: Final = 30.0
_END: Final = re.compile(rb"\r\n|\n|\r")
_COME_BACK: Final = (429, 500, 502, 503, 504)


class NotAStream(Exception):
    """The answer is no event stream, and trying again will not help."""


@dataclass(frozen=True)
class Event:
    """``id`` is the last one of the stream, as ``Last-Event-ID`` has it."""

    type: str
    data: str
    id: str


async def events(
    http: httpx.AsyncClient, url: str, *, last_event_id: str = "", silence: float = 45.0
) -> AsyncIterator[Event]:
    """The messages of a stream, for ever, or until the server answers 204.

    Args:
        http: it has as many connections as there are streams at once, and one more.
        url: the stream's.
        last_event_id: where to go on.
        silence: seconds without a byte, heartbeats included, after which the connection is
            taken for lost.

    Raises:
        NotAStream: the answer is neither an event stream nor one that asks to come back.

    """
    decoder = Decoder(last_event_id)
    failed = 0
    while True:
        wait = 0.0
        try:
            headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
            if decoder.last_id:
                headers["Last-Event-ID"] = decoder.last_id
            timeout = httpx.Timeout(10, read=silence)
            async with http.stream("GET", url, headers=headers, timeout=timeout) as response:
                if response.status_code == 204:
                    return
                if response.status_code in _COME_BACK:
                    wait = _seconds(response.headers.get("Retry-After", ""))
                else:
                    _check(response)
                    decoder.begin()
                    async for chunk in response.aiter_bytes():
                        for event in decoder.feed(chunk):
                            yield event
                        if decoder.alive:
                            failed = 0
        except (httpx.TransportError, httpx.DecodingError):
            pass
        delay = min(MOST_SECONDS, decoder.retry * 2.0 ** min(failed, 10))
        await asyncio.sleep(max(wait, delay * random.uniform(0.5, 1.0)))
        failed += 1


def _check(response: httpx.Response) -> None:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if response.status_code != 200 or kind != "text/event-stream":
        raise NotAStream(f"{response.url}: {response.status_code} {kind or 'without a type'}")


def _seconds(retry_after: str) -> float:
    """A date counts for 0: clocks disagree."""
    return min(float(retry_after), 3600.0) if retry_after.isdecimal() else 0.0


class Decoder:
    """Bytes in, events out. Source of the rules:
    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self, last_id: str = "") -> None:
        # The last id of a finished block, and the server's wish, in seconds.
        self.last_id = last_id
        self.retry = 3.0
        self.begin()

    def begin(self) -> None:
        """A new response; what was unfinished is lost."""
        self._rest = bytearray()
        # The last line has ended in CR: a LF now is part of its end.
        self._after_cr = False
        self._first = True
        # A block has ended: the server does more than take the request.
        self.alive = False
        self._id = self.last_id
        self._new_block()

    def _new_block(self) -> None:
        self._type = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[Event]:
        if not chunk:
            return []
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        lines = _END.split(chunk)
        self._rest += lines[0]
        found: list[Event] = []
        for following in lines[1:]:
            event = self._line(self._rest.decode(errors="replace"))
            if event is not None:
                found.append(event)
            self._rest = bytearray(following)
        if self._size + len(self._rest) > MAX_BYTES:
            raise NotAStream(f"a message has more than {MAX_BYTES} bytes")
        return found

    def _line(self, line: str) -> Event | None:
        if self._first:
            self._first = False
            line = line.removeprefix("\ufeff")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._size += len(value) + 1
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = min(int(value[:12]) / 1000, 3600.0)
        return None

    def _dispatch(self) -> Event | None:
        self.alive = True
        self.last_id = self._id
        kind, data = self._type or "message", self._data
        self._new_block()
        return Event(kind, unwrap("\n".join(data)), self.last_id) if data else None
