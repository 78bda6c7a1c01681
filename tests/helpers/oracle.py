"""What an event stream means, read off the WHATWG HTML standard as slowly as it is written there.

The tests and ``benchmarks/fuzz.py`` compare the parser with this, which shares nothing with it:
the messages come from the decoded text, the sizes from the bytes, and neither way knows of chunks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

BOM = b"\xef\xbb\xbf"

# A longer event type or id may be reported cut, but never to fewer bytes than this.
CUT = 240

# What a long line may start with that moves what follows it.
LEADS = (b": ", b"data: ", b"event: tick\ndata: x\r\n", b"data: x\n\n: ")

Buffer = bytes | bytearray | memoryview
ParsedMessage = tuple[str, int, str | None]


class Message(NamedTuple):
    """A dispatched event: its type, its data and the last event id at that time."""

    type: str
    data: str
    id: str


class Block(NamedTuple):
    """Where a dispatched block lies: its first field, its blank line, and what comes after."""

    start: int
    blank: int
    end: int


def read(stream: bytes) -> tuple[list[Message], int]:
    """The messages and the number of comments: 9.2.6, Interpreting an event stream."""
    # "Streams must be decoded using the UTF-8 decode algorithm", which strips one leading BOM.
    text = stream.removeprefix(BOM).decode("utf-8", "replace")
    # "When a stream is parsed, a data buffer, an event type buffer, and a last event ID buffer
    # must be associated with it. They must be initialized to the empty string."
    data_buffer = ""
    event_type_buffer = ""
    last_event_id_buffer = ""
    messages = []
    comments = 0
    for line in _lines(text):
        if line == "":
            # "If the line is empty (a blank line): Dispatch the event":
            # 1. "Set the last event ID string of the event source to the value of the last event
            # ID buffer. The buffer does not get reset".
            last_event_id = last_event_id_buffer
            # 2. "If the data buffer is an empty string, set the data buffer and the event type
            # buffer to the empty string and return."
            if data_buffer == "":
                event_type_buffer = ""
                continue
            # 3. "If the data buffer's last character is a U+000A LINE FEED (LF) character, then
            # remove the last character from the data buffer."
            if data_buffer[-1] == "\n":
                data_buffer = data_buffer[:-1]
            # 4. and 5. "Initialize event's type attribute to "message" [...]"
            event_type = "message"
            # 6. "If the event type buffer has a value other than the empty string, change the type
            # of the newly created event to equal the value of the event type buffer."
            if event_type_buffer != "":
                event_type = event_type_buffer
            messages.append(Message(event_type, data_buffer, last_event_id))
            # 7. "Set the data buffer and the event type buffer to the empty string."
            data_buffer = ""
            event_type_buffer = ""
        elif line[0] == ":":
            # "If the line starts with a U+003A COLON character (:): Ignore the line."
            comments += 1
        else:
            if ":" in line:
                # "Collect the characters on the line before the first U+003A COLON character (:),
                # and let field be that string. Collect the characters on the line after [it], and
                # let value be that string. If value starts with a U+0020 SPACE character, remove
                # it from value."
                field, value = line.split(":", 1)
                if value != "" and value[0] == " ":
                    value = value[1:]
            else:
                # "Process the field using [...] the whole line as the field name, and the empty
                # string as the field value."
                field, value = line, ""
            if field == "event":
                # "Set the event type buffer to the field value."
                event_type_buffer = value
            elif field == "data":
                # "Append the field value to the data buffer, then append a single U+000A LINE
                # FEED (LF) character to the data buffer."
                data_buffer += value
                data_buffer += "\n"
            elif field == "id" and "\0" not in value:
                # "If the field value does not contain U+0000 NULL, then set the last event ID
                # buffer to the field value. Otherwise, ignore the field."
                last_event_id_buffer = value
            # "retry" sets a time that no message carries; "Otherwise: The field is ignored."
    # "Once the end of the file is reached, any pending data must be discarded."
    return messages, comments


def _lines(text: str) -> Iterator[str]:
    """The lines that are ended, by CRLF, LF or CR; an open one at the end is none."""
    line: list[str] = []
    before = ""
    for character in text:
        if character == "\n" and before == "\r":
            pass
        elif character in "\r\n":
            yield "".join(line)
            line = []
        else:
            line.append(character)
        before = character


def wire(stream: bytes) -> list[Block]:
    """Where the messages lie in the bytes: from the first field through the blank line's end."""
    blocks: list[Block] = []
    start = None
    data = False
    at = len(BOM) if stream[:3] == BOM else 0
    while True:
        stop = at
        while stop < len(stream) and stream[stop] not in b"\r\n":
            stop += 1
        if stop == len(stream):
            return blocks
        after = stop + 2 if stream[stop : stop + 2] == b"\r\n" else stop + 1
        line = stream[at:stop]
        if line == b"":
            if data and start is not None:
                blocks.append(Block(start, at, after))
            start = None
            data = False
        elif line[:1] != b":":
            if start is None:
                start = at
            if line == b"data" or line[:5] == b"data:":
                data = True
        at = after


class Parser(Protocol):
    """What is compared with the oracle."""

    comments: int

    def match_template(self, chunk: Buffer) -> str | None:
        """The type of the one message that the chunk is, where it is not to be fed."""
        ...

    def feed(self, chunk: Buffer) -> Sequence[ParsedMessage]:
        """The messages that the chunk completes."""
        ...


def cut(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The stream in chunks that end at the cuts; a cut named twice makes an empty chunk."""
    ends = [*sorted(cuts), len(stream)]
    return [stream[at:end] for at, end in zip([0, *ends], ends, strict=False)]


def line_edges(stream: bytes) -> list[int]:
    """Behind each CR and each LF, so also within a CRLF."""
    return [at + 1 for at, byte in enumerate(stream) if byte in b"\r\n"]


def aligned(lead: bytes, stream: bytes, at: int, boundary: int) -> bytes:
    """The stream behind a line that begins with ``lead`` and moves its byte ``at`` to there."""
    return lead.ljust(boundary - at - 1, b"x") + b"\n" + stream


def difference(
    parser: Parser,
    stream: bytes,
    cuts: Iterable[int] = (),
    *,
    ids: bool = False,
    buffer: Callable[[bytes], Buffer] = bytes,
) -> str | None:
    """How a new parser, fed the stream in these chunks, differs from the oracle.

    A message is due with the chunk that holds the first byte of its blank line. Its size is that
    on the wire, but for the LF of a blank line whose CR was the last byte of a chunk.
    """
    messages, comments = read(stream)
    blocks = wire(stream)
    if len(messages) != len(blocks):
        return f"the oracle reads {len(messages)} messages in {len(blocks)} blocks"
    due = list(zip(messages, blocks, strict=True))
    done = 0
    end = 0
    for chunk in cut(stream, cuts):
        end += len(chunk)
        known = parser.match_template(buffer(chunk))
        found = parser.feed(buffer(chunk)) if known is None else [(known, len(chunk), None)]
        for kind, size, last_id in found:
            if done == len(due):
                return f"a message too many by byte {end}: {(kind, size, last_id)!r}"
            message, block = due[done]
            if block.blank >= end:
                return (
                    f"message {done} is reported by byte {end}, its blank line is at {block.blank}"
                )
            whole = block.end - block.start
            halved = block.end - 1 == end and stream[block.blank : block.end] == b"\r\n"
            if size != whole - halved:
                return f"message {done} has size {size}, not {whole - halved}"
            if not _same(kind, message.type):
                return f"message {done} has type {kind!r}, not {message.type!r}"
            if not (_same(last_id or "", message.id) if ids else last_id is None):
                return f"message {done} has id {last_id!r}, not {message.id!r}"
            done += 1
        if done < len(due) and due[done][1].blank < end:
            return f"message {done} is not reported by byte {end}"
    if parser.comments != comments:
        return f"{parser.comments} comments, not {comments}"
    return None


def _same(found: str, whole: str) -> bool:
    """Whether a value is reported whole, or cut where it may be."""
    if found == whole:
        return True
    # The cut may halve the last character.
    prefix = found[:-1] if found[-1:] == "\ufffd" else found
    return len(found.encode()) >= CUT and len(found) <= 256 and whole.startswith(prefix)
