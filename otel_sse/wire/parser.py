"""Parses an event stream without I/O: bytes in, messages out, in constant memory.

The rules are those of the WHATWG HTML standard, "Parsing an event stream" and "Interpreting an
event stream" (https://html.spec.whatwg.org/multipage/server-sent-events.html):

- lines end with LF, CR or CRLF; one byte order mark may come first;
- a line that starts with a colon is a comment;
- a blank line ends a block; the block is a message if it holds at least one ``data`` field;
- the last ``event`` field of a block names its type; none, or an empty one, means ``message``.

Payload is counted and dropped, but for the last message of a template, which is kept while a stream
may send it. Of an open line only the head is buffered, enough to read its field and its value up to
the limits below. A stream may be cut anywhere and gives the same messages; their sizes too, but for
one byte: a message is complete at the CR that ends it, so the LF of a CRLF is in its size only
where it comes in the same chunk.

There are three ways through, from fast to general, and each gives the same result:

1. ``match_template``: the chunk is one message that differs from an earlier one in at most two
   values, and is not the protocol's last. A few comparisons at C speed; nothing is split. The
   caller then does not call ``feed``.
2. The loop in ``feed``: the chunk is one whole message, in lines that were seen before.
3. ``_parse``: anything else.

The first two hold only while the parser is clean: the byte order mark is settled, no line is open,
no block has begun, no CR waits for its LF, and no event id has to be captured.
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
# The data of the last message of the OpenAI protocol and of those that follow it, in the line and
# how a chunk ends that may be that message: with a bracket, soon behind what a template fixes.
_DONE_LINES: Final = (b"data: [DONE]", b"data:[DONE]")
_BRACKET: Final = 93
_MAX_DONE: Final = len(b" [DONE]\n\n")

# Bytes of an open line that are buffered: the longest field name with its colon and a space, and
# a value longer than any that is exported, so that one beyond the limit can be recognised.
_HEAD: Final = 256
# Lines are split a window at a time, so that a large chunk is never copied as a whole. 2 KiB holds
# nearly every message, so that nearly every chunk is one window.
_WINDOW: Final = 2048
_PIECE: Final = 65536
_MAX_KNOWN_LINES: Final = 128
# Of each 32 messages that match no template, three are tried as the next template: a stream whose
# messages all differ pays for few templates that never match.
_CYCLE: Final = 32
_TRIES: Final = 3
_MAX_TEMPLATES: Final = 128

# Whole event lines seen before, to their type: a dict look-up is the cheapest way to read one.
_known_lines: dict[bytes, str] = {}


# A message that the stream dispatched: its event type, cut at some 250 bytes; its bytes on the
# wire, from its first field to its blank line; the last event id, only where it is captured.
# A plain tuple: a NamedTuple would double the time that a message takes here.
Message = tuple[str, int, str | None]


class MessageTemplate:
    """What is the same in consecutive messages, of one stream and of others.

    Attributes:
        head: the bytes before the first value that varies; ``begin`` is their number.
        middle: the bytes between that value and the last line's value; ``size`` is their number.
        kind: the event type.
        last: the chunk that has matched last. Where one message is sent to many streams it is the
            same object for all of them, and compared once.

    """

    __slots__ = ("begin", "head", "kind", "last", "middle", "size")

    def __init__(self, head: bytes, middle: bytes, kind: str) -> None:
        self.head = head
        self.begin = len(head)
        self.middle = middle
        self.size = len(middle)
        self.kind = kind
        self.last: bytes | None = None


_templates: dict[tuple[bytes, bytes, str], MessageTemplate] = {}


class EventStreamParser:
    """Counts the messages and comments of one stream.

    Args:
        capture_id: whether messages carry the last event id.
        final_events: event types by which a protocol ends its stream, beside ``data: [DONE]``.

    Attributes:
        comments: comment lines so far.
        final: the last message that ``feed`` returned is the protocol's last.

    """

    __slots__ = (
        "_after_cr",
        "_block",
        "_capture_id",
        "_clean",
        "_data",
        "_done",
        "_final_events",
        "_head",
        "_id",
        "_misses",
        "_open",
        "_start",
        "_template",
        "_type",
        "comments",
        "final",
    )

    def __init__(
        self, *, capture_id: bool = False, final_events: frozenset[str] = frozenset()
    ) -> None:
        self.comments = 0
        self.final = False
        self._capture_id = capture_id
        self._final_events = final_events
        # The last event id, where it is captured: it outlives its message.
        self._id: str | None = None
        # The stream's first bytes while they may still become a byte order mark; then None.
        self._start: bytes | None = b""
        # The last byte was a CR: an LF that comes next belongs to it.
        self._after_cr = False
        # Bytes of the open line, and the head of it that is buffered.
        self._open = 0
        self._head = b""
        # Bytes of the open block from its first field on; 0 where none has come.
        self._block = 0
        self._data = False
        # The block's only data line so far is ``data: [DONE]``.
        self._done = False
        self._type = DEFAULT_EVENT_TYPE
        # Nothing of the above is pending, so a chunk that is one whole message can be read as such.
        self._clean = False
        # The template of such chunks, and how many did not match it, modulo ``_CYCLE``.
        self._template: MessageTemplate | None = None
        self._misses = 0

    def forget_chunk(self) -> None:
        """The stream has ended: the last message that has matched is kept for it no longer."""
        if self._template is not None:
            self._template.last = None

    def match_template(self, chunk: bytes | bytearray | memoryview) -> str | None:
        """The event type of ``chunk``, if it is one message that matches the template.

        Such a chunk must not be fed. None means that it has to be.
        """
        template = self._template
        if template is None or not self._clean:
            return None
        if chunk is template.last:
            return template.kind
        if type(chunk) is not bytes or (length := len(chunk)) > _WINDOW:
            return None
        begin = template.begin
        end = chunk.find(b"\n", begin) if begin else 0
        rest = end + template.size
        if (
            chunk[end:rest] == template.middle
            and chunk[-2:] == b"\n\n"
            and _LF not in chunk[rest:-2]
            and _CR not in chunk
            and chunk[:begin] == template.head
            and (length - rest > _MAX_DONE or chunk[-3] != _BRACKET)
        ):
            template.last = chunk
            return template.kind
        return None

    def feed(self, chunk: bytes | bytearray | memoryview) -> Sequence[Message]:
        """The messages that ``chunk`` completes, in order."""
        if self._clean and type(chunk) is bytes and 0 < len(chunk) <= _WINDOW and chunk[-1] == _LF:
            lines = chunk.splitlines()
            if not lines.pop():
                kind = DEFAULT_EVENT_TYPE
                data = b""
                for line in lines:
                    if not line:
                        break
                    first = line[0]
                    if first == _D:
                        if line[:5] != b"data:":
                            break
                        data = line
                    elif first == _E:
                        known = _known_lines.get(line)
                        if known is None:
                            break
                        kind = known
                    elif first == _COLON:
                        break
                else:
                    if data:
                        self.final = kind in self._final_events or (
                            data in _DONE_LINES
                            and sum(line.startswith(b"data:") for line in lines) == 1
                        )
                        self._misses = (self._misses + 1) % _CYCLE
                        if self._misses < _TRIES and not self.final:
                            self._template = _template_of(chunk, lines, kind)
                        return ((kind, len(chunk), None),)
        messages: list[Message] = []
        if type(chunk) is bytes:
            self._parse(chunk, messages)
        else:
            view = byte_view(chunk)
            at, end = 0, len(view)
            while at < end:
                stop = at + _PIECE
                if bytes(view[stop - 1 : stop + 1]) == b"\r\n":
                    stop += 1
                self._parse(bytes(view[at:stop]), messages)
                at = stop
        return messages

    def _parse(self, chunk: bytes, messages: list[Message]) -> None:
        at, end = 0, len(chunk)
        if self._start is not None:
            at = self._skip_bom(chunk, messages)
        if at == end:
            return
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
                    # The two most frequent lines, without the general way below.
                    if line[0] == _D and line[:5] == b"data:":
                        self._block += len(line)
                        self._done = not self._data and line.rstrip(b"\r\n") in _DONE_LINES
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

    def _skip_bom(self, chunk: bytes, messages: list[Message]) -> int:
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
            self._parse(held, messages)
        return 0

    def _skip(self, chunk: bytes, at: int, messages: list[Message]) -> int:
        """Goes on from ``at`` to behind the open line, of which nothing more is buffered."""
        # Bounded: where lines end in CR, looking for an LF would scan the rest of the chunk.
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
        """The open line is complete; its terminator is that many bytes."""
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
                self._done = not self._data and head in _DONE_LINES
                self._data = True
            elif name == b"event":
                self._type = _event_type(head, value.removeprefix(b" "))
            elif self._capture_id and name == b"id" and b"\0" not in value:
                self._id = value.removeprefix(b" ").decode("utf-8", "replace")

    def _end_block(self, terminator: int, messages: list[Message]) -> None:
        """A blank line: its terminator is that many bytes."""
        if self._data:
            messages.append((self._type, self._block + terminator, self._id))
            self.final = self._done or self._type in self._final_events
        self._block, self._type, self._data, self._done = 0, DEFAULT_EVENT_TYPE, False, False


def _template_of(chunk: bytes, lines: list[bytes], kind: str) -> MessageTemplate | None:
    """A template for messages that differ from ``lines`` in at most two values: the last line's and
    one other's. None where the lines do not allow one.
    """
    free = [number for number, line in enumerate(lines) if line.startswith((b"data:", b"id:"))]
    last = len(lines) - 1
    # Any other line must be an event field: nothing of a payload may be kept in what is compared.
    others = (line for line in lines if not line.startswith((b"data:", b"id:")))
    if len(free) > 2 or free[-1] != last or _CR in chunk or any(line[0] != _E for line in others):
        return None
    # ``match_template`` looks for a protocol's last message only in the last line's value.
    if lines[last][0] != _D:
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
    key = chunk[:begin], middle, kind
    if len(_templates) >= _MAX_TEMPLATES:
        _templates.clear()
    # The streams of an application send alike messages: they share one object.
    return _templates.get(key) or _templates.setdefault(key, MessageTemplate(*key))


def byte_view(chunk: bytes | bytearray | memoryview) -> memoryview:
    """A view of single bytes. Only a view with gaps is copied."""
    view = memoryview(chunk)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _event_type(line: bytes, value: bytes) -> str:
    kind = value.decode("utf-8", "replace") or DEFAULT_EVENT_TYPE
    if len(line) < _HEAD and len(_known_lines) < _MAX_KNOWN_LINES:
        _known_lines[line] = kind
    return kind
