"""Reads an event stream with its payload, in bounded memory, and notes faults of its format.

The rules are those of the WHATWG HTML standard, "Parsing an event stream" and "Interpreting an
event stream" (https://html.spec.whatwg.org/multipage/server-sent-events.html). A line, and the
data of a message, are kept up to ``LIMIT`` bytes; the rest is counted only. No I/O.
"""

import re
from dataclasses import dataclass, field
from typing import Final

LIMIT: Final = 65536
_BOM: Final = b"\xef\xbb\xbf"
_FIELDS: Final = (b"data", b"event", b"id", b"retry")
_MAX_TYPES: Final = 100
_OTHER: Final = "_OTHER"
_TRACE_COMMENT: Final = re.compile(
    rb" otel traceparent=00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2};ts=([0-9]{1,20})"
)


@dataclass(frozen=True)
class Message:
    """A dispatched message.

    Attributes:
        type: its event type.
        data: its data, at most ``LIMIT`` bytes of it.
        id: the last event id at that time.
        size: bytes on the wire, from its first field to its blank line.
        truncated: whether data was longer.
        sent: Unix time in ns at which its trace comment was written; None where it has none.

    """

    type: str
    data: str
    id: str
    size: int
    truncated: bool = False
    sent: int | None = None


@dataclass(frozen=True)
class Comment:
    """A comment line that is no trace comment: a keep-alive."""

    text: str


@dataclass
class Fault:
    """A fault of the format: how often, and where first (the message it is in or before)."""

    count: int = 0
    message: int = 0
    example: str = ""


@dataclass
class _Block:
    """The fields since the last blank line."""

    data: list[bytes] = field(default_factory=list)
    kept: int = 0
    size: int = 0
    type: bytes = b""
    has_event: bool = False
    truncated: bool = False


class Parser:
    """Sans-I/O: ``feed`` it bytes, at the end call ``finish``."""

    def __init__(self) -> None:
        self.messages = 0
        self.comments = 0
        self.trace_comments = 0
        # Values of the valid ``retry`` fields, in milliseconds: the last, and how many.
        self.retry: int | None = None
        self.retries = 0
        self.ids = 0
        self.last_id = ""
        # By event type; types beyond the first hundred are counted as _OTHER.
        self.types: dict[str, int] = {}
        self.faults: dict[str, Fault] = {}
        self._id = b""
        # The first bytes, while they may be a byte order mark; then None.
        self._start: bytes | None = b""
        self._line = bytearray()
        self._line_size = 0
        self._after_cr = False
        self._cr_message = 0
        self._block = _Block()
        self._sent: int | None = None

    @property
    def within_message(self) -> bool:
        """Whether a message has begun that is not complete yet."""
        return bool(self._line_size or self._block.size)

    def feed(self, chunk: bytes) -> list[Message | Comment]:
        """The messages and comments that ``chunk`` completes."""
        if self._start is not None:
            chunk = self._begin(chunk)
        found: list[Message | Comment] = []
        at, end = 0, len(chunk)
        if end and self._after_cr:
            if chunk[0] == 10:
                at = 1
                self._block.size += bool(self._block.size)
            else:
                self._fault("cr-line-end", message=self._cr_message)
            self._after_cr = False
        lf = -2
        while at < end:
            if lf != -1 and lf < at:
                lf = chunk.find(b"\n", at)
            cr = chunk.find(b"\r", at, lf if lf >= 0 else end)
            stop = cr if cr >= 0 else lf
            if stop < 0:
                self._keep(chunk[at : at + LIMIT], end - at)
                break
            self._keep(chunk[at : min(stop, at + LIMIT)], stop - at)
            after = stop + 1
            if cr >= 0:
                if after == end:
                    # Whether it is a CRLF is seen with the next chunk.
                    self._after_cr, self._cr_message = True, self.messages + 1
                elif chunk[after] == 10:
                    after += 1
                else:
                    self._fault("cr-line-end")
            self._end_line(after - stop, found)
            at = after
        return found

    def finish(self) -> None:
        """The stream is over: what is open now is lost."""
        if self._start:
            start, self._start = self._start, None
            self.feed(start)
        if self._after_cr:
            self._fault("cr-line-end", message=self._cr_message)
        line = bytes(self._line)
        if self._block.data or line.startswith(b"data"):
            self._fault("no-blank-line", (b"\n".join(self._block.data) or line)[:80])
        elif line[:1] != b":" and not any(
            line.startswith(name + b":") or name.startswith(line) for name in _FIELDS
        ):
            self._fault("unknown-field", line)

    def _begin(self, chunk: bytes) -> bytes:
        start = (self._start or b"") + chunk
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        if start.startswith(_BOM):
            self._fault("leading-bom")
            return start[len(_BOM) :]
        return start

    def _keep(self, piece: bytes, size: int) -> None:
        self._line += piece[: LIMIT - len(self._line)]
        self._line_size += size

    def _fault(self, name: str, example: bytes = b"", message: int = 0) -> None:
        place = message or self.messages + 1
        fault = self.faults.setdefault(name, Fault(0, place, _text(example[:80])))
        fault.count += 1

    def _end_line(self, terminator: int, found: list[Message | Comment]) -> None:
        line, size = bytes(self._line), self._line_size
        self._line.clear()
        self._line_size = 0
        if not line:
            self._end_block(terminator, found)
            return
        if size > len(line):
            self._fault("long-line")
        if line[:1] == b":":
            trace = _TRACE_COMMENT.fullmatch(line[1:])
            if trace:
                self.trace_comments += 1
                self._sent = int(trace[1])
            else:
                self.comments += 1
                found.append(Comment(_text(line[1:].removeprefix(b" "))))
            if self._block.size:
                self._block.size += size + terminator
            return
        self._block.size += size + terminator
        self._field(line, size)

    def _field(self, line: bytes, size: int) -> None:
        name, colon, value = line.partition(b":")
        value = value.removeprefix(b" ")
        block = self._block
        if name not in _FIELDS:
            self._fault("bom-inside" if name.startswith(_BOM) else "unknown-field", line)
            return
        if not colon:
            self._fault("field-without-colon", line)
        if not _decodes(value):
            self._fault("invalid-utf-8", line)
        if name == b"data":
            if value.startswith((b"data:", b"event:", b"id:")):
                self._fault("doubled-field", line)
            kept = value[: max(LIMIT - block.kept, 0)]
            block.truncated |= size > len(line) or len(kept) < len(value)
            # Of a message with very many lines no more are kept than can be shown.
            if block.kept < LIMIT:
                block.data.append(kept)
                block.kept += len(kept) + 1
            elif not block.data:
                block.data.append(b"")
        elif name == b"event":
            block.type, block.has_event = value[:256], True
        elif name == b"id":
            if b"\0" in value:
                self._fault("nul-in-id", line)
            else:
                self._id = value[:1024]
                self.ids += 1
        elif value.isdigit() and value.isascii() and len(value) < 16:
            self.retry = int(value)
            self.retries += 1
        else:
            self._fault("bad-retry", line)

    def _end_block(self, terminator: int, found: list[Message | Comment]) -> None:
        block, self._block = self._block, _Block()
        self.last_id = _text(self._id)
        if not block.data:
            if block.has_event:
                self._fault("event-without-data", b"event: " + block.type)
            return
        self.messages += 1
        kind = _text(block.type) or "message"
        key = kind if kind in self.types or len(self.types) < _MAX_TYPES else _OTHER
        self.types[key] = self.types.get(key, 0) + 1
        found.append(
            Message(
                type=kind,
                data=_text(b"\n".join(block.data)),
                id=self.last_id,
                size=block.size + terminator,
                truncated=block.truncated,
                sent=self._sent,
            )
        )
        self._sent = None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _decodes(value: bytes) -> bool:
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError as error:
        # A line that was cut at its limit may end within a character.
        return len(value) >= LIMIT - 16 and error.end == len(value)
    return True
