"""The parser reads what the WHATWG algorithm reads, in constant memory and linear work."""

import os
import random
from collections.abc import Callable
from itertools import product

import pytest
from helpers import random_streams
from helpers.oracle import (
    BOM,
    LEADS,
    Buffer,
    Message,
    ParsedMessage,
    aligned,
    cut,
    difference,
    line_edges,
    read,
    wire,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_sse.wire import parser as module
from otel_sse.wire.parser import EventStreamParser

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
settings.register_profile("parser", max_examples=EXAMPLES, deadline=None, print_blob=True)
SETTINGS = settings.get_profile("parser")

pytestmark = pytest.mark.timeout(max(240, EXAMPLES // 10))

Cut = tuple[bytes, list[int]]


def messages_of(*chunks: Buffer, ids: bool = False) -> list[ParsedMessage]:
    """All messages of a new parser."""
    parser = EventStreamParser(capture_id=ids)
    return [message for chunk in chunks for message in parser.feed(chunk)]


def check(
    stream: bytes,
    cuts: list[int],
    *,
    ids: bool = False,
    buffer: Callable[[bytes], Buffer] = bytes,
) -> None:
    """The oracle agrees, whether the parser meets the stream's event lines newly or again."""
    module._known_lines.clear()
    for _ in ("newly", "again"):
        assert (
            difference(EventStreamParser(capture_id=ids), stream, cuts, ids=ids, buffer=buffer)
            is None
        )


# Streams. A NUL stands in short values only: an id is cut before one behind its 250th byte.

LINE_ENDS = (b"\n", b"\r", b"\r\n")
CRLF = (b"\r", b"\n")
FILLS = (b"x", b" ", b":", b"\xff", "é".encode(), "€".encode(), "😀".encode(), b"\xe2\x82")
VALUES = (
    *(b"", b"", b"1", b"tick", b"token", b" x", b":", b"\xff", BOM),
    *("é\x85\u2028".encode(), b"\x0b\x0c\x1c\x1d\x1e"),
)
DATA = (b"data", b"data: ", b"data:", b"data:  x", b"data: data")
NAMES = (
    *(b"event", b"event", b"id", b"data", b"retry"),
    *(b"events", b"date", b"datax", b" data", b""),
)
SEPARATORS = (b": ", b":", b"", b":  ", b" :")
LENGTHS = (
    *[range(12)] * 16,
    *[range(240, 264)] * 6,
    *[range(2030, 2060)] * 6,
    range(65500, 65560),
)


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


fills = st.tuples(st.sampled_from(FILLS), st.sampled_from(LENGTHS).flatmap(st.sampled_from)).map(
    lambda fill: fill[0] * (fill[1] // len(fill[0]))
)
values = st.sampled_from(VALUES) | joined(st.sampled_from(VALUES), fills) | st.just(b"\0 1")
short_values = st.sampled_from((*VALUES, b"\0 1"))
ends = st.sampled_from(LINE_ENDS)
names, separators = st.sampled_from(NAMES), st.sampled_from(SEPARATORS)


def lines(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(
        joined(st.sampled_from(DATA), ends),
        joined(st.sampled_from(DATA), values, ends),
        joined(names, separators, values, ends),
        joined(st.just(b":"), values, ends),
    )


def streams(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    block = joined(st.lists(lines(values), max_size=5).map(b"".join), ends)
    return joined(
        st.sampled_from((b"", b"", BOM, BOM + BOM, BOM[:2], BOM[1:])),
        st.lists(block, max_size=6).map(b"".join),
        st.sampled_from((b"", b"\n")) | lines(values),
    )


@st.composite
def aligned_streams(draw: st.DrawFn) -> bytes:
    """A stream behind a long line, so that a line end lies at the edge of an inner window."""
    stream = draw(streams(short_values))
    at = draw(st.sampled_from([0, *line_edges(stream)]))
    boundary = draw(st.sampled_from((256, *[2048] * 8, 4096, 65536)))
    return aligned(draw(st.sampled_from(LEADS)), stream, at, boundary)


# Pieces that mean something, in any order.
pieces = st.sampled_from(
    (
        *(*LINE_ENDS, *LINE_ENDS, *LINE_ENDS, b"\n\n", b"\r\n\r\n", b"data: x\n"),
        *(*DATA, *NAMES, *SEPARATORS, BOM, *BOM.split(b"\xbb"), b"\0", b"x"),
    )
)
any_bytes = st.binary(max_size=200) | st.lists(pieces, max_size=25).map(b"".join)


@st.composite
def with_cuts(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> Cut:
    """A stream and where its chunks end: nowhere, at messages, at line ends, or anywhere."""
    stream = draw(source)
    edges = line_edges(stream)
    messages = [block.end for block in wire(stream)]
    ways = [
        st.just([]),
        st.just(messages),
        st.just(sorted({*edges, *messages})),
        st.lists(st.integers(0, len(stream)) | st.sampled_from([0, *edges]), max_size=12),
    ]
    return stream, sorted(draw(st.one_of(ways)))


# Properties.


@SETTINGS
@given(with_cuts(any_bytes), st.booleans())
def test_any_bytes_cut_anywhere(stream_and_cuts: Cut, ids: bool) -> None:
    """Whatever bytes come in whatever chunks, the parser finds what the standard dispatches."""
    stream, cuts = stream_and_cuts
    check(stream, cuts, ids=ids)


@SETTINGS
@given(with_cuts(streams(values) | aligned_streams()), st.booleans())
def test_streams_cut_anywhere(stream_and_cuts: Cut, ids: bool) -> None:
    """Streams with lines of any length and every line end are read as the standard reads them."""
    stream, cuts = stream_and_cuts
    check(stream, cuts, ids=ids)


@SETTINGS
@given(streams(short_values), st.booleans())
def test_byte_by_byte(stream: bytes, ids: bool) -> None:
    """A stream that comes byte by byte is read as the standard reads it."""
    check(stream, list(range(len(stream))), ids=ids)


@SETTINGS
@given(with_cuts(streams(short_values)))
def test_cuts_change_no_message(stream_and_cuts: Cut) -> None:
    """Whole, byte by byte or cut anywhere, a stream gives the same types, ids and comments."""
    stream, cuts = stream_and_cuts
    results = []
    for ways in ([], cuts, range(len(stream))):
        parser = EventStreamParser(capture_id=True)
        messages = [message for chunk in cut(stream, ways) for message in parser.feed(chunk)]
        results.append(([(kind, last_id) for kind, _, last_id in messages], parser.comments))
    assert results[0] == results[1] == results[2]


def wide(chunk: bytes) -> Buffer:
    """A view of items as wide as the chunk's length allows."""
    view = memoryview(chunk)
    if len(chunk) % 8 == 0:
        return view.cast("Q")
    return view.cast("H") if len(chunk) % 2 == 0 else view


@SETTINGS
@given(
    with_cuts(streams(values) | aligned_streams()),
    st.sampled_from([bytearray, memoryview, wide]),
    st.booleans(),
)
def test_kinds_of_buffer(
    stream_and_cuts: Cut, buffer: Callable[[bytes], Buffer], ids: bool
) -> None:
    """A bytearray and a memoryview of any item size are read like the bytes that they hold."""
    stream, cuts = stream_and_cuts
    check(stream, [*cuts, *cuts], ids=ids, buffer=buffer)


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("ends", [pair for pair in product(LINE_ENDS, repeat=2) if pair != CRLF])
@pytest.mark.parametrize("line", [b"", b"data: x\n", b"data: x\r"])
def test_sizes_at_every_boundary(
    buffer: Callable[[bytes], Buffer], ends: tuple[bytes, bytes], line: bytes
) -> None:
    """A message that lies in one chunk has its exact size, wherever inner windows may end."""
    for length in (1 << power for power in range(5, 18)):
        for near in range(length - 4, length + 5):
            stream = line * ((near - 16) // 8)
            stream += b"data: ".ljust(near - len(stream), b"x") + b"".join(ends)
            assert messages_of(buffer(stream)) == [("message", len(stream), None)]


def test_buffers_are_not_kept() -> None:
    """What an application does to its buffer after a feed changes no message."""
    parser = EventStreamParser(capture_id=True)
    messages: list[ParsedMessage] = []
    for chunk in cut(b"event: tick\nid: 7\ndata: x\n\n", [4, 9, 16, 20]):
        buffer = bytearray(chunk)
        messages += parser.feed(buffer)
        buffer[:] = b"\n" * len(buffer)
        buffer.clear()
    assert messages == [("tick", 27, "7")]


# The examples of the standard.


def test_standard_three_messages() -> None:
    """9.2.1: data lines make messages, two of them one message."""
    stream = (
        b"data: This is the first message.\n\n"
        b"data: This is the second message, it\ndata: has two lines.\n\n"
        b"data: This is the third message.\n\n"
    )
    assert messages_of(stream) == [
        ("message", 34, None),
        ("message", 59, None),
        ("message", 34, None),
    ]
    assert read(stream) == (
        [
            Message("message", "This is the first message.", ""),
            Message("message", "This is the second message, it\nhas two lines.", ""),
            Message("message", "This is the third message.", ""),
        ],
        0,
    )


def test_standard_add_and_remove() -> None:
    """9.2.1: the event field names a message's type."""
    stream = (
        b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n"
    )
    assert messages_of(stream) == [("add", 27, None), ("remove", 26, None), ("add", 25, None)]
    assert read(stream) == (
        [
            Message("add", "73857293", ""),
            Message("remove", "2153", ""),
            Message("add", "113411", ""),
        ],
        0,
    )


def test_standard_stock() -> None:
    """9.2.6: three data lines and a blank one are one message."""
    stream = b"data: YHOO\ndata: +2\ndata: 10\n\n"
    assert messages_of(stream) == [("message", 30, None)]
    assert read(stream) == ([Message("message", "YHOO\n+2\n10", "")], 0)


def test_standard_four_blocks() -> None:
    """9.2.6: a comment fires nothing, an id lasts, and an id without a value resets it."""
    stream = (
        b": test stream\n\n"
        b"data: first event\nid: 1\n\n"
        b"data:second event\nid\n\n"
        b"data:  third event\n\n"
    )
    parser = EventStreamParser(capture_id=True)
    assert list(parser.feed(stream)) == [
        ("message", 25, "1"),
        ("message", 22, ""),
        ("message", 20, ""),
    ]
    assert parser.comments == 1
    assert read(stream) == (
        [
            Message("message", "first event", "1"),
            Message("message", "second event", ""),
            Message("message", " third event", ""),
        ],
        1,
    )


def test_standard_last_block_without_blank_line() -> None:
    """9.2.6: the end of the stream does not dispatch the last block."""
    stream = b"data\n\ndata\ndata\n\ndata:\n"
    assert messages_of(stream) == [("message", 6, None), ("message", 11, None)]
    assert read(stream) == ([Message("message", "", ""), Message("message", "\n", "")], 0)


def test_standard_space_after_the_colon() -> None:
    """9.2.6: one space after the colon is not the value's."""
    stream = b"data:test\n\ndata: test\n\n"
    assert messages_of(stream) == [("message", 11, None), ("message", 12, None)]
    assert read(stream) == ([Message("message", "test", ""), Message("message", "test", "")], 0)


# Hard cases.


@pytest.mark.parametrize("cuts", [[1], [2], [3], [1, 2], [1, 2, 3], [0, 1, 1, 2], [4], [9]])
def test_byte_order_mark_split_over_chunks(cuts: list[int]) -> None:
    """A byte order mark is no part of the first line, even where it comes in pieces."""
    assert messages_of(*cut(BOM + b"data: x\n\n", cuts)) == [("message", 9, None)]


@pytest.mark.parametrize(
    ("start", "sizes"),
    [
        (b"", [9, 10]),
        (BOM, [10]),
        (BOM[:1], [10]),
        (BOM[:2], [10]),
        (b": x\n", [10]),
        (b"data: xyz\n\n", [11, 10]),
    ],
)
@pytest.mark.parametrize("way", [0, 1], ids=["whole", "byte by byte"])
def test_byte_order_mark_elsewhere(start: bytes, sizes: list[int], way: int) -> None:
    """Only one whole byte order mark comes off, and only at the start of the stream."""
    stream = start + BOM + b"data: x\n\ndata: yy\n\n"
    messages = messages_of(*cut(stream, range(way * len(stream))))
    assert messages == [("message", size, None) for size in sizes]


@pytest.mark.parametrize("apart", [[], [b""], [b"", b""]])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_line_end_split_over_chunks(
    apart: list[bytes], kind: Callable[[bytes], bytes | bytearray]
) -> None:
    """An LF at the start of a chunk belongs to the CR before it, also behind empty chunks."""
    chunks = [b"event: tick\r", *apart, b"\ndata: x\r", *apart, b"\ndata: y\r\n\r\n"]
    assert messages_of(*map(kind, chunks)) == [("tick", 33, None)]


def test_blank_line_split_over_chunks() -> None:
    """A message is complete at its blank line's CR; the LF that follows belongs to none."""
    parser = EventStreamParser()
    assert list(parser.feed(b"data: x\r\n\r")) == [("message", 10, None)]
    assert list(parser.feed(b"")) == []
    assert list(parser.feed(b"\ndata: yy\n\n")) == [("message", 10, None)]


def test_line_feed_behind_a_carriage_return_that_ended_nothing() -> None:
    """An LF that a chunk starts with is a blank line where no CR came before it."""
    assert messages_of(b"data: x\r", b"x\n", b"\n") == [("message", 11, None)]
    assert messages_of(b"data: x\n", b"\n") == [("message", 9, None)]


@pytest.mark.parametrize("end", LINE_ENDS)
def test_line_ends(end: bytes) -> None:
    """CR, LF and CRLF end a line alike, and are in the size."""
    stream = b"event: tick" + end + b"data: x" + end + end
    assert messages_of(stream, stream) == [("tick", len(stream), None)] * 2


@pytest.mark.parametrize("other", "\v\f\x1c\x1d\x1e\0\x85\u2028\u2029")
def test_other_line_separators(other: str) -> None:
    """No other character ends a line, also where the text of a message is one chunk."""
    line = f"x{other}data: x\n\n".encode()
    assert messages_of(b"data: x\n\n", line, line + b"data: x\n\n") == [("message", 9, None)] * 2
    event = f"event: a{other}b\ndata: x\n\n".encode()
    assert messages_of(event, event, event + event) == [(f"a{other}b", len(event), None)] * 4


def test_comment_of_no_bytes() -> None:
    """A colon alone is a comment: it is counted, and starts no block."""
    parser = EventStreamParser()
    assert list(parser.feed(b":\n:\r:\r\n\n:")) == []
    assert parser.comments == 3
    assert list(parser.feed(b"\ndata: x\n\n")) == [("message", 9, None)]
    assert parser.comments == 4


def test_comments_in_a_block() -> None:
    """A comment between fields is in the size, one before the first field is not."""
    parser = EventStreamParser()
    assert list(parser.feed(b": before\r\ndata: x\r\n: in\r\n\r\n")) == [("message", 17, None)]
    assert parser.comments == 2


def test_data_without_colon() -> None:
    """A line ``data`` alone is a data field; a longer name is not."""
    assert messages_of(b"data\n\n") == [("message", 6, None)]
    assert messages_of(b"data x\ndatax: x\n data: x\nData: x\n\n") == []


def test_block_without_data() -> None:
    """A block without data is no message; the next one inherits its id, and not its type."""
    stream = b"event: tick\nid: 7\nretry: 1\n\ndata: x\n\n"
    assert messages_of(stream, ids=True) == [("message", 9, "7")]


def test_id_needs_asking_for() -> None:
    """An id is reported where it is captured, and nowhere else."""
    stream = b"id: 7\ndata: x\n\n"
    assert messages_of(stream) == [("message", 15, None)]
    assert messages_of(stream, ids=True) == [("message", 15, "7")]


def test_id_outlives_its_message() -> None:
    """Later messages carry the last id, also where each is one chunk; one with a NUL is ignored."""
    stream = [b"data: w\n\n", b"id: 7\ndata: x\n\n", b"data: y\n\n", b"id: \0\ndata: z\n\n"]
    assert [last_id for _, _, last_id in messages_of(*stream, ids=True)] == [None, "7", "7", "7"]


def test_event_after_data() -> None:
    """The event field counts wherever it stands in the block."""
    assert messages_of(b"data: x\nevent: tick\n\n") == [("tick", 21, None)]


@pytest.mark.parametrize("way", [0, 1], ids=["whole", "by message"])
def test_last_event_line_wins(way: int) -> None:
    """The last of two event fields names the type, and an empty one gives it back."""
    stream = (
        b"event: a\nevent: b\ndata: x\n\n"
        b"event: a\ndata: x\nevent\n\n"
        b"event: a\nevent:\ndata: x\n\n"
        b"event: \nevent: a\ndata: x\n\n"
    )
    messages = messages_of(*cut(stream, [block.end for block in wire(stream)] * way))
    assert [kind for kind, _, _ in messages] == ["b", "message", "message", "a"]


def test_event_type_keeps_its_bytes() -> None:
    """A type loses one space after the colon, nothing else; bad UTF-8 becomes U+FFFD."""
    stream = "event:  é \ndata\n\nevent:a:b\ndata\n\n".encode() + b"event: \xff\xe2\x82\0\ndata\n\n"
    assert [kind for kind, _, _ in messages_of(stream)] == [" é ", "a:b", "\ufffd\ufffd\0"]


@pytest.mark.parametrize("length", [65, 249, 250, 300, 2048, 70_000])
def test_long_event_type(length: int) -> None:
    """A long type keeps more than 64 bytes, and never more than some 250."""
    stream = b"event: " + b"t" * length + b"\ndata: x\n\n"
    ((kind, size, _),) = messages_of(stream)
    assert kind == "t" * len(kind)
    assert min(length, 240) <= len(kind) <= min(length, 256)
    assert size == len(stream)


def test_more_event_types_than_are_remembered() -> None:
    """However many types a process has met, each message has its own."""
    types = [f"type-{number}" for number in range(400)]
    chunks = [f"event: {kind}\ndata: x\n\n".encode() for kind in types]
    expected = [(kind, len(chunk), None) for kind, chunk in zip(types, chunks, strict=True)]
    for _ in ("newly", "again"):
        assert messages_of(*chunks) == expected


def test_message_in_a_chunk_of_its_own() -> None:
    """Messages that come one a chunk are read the same once their event lines are known."""
    chunks = [
        b"event: tick\ndata: x\n\n",
        b"data: x\n\n",
        b"id: 1\nretry: 1\ndata: x\r\n\r\n",
        b"event: tick\nevent\ndata: x\n\n",
        b"event: tick\n\n",
        b"\n",
        b"date: x\n\n",
        b"datax: x\n\n",
        b"data: x\nevent: tick\n\n",
        b": x\n\n",
        b": x\ndata: x\n\n",
        b"data: x\n\ndata: x\n\n",
        b"data\n\n",
        b"data: x\n",
        b"\n",
    ]
    stream = b"".join(chunks)
    ends = [sum(map(len, chunks[:number])) for number in range(1, len(chunks))]
    check(stream, ends)
    assert [kind for kind, _, _ in messages_of(*chunks)] == [
        *("tick", "message", "message", "message", "tick"),
        *("message", "message", "message", "message", "message"),
    ]


@pytest.mark.parametrize("end", LINE_ENDS)
def test_message_behind_an_open_block(end: bytes) -> None:
    """A chunk that could be a message is only the rest of one where a block is open."""
    chunks = [b"data: x\n\n", b"event: tick" + end, b"data: y\n\n", b"data: z\n\n"]
    sizes = [9, 20 + len(end), 9]
    types = ["message", "tick", "message"]
    assert [message[:2] for message in messages_of(*chunks)] == list(zip(types, sizes, strict=True))


def test_message_behind_an_open_line() -> None:
    """A chunk that could be a message is no message where it goes on with a line."""
    assert messages_of(b"data: x\n\n", b"no", b"data: y\n\n") == [("message", 9, None)]
    assert messages_of(b"data: x\n\n", b":", b"data: y\n\n") == [("message", 9, None)]


@pytest.mark.slow
def test_random_streams_make_no_difference() -> None:
    """``make fuzz`` in small, with other streams each time."""
    seed = random.SystemRandom().randrange(1 << 32)
    found = random_streams.run((str(seed), 40_000))
    assert found is None, (seed, found)
