"""The mark of propagation: a comment line in front of a message, which every client ignores.

``: otel traceparent=<W3C traceparent>;ts=<unix ns>`` says which span has sent the message, and
when. Sans-I/O: ``Marker`` puts marks into the bytes of a stream, ``Marks`` takes them out again.
Both follow lines as the event-stream algorithm does, whatever the chunks:
https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import re
from collections.abc import Iterator
from time import time_ns
from typing import Any, Final, NamedTuple

from opentelemetry.trace import SpanContext, TraceFlags, get_current_span

_BOM: Final = b"\xef\xbb\xbf"
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_PREFIX: Final = b": otel traceparent="
_MARK: Final = re.compile(
    rb": otel traceparent=00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2});ts=([0-9]{1,20})"
)
# A longer line is no mark.
_LONGEST: Final = 120


class Mark(NamedTuple):
    """Who sent a message, and when (Unix, ns)."""

    sender: SpanContext
    sent: int


class _Lines:
    """Where lines begin, from chunk to chunk; a BOM at the stream's start belongs to none."""

    __slots__ = ("_begins", "_cr", "_seen")

    def __init__(self) -> None:
        self._begins = True
        # The last chunk ended with a CR, of which a LF may yet be a part.
        self._cr = False
        # How much of a BOM there has been; None once that is settled.
        self._seen: int | None = 0

    def begin(self, chunk: bytes) -> int:
        """The length of what does not begin a line of its own at the start of ``chunk``."""
        at = 0
        if self._seen is not None:
            while self._seen is not None and at < len(chunk):
                if chunk[at] == _BOM[self._seen]:
                    at += 1
                    self._seen = self._seen + 1 if self._seen < len(_BOM) - 1 else None
                else:
                    # A line that begins like a BOM but is none.
                    self._begins = not self._seen
                    self._seen = None
        if self._cr and chunk[at : at + 1] == b"\n":
            at += 1
        if chunk:
            self._cr = False
        return at

    def end(self, chunk: bytes, at: int) -> int:
        """The end of the line that ``at`` is in, with its terminator; -1 beyond ``chunk``."""
        found = _LINE_END.search(chunk, at)
        self._begins = found is not None
        if found is None:
            return -1
        self._cr = found.end() == len(chunk) and found.group() == b"\r"
        return found.end()


class Marker(_Lines):
    """Puts the mark of the current span in front of each message's first byte."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        super().__init__()
        # Within a message.
        self._open = False

    def mark(self, body: Any) -> Any:
        """``body`` with its marks; what is no bytes is the server's to refuse."""
        line = _line()
        if not line or not isinstance(body, (bytes, bytearray, memoryview)):
            return body
        chunk = bytes(body)
        parts: list[bytes] = []
        done = 0
        at = self.begin(chunk)
        while 0 <= at < len(chunk):
            if self._begins:
                first = chunk[at : at + 1]
                if first in b"\r\n":
                    self._open = False
                elif first != b":" and not self._open:
                    parts += (chunk[done:at], line)
                    done = at
                    self._open = True
            at = self.end(chunk, at)
        return b"".join((*parts, chunk[done:])) if parts else chunk


def _line() -> bytes:
    sender = get_current_span().get_span_context()
    if not sender.is_valid:
        return b""
    ids = f"00-{sender.trace_id:032x}-{sender.span_id:016x}-{sender.trace_flags:02x}"
    return f": otel traceparent={ids};ts={time_ns()}\n".encode()


class Marks(_Lines):
    """Takes the marks out. A line that may be one is held back until it is told apart."""

    __slots__ = ("_held", "found")

    def __init__(self) -> None:
        super().__init__()
        self._held = b""
        # Whether there has been any.
        self.found = False

    def feed(self, chunk: bytes) -> Iterator[bytes | Mark]:
        """The stream without its marks, and each mark in its place."""
        begin = self.begin(chunk)
        if begin:
            yield chunk[:begin]
            chunk = chunk[begin:]
        if self._held:
            chunk, self._held = self._held + chunk, b""
        done = at = 0
        while 0 <= at < len(chunk):
            begins, start = self._begins, at
            at = self.end(chunk, start)
            if not begins or chunk[start : start + 1] != b":":
                continue
            line = chunk[start:] if at < 0 else chunk[start:at]
            if at < 0:
                if len(line) < _LONGEST and _may_be(line):
                    # Its start is told again with the next chunk.
                    self._held, self._begins = line, True
                    break
                continue
            mark = _MARK.fullmatch(line.rstrip(b"\r\n"))
            if mark is not None:
                self.found = True
                if done < start:
                    yield chunk[done:start]
                yield _read(mark)
                done = at
        rest = chunk[done : len(chunk) - len(self._held)]
        if rest:
            yield rest

    def rest(self) -> bytes:
        """What was still held back when the stream ended."""
        held, self._held = self._held, b""
        return held


def _may_be(line: bytes) -> bool:
    return line[: len(_PREFIX)] == _PREFIX[: len(line)]


def _read(mark: "re.Match[bytes]") -> Mark:
    trace, span, flags, sent = (each.decode() for each in mark.groups())
    sender = SpanContext(int(trace, 16), int(span, 16), True, TraceFlags(int(flags, 16)))
    return Mark(sender, int(sent))
