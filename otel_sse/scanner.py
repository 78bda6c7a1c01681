"""Reads an event stream without I/O: bytes in, messages out, in constant memory.

The rules are those of the WHATWG HTML standard, "Parsing an event stream" and "Interpreting an
event stream" (https://html.spec.whatwg.org/multipage/server-sent-events.html):

- lines end with LF, CR or CRLF; one byte order mark may come first;
- a line that starts with a colon is a comment;
- a blank line ends a block; the block is a message if it holds at least one ``data`` field;
- the last ``event`` field of a block names its type; none, or an empty one, means ``message``.

Payload is counted and thrown away. Of an open line only the head is kept, enough to tell its
field and its value up to the limits below. A stream may be cut anywhere and gives the same
messages; their sizes too, but for one byte: a message is told at the CR that ends it, so the LF
of a CRLF is in its size only where it comes in the same chunk.
"""

from collections.abc import Sequence
from typing import Final

from otel_sse.semconv import DEFAULT_EVENT_TYPE

_LF: Final = 10
_CR: Final = 13
_COLON: Final = 58
_D: Final = 100  # data
_E: Final = 101  # event
_BOM: Final = b"\xef\xbb\xbf"

# Bytes of an open line that are kept: the longest field name with its colon and a space, and a
# value one byte longer than any that is told, so that a longer one can be recognised.
_HEAD: Final = 256
# Lines are split a window at a time, so that a large chunk is never copied whole.
_WINDOW: Final = 2048
_PIECE: Final = 65536
_MAX_KNOWN_LINES: Final = 128
# Of so many messages that look like none before, so many are tried as the look of the next ones.
_CYCLE: Final = 32
_TRIES: Final = 3
_MAX_SHAPES: Final = 128

# Whole event lines met before, to their type: a dict look-up is the cheapest way to read one.
_known_lines: dict[bytes, str] = {}


# A message that the stream dispatched: its event type, cut at some 250 bytes; its bytes on the
# wire, from its first field to its blank line; the last event id, only where it is captured.
# A plain tuple, because making one is most of what a message costs.
Message = tuple[str, int, str | None]

# What does not vary from one message to the next: its bytes up to the first value that does and
# those between that and the last line's value, each with their number, and the event type.
Shape = tuple[bytes, int, bytes, int, str]
_shapes: dict[Shape, Shape] = {}


class Scanner:
    """Counts the messages and comments of one stream."""

    __slots__ = (
        "_after_cr _block _capture_id _clean _data _head _id _open _shape _start _strange _type "
        "comments"
    ).split()

    def __init__(self, *, capture_id: bool = False) -> None:
        # Comment lines so far.
        self.comments = 0
        self._capture_id = capture_id
        # The last event id, where it is captured: it outlives its message.
        self._id: str | None = None
        # The stream's first bytes while they may still become a byte order mark; then None.
        self._start: bytes | None = b""
        # The last byte was a CR: an LF that comes next belongs to it.
        self._after_cr = False
        # Bytes of the open line, and the head of it that is kept.
        self._open = 0
        self._head = b""
        # Bytes of the open block from its first field on; 0 where none has come.
        self._block = 0
        self._data = False
        self._type = DEFAULT_EVENT_TYPE
        # Nothing of the above is pending: a chunk that is one whole message can be told as such.
        self._clean = False
        # What such a chunk looks like, and how many have looked otherwise, modulo ``_CYCLE``.
        self._shape: Shape | None = None
        self._strange = 0

    def whole(self, chunk: bytes | bytearray | memoryview) -> str | None:
        """The event type of the one message that ``chunk`` is, where it looks as the last ones did:
        it is not to be fed then. None: it is.
        """
        shape = self._shape
        if shape is None or not self._clean or type(chunk) is not bytes or len(chunk) > _WINDOW:
            return None
        head, begin, middle, size, kind = shape
        end = chunk.find(b"\n", begin) if begin else 0
        rest = end + size
        if (
            chunk[end:rest] == middle
            and chunk[-2:] == b"\n\n"
            and _LF not in chunk[rest:-2]
            and _CR not in chunk
            and chunk[:begin] == head
        ):
            return kind
        return None

    def feed(self, chunk: bytes | bytearray | memoryview) -> Sequence[Message]:
        """The messages that ``chunk`` completes, in order."""
        if self._clean and type(chunk) is bytes and 0 < len(chunk) <= _WINDOW and chunk[-1] == _LF:
            lines = chunk.splitlines()
            if not lines.pop():
                kind = DEFAULT_EVENT_TYPE
                data = False
                for line in lines:
                    if not line:
                        break
                    first = line[0]
                    if first == _D:
                        if line[:5] != b"data:":
                            break
                        data = True
                    elif first == _E:
                        known = _known_lines.get(line)
                        if known is None:
                            break
                        kind = known
                    elif first == _COLON:
                        break
                else:
                    if data:
                        self._strange = (self._strange + 1) % _CYCLE
                        if self._strange < _TRIES:
                            self._shape = _shape_of(chunk, lines, kind)
                        return ((kind, len(chunk), None),)
        messages: list[Message] = []
        if type(chunk) is bytes:
            self._scan(chunk, messages)
        else:
            view = as_bytes(chunk)
            at, end = 0, len(view)
            while at < end:
                stop = at + _PIECE
                if bytes(view[stop - 1 : stop + 1]) == b"\r\n":
                    stop += 1
                self._scan(bytes(view[at:stop]), messages)
                at = stop
        return messages

    def _scan(self, chunk: bytes, messages: list[Message]) -> None:
        at, end = 0, len(chunk)
        if self._start is not None:
            at = self._skip_mark(chunk, messages)
        if at == end:
            return
        self._clean = False
        if self._after_cr and chunk[0] == _LF:
            at = 1
            if self._block:
                self._block += 1
        self._after_cr = chunk[-1] == _CR
        while at < end:
            if self._open >= _HEAD:
                at = self._skip(chunk, at, messages)
                continue
            stop = min(at + _WINDOW, end)
            if chunk[stop - 1 : stop + 1] == b"\r\n":
                stop += 1
            for line in chunk[at:stop].splitlines(True):
                last = line[-1]
                if last == _LF and not self._open:
                    # The two lines that nearly every stream is made of, without the detour.
                    if line[0] == _D and line[:5] == b"data:":
                        self._block += len(line)
                        self._data = True
                        continue
                    if line == b"\n":
                        self._end_block(1, messages)
                        continue
                if last == _LF:
                    terminator = 2 if line[-2:-1] == b"\r" else 1
                else:
                    terminator = 1 if last == _CR else 0
                body = len(line) - terminator
                if self._open < _HEAD:
                    self._head += line[: min(body, _HEAD - self._open)]
                self._open += body
                if terminator:
                    self._end_line(terminator, messages)
            at = stop
        self._clean = not (self._open or self._block or self._after_cr or self._capture_id)

    def _skip_mark(self, chunk: bytes, messages: list[Message]) -> int:
        """Where in the stream's first chunks the lines begin."""
        held = self._start or b""
        start = held + chunk[: len(_BOM) - len(held)]
        if start != _BOM and _BOM.startswith(start):
            self._start = start
            return len(chunk)
        self._start = None
        if start == _BOM:
            return len(_BOM) - len(held)
        if held:
            self._scan(held, messages)
        return 0

    def _skip(self, chunk: bytes, at: int, messages: list[Message]) -> int:
        """Goes on from ``at`` to behind the open line, of which nothing more is kept."""
        # Not further than a piece: the end of lines that end in CR is not sought by the LF.
        stop = min(at + _PIECE, len(chunk))
        lf = chunk.find(b"\n", at, stop)
        cr = chunk.find(b"\r", at, lf if lf >= 0 else stop)
        if cr < 0 and lf < 0:
            self._open += stop - at
            return stop
        body = cr if cr >= 0 else lf
        terminator = 2 if chunk[body : body + 2] == b"\r\n" else 1
        self._open += body - at
        self._end_line(terminator, messages)
        return body + terminator

    def _end_line(self, terminator: int, messages: list[Message]) -> None:
        """The open line is whole; its terminator is that many bytes."""
        head, size = self._head, self._open + terminator
        self._head, self._open = b"", 0
        if not head:
            self._end_block(terminator, messages)
        elif head[0] == _COLON:
            self.comments += 1
            if self._block:
                self._block += size
        else:
            self._block += size
            name, _, value = head.partition(b":")
            if name == b"data":
                self._data = True
            elif name == b"event":
                self._type = _event_type(head, value.removeprefix(b" "))
            elif self._capture_id and name == b"id" and b"\0" not in value:
                self._id = value.removeprefix(b" ").decode("utf-8", "replace")

    def _end_block(self, terminator: int, messages: list[Message]) -> None:
        """A blank line: its terminator is that many bytes."""
        if self._data:
            messages.append((self._type, self._block + terminator, self._id))
        self._block, self._type, self._data = 0, DEFAULT_EVENT_TYPE, False


def _shape_of(chunk: bytes, lines: list[bytes], kind: str) -> Shape | None:
    """How to know a message whose ``lines`` differ from these in at most two values: of the last
    line, and of one other; None where that would not do.
    """
    free = [number for number, line in enumerate(lines) if line.startswith((b"data:", b"id:"))]
    last = len(lines) - 1
    # Any other line is an event's: nothing else of a payload is kept.
    others = (line for line in lines if not line.startswith((b"data:", b"id:")))
    if len(free) > 2 or free[-1] != last or _CR in chunk or any(line[0] != _E for line in others):
        return None
    begin = end = 0
    if len(free) == 2:
        line = lines[free[0]]
        start = sum(len(each) + 1 for each in lines[: free[0]])
        begin, end = start + line.index(b":") + 1, start + len(line)
    rest = len(chunk) - 2 - len(lines[last]) + lines[last].index(b":") + 1
    middle = chunk[end:rest]
    if begin + len(middle) > _HEAD:
        return None
    shape = (chunk[:begin], begin, middle, len(middle), kind)
    if len(_shapes) >= _MAX_SHAPES:
        _shapes.clear()
    # The streams of an application look alike: one object serves them all.
    return _shapes.setdefault(shape, shape)


def as_bytes(chunk: bytes | bytearray | memoryview) -> memoryview:
    """A view of single bytes; only of one with gaps they are copied."""
    view = memoryview(chunk)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _event_type(line: bytes, value: bytes) -> str:
    kind = value.decode("utf-8", "replace") or DEFAULT_EVENT_TYPE
    if len(line) < _HEAD and len(_known_lines) < _MAX_KNOWN_LINES:
        _known_lines[line] = kind
    return kind
