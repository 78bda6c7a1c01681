"""The trace comment: a comment line in front of a message, which every conforming client ignores.

``: otel traceparent=<W3C traceparent>;ts=<unix ns>`` names the span that sent the message, and the
time. ``TraceCommentWriter`` inserts trace comments into the bytes of a stream,
``TraceCommentReader`` removes them. Both follow lines as the event-stream algorithm does,
wherever the chunks are cut:
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
_COMMENT: Final = re.compile(
    rb": otel traceparent=00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2});ts=([0-9]{1,20})"
)
# A longer line is no trace comment.
_MAX_LENGTH: Final = 120


class TraceComment(NamedTuple):
    """The span that sent a message, and the time of the send (Unix, ns)."""

    sender: SpanContext
    sent: int


class _LineTracker:
    """Knows where lines begin, from chunk to chunk. A BOM at the stream's start is in no line."""

    __slots__ = ("_begins", "_cr", "_seen")

    def __init__(self) -> None:
        self._begins = True
        # The last chunk ended with a CR; the LF of a CRLF may follow.
        self._cr = False
        # Bytes of a BOM seen so far; None once it is known whether there is one.
        self._seen: int | None = 0

    def begin(self, chunk: bytes) -> int:
        """The bytes at the start of ``chunk`` that belong to a BOM or to the last line's end."""
        at = 0
        if self._seen is not None:
            while self._seen is not None and at < len(chunk):
                if chunk[at] == _BOM[self._seen]:
                    at += 1
                    self._seen = self._seen + 1 if self._seen < len(_BOM) - 1 else None
                else:
                    # A line that begins as a BOM does, but is none.
                    self._begins = not self._seen
                    self._seen = None
        if self._cr and chunk[at : at + 1] == b"\n":
            at += 1
        if chunk:
            self._cr = False
        return at

    def end(self, chunk: bytes, at: int) -> int:
        """The end of the line at ``at``, with its terminator; -1 if it goes beyond ``chunk``."""
        found = _LINE_END.search(chunk, at)
        self._begins = found is not None
        if found is None:
            return -1
        self._cr = found.end() == len(chunk) and found.group() == b"\r"
        return found.end()


class TraceCommentWriter(_LineTracker):
    """Inserts the trace comment of the current span in front of each message's first byte."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        super().__init__()
        # Within a message.
        self._open = False

    def insert(self, body: Any) -> Any:
        """``body`` with its trace comments. What is not bytes is returned as it is: the server
        refuses it as it would without us.
        """
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


class TraceCommentReader(_LineTracker):
    """Removes trace comments. A line that may become one is held back until that is known."""

    __slots__ = ("_held", "found")

    def __init__(self) -> None:
        super().__init__()
        self._held = b""
        # Whether there has been a trace comment.
        self.found = False

    def feed(self, chunk: bytes) -> Iterator[bytes | TraceComment]:
        """The stream without its trace comments, and each trace comment in its place."""
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
                if len(line) < _MAX_LENGTH and _may_become_one(line):
                    # Its start comes again with the next chunk.
                    self._held, self._begins = line, True
                    break
                continue
            match = _COMMENT.fullmatch(line.rstrip(b"\r\n"))
            if match is not None:
                self.found = True
                if done < start:
                    yield chunk[done:start]
                yield _from_match(match)
                done = at
        rest = chunk[done : len(chunk) - len(self._held)]
        if rest:
            yield rest

    def rest(self) -> bytes:
        """What was held back when the stream ended."""
        held, self._held = self._held, b""
        return held


def _may_become_one(line: bytes) -> bool:
    return line[: len(_PREFIX)] == _PREFIX[: len(line)]


def _from_match(match: "re.Match[bytes]") -> TraceComment:
    trace, span, flags, sent = (each.decode() for each in match.groups())
    sender = SpanContext(int(trace, 16), int(span, 16), True, TraceFlags(int(flags, 16)))
    return TraceComment(sender, int(sent))
