"""The probe's parser: it reads what the standard reads, in bounded memory, and notes each fault."""

import tracemalloc
from collections.abc import Iterable

import pytest
from helpers import oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_sse.cli.parser import LIMIT, Comment, Message, Parser

# Pieces of which hypothesis makes streams: every rule of the algorithm is near.
PIECES = (
    b"data",
    b"data:",
    b"data: x",
    b"event",
    b"event: tick",
    b"id: 7",
    b"id",
    b"id: a\0b",
    b"retry: 10",
    b"retry: 1x",
    b": hello",
    b":",
    b" ",
    b"Data: no",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\xef\xbb\xbf",
    b"\xef",
    b"\xff",
    "ü".encode(),
    b"\0",
    b": otel traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01;ts=17\n",
)


def fed(chunks: Iterable[bytes]) -> tuple[Parser, list[Message | Comment]]:
    parser = Parser()
    items = [item for chunk in chunks for item in parser.feed(chunk)]
    parser.finish()
    return parser, items


def messages(items: Iterable[Message | Comment]) -> list[oracle.Message]:
    return [
        oracle.Message(each.type, each.data, each.id) for each in items if isinstance(each, Message)
    ]


@settings(max_examples=500, deadline=None)
@given(
    stream=st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join),
    cuts=st.lists(st.integers(0, 200), max_size=10),
)
def test_it_reads_what_the_standard_reads(stream: bytes, cuts: list[int]) -> None:
    """Types, data, ids and comments are the oracle's, wherever the stream is cut."""
    parser, items = fed(oracle.cut(stream, cuts))
    expected, comments = oracle.read(stream)
    assert messages(items) == expected
    assert parser.messages == len(expected)
    assert parser.comments + parser.trace_comments == comments
    assert sum(parser.types.values()) == len(expected)


@settings(max_examples=200, deadline=None)
@given(stream=st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join))
def test_byte_by_byte_it_notes_the_same(stream: bytes) -> None:
    """Neither messages nor faults depend on the chunks."""
    whole, items = fed([stream])
    parts, same = fed(oracle.cut(stream, range(len(stream))))
    assert [each for each in same if isinstance(each, Comment)] == [
        each for each in items if isinstance(each, Comment)
    ]
    assert messages(same) == messages(items)
    assert parts.faults == whole.faults
    assert (parts.retry, parts.retries, parts.ids) == (whole.retry, whole.retries, whole.ids)


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (b"\xef\xbb\xbfdata: x\n\n", "leading-bom"),
        (b"data: x\n\n\xef\xbb\xbfdata: y\n\n", "bom-inside"),
        (b"id: a\0b\ndata: x\n\n", "nul-in-id"),
        (b"data: x\n", "no-blank-line"),
        (b"data: x", "no-blank-line"),
        (b"data\n\n", "field-without-colon"),
        (b"data: x\r\r", "cr-line-end"),
        (b"Data: x\n\n", "unknown-field"),
        (b'{"price": 1}\n\n', "unknown-field"),
        (b" data: x\n\n", "unknown-field"),
        (b"no line end", "unknown-field"),
        (b"retry: soon\n\n", "bad-retry"),
        (b"retry:\n\n", "bad-retry"),
        (b"event: x\n\n", "event-without-data"),
        (b"data: data: x\n\n", "doubled-field"),
        (b"data: \xff\n\n", "invalid-utf-8"),
        (b"data: %s\n\n" % (b"x" * LIMIT), "long-line"),
    ],
)
def test_each_fault_is_noted_alone(stream: bytes, fault: str) -> None:
    """A stream with one fault has that one, and no other."""
    parser, _ = fed([stream])
    assert list(parser.faults) == [fault]
    assert parser.faults[fault].message >= 1


@pytest.mark.parametrize(
    "stream",
    [
        b"data: x\n\n",
        b"data: x\r\n\r\n",
        b": c\n\ndata:x\nid: 1\nretry: 5\n\n",
        b"id: 1\n\n",
        b"",
        "data: größe\n\n".encode(),
        b"data: a: b\n\n",
    ],
)
def test_a_good_stream_has_no_fault(stream: bytes) -> None:
    """What is usual is not complained of."""
    parser, _ = fed([stream])
    assert parser.faults == {}
    parser, _ = fed(oracle.cut(stream, range(len(stream))))
    assert parser.faults == {}


def test_a_fault_has_its_number_place_and_example() -> None:
    """How often, in which message first, and what the line was."""
    parser, _ = fed([b"data: 1\n\nmsg: 2\n\nmsg: 3\ndata: 4\n\n"])
    fault = parser.faults["unknown-field"]
    assert (fault.count, fault.message, fault.example) == (2, 2, "msg: 2")


def test_a_trace_comment_dates_the_message_behind_it() -> None:
    """Only that message, and it is not counted among the comments."""
    trace = b": otel traceparent=00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01;ts=123\n"
    parser, items = fed([trace + b"data: 1\n\ndata: 2\n\n"])
    assert [each.sent for each in items if isinstance(each, Message)] == [123, None]
    assert (parser.trace_comments, parser.comments) == (1, 0)


def test_a_gigabyte_in_a_line_takes_no_memory() -> None:
    """1 GB of one line, and a message of 16,384 lines, are counted and not kept."""
    parser = Parser()
    chunk = b"x" * (1 << 20)
    tracemalloc.start()
    try:
        parser.feed(b"data: ")
        for _ in range(1024):
            parser.feed(chunk)
        (long,) = parser.feed(b"\n\n")
        lines = b"data: xxxxxxx\n" * 4096
        for _ in range(4):
            parser.feed(lines)
        (many,) = parser.feed(b"\n")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(long, Message)
    assert isinstance(many, Message)
    assert long.size == 1024 * len(chunk) + 8
    assert many.size == 4 * len(lines) + 1
    assert long.truncated
    assert many.truncated
    assert len(long.data) <= LIMIT
    assert len(many.data) <= 2 * LIMIT
    assert peak < 2_000_000


def test_event_types_are_bounded() -> None:
    """A stream of ever new types fills no memory; what is beyond is counted as _OTHER."""
    parser, _ = fed([b"event: t%d\ndata\n\n" % number for number in range(300)])
    assert len(parser.types) == 101
    assert parser.types["_OTHER"] == 200
