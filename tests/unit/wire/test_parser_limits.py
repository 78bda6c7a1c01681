"""The parser takes constant memory and linear work."""

import sys
import tracemalloc
from collections.abc import Callable

import pytest
from helpers.oracle import (
    BOM,
    Buffer,
)

from otel_sse.wire import parser as module
from otel_sse.wire.parser import EventStreamParser

LINE_ENDS = (b"\n", b"\r", b"\r\n")


MEGABYTE = 1_000_000


def kept(parser: EventStreamParser) -> int:
    """Bytes that the parser holds."""
    return sum(sys.getsizeof(getattr(parser, name)) for name in EventStreamParser.__slots__)


def growth(run: Callable[[], object]) -> int:
    """Bytes that a call allocates at its peak, beyond those there were."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        run()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


# What an endless line may start with, and how much of that is in its block.
STARTS = [
    (b"data: ", 6),
    (b"event: ", 7),
    (b"id: ", 4),
    (b"", 0),
    (BOM, 0),
    (b"data: x\revent: ", 15),
    (b"id: 1\n\r\n", 0),
    (b": x\r\n\xff", 1),
]


@pytest.mark.parametrize("fill", [b"x", b"\xff"])
@pytest.mark.parametrize(("start", "lead"), STARTS)
def test_endless_line_in_chunks(start: bytes, lead: int, fill: bytes) -> None:
    """A line of 200 MB that comes in chunks is counted, not kept."""
    parser = EventStreamParser(capture_id=True)
    parser.feed(start)
    chunk = fill * MEGABYTE

    def feed() -> None:
        for _ in range(200):
            assert not parser.feed(chunk)

    assert growth(feed) < MEGABYTE // 2
    assert kept(parser) < 2048
    ((_, size, _),) = parser.feed(b"\ndata\n\n")
    assert size == lead + 200 * MEGABYTE + 7


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
@pytest.mark.parametrize(("start", "lead"), [*STARTS, (b"data: x\n: ", 10)])
def test_endless_line_in_one_chunk(
    start: bytes, lead: int, buffer: Callable[[bytes], Buffer]
) -> None:
    """A chunk of 100 MB is never copied whole."""
    parser = EventStreamParser(capture_id=True)
    chunk = buffer(start.ljust(100 * MEGABYTE, b"x"))
    assert growth(lambda: parser.feed(chunk)) < MEGABYTE
    assert kept(parser) < 2048
    ((_, size, _),) = parser.feed(b"\ndata\n\n")
    assert size == lead + 100 * MEGABYTE - len(start) + 7


def test_endless_comment() -> None:
    """A comment of 200 MB is one comment, and no part of the message behind it."""
    parser = EventStreamParser()
    parser.feed(b":")
    chunk = b"x" * MEGABYTE
    assert growth(lambda: [parser.feed(chunk) for _ in range(200)]) < MEGABYTE // 2
    assert kept(parser) < 2048
    assert list(parser.feed(b"\ndata\n\n")) == [("message", 6, None)]
    assert parser.comments == 1


@pytest.mark.parametrize("line", [b"x\n", b": x\r", b"data: x\r\n", b"event: x\n", b"id: x\r"])
def test_endless_block(line: bytes) -> None:
    """A block of ever more lines is counted, not kept."""
    parser = EventStreamParser(capture_id=True)
    chunk = line * (300_000 // len(line))
    assert growth(lambda: parser.feed(chunk)) < 100_000
    assert kept(parser) < 2048


def test_endless_event_types() -> None:
    """A stream whose every message has another type leaves no more behind than a few types do."""
    parser = EventStreamParser()

    def feed() -> None:
        for number in range(5000):
            parser.feed(b"event: %0200d\ndata\n\n" % number)

    assert growth(feed) < MEGABYTE // 4


class Counted(bytes):
    """Bytes that count how many of them are searched or copied."""

    work = 0

    def find(self, sub: bytes, start: int = 0, stop: int | None = None) -> int:  # type: ignore[override]
        found = super().find(sub, start, stop)
        Counted.work += (slice(stop).indices(len(self))[1] if found < 0 else found) - start
        return found

    def __getitem__(self, key: object) -> object:  # type: ignore[override]
        part = super().__getitem__(key)  # type: ignore[call-overload]
        Counted.work += len(part) if isinstance(key, slice) else 1
        return part

    def splitlines(self, keepends: bool = False) -> list[bytes]:
        Counted.work += len(self)
        return super().splitlines(keepends)

    def removeprefix(self, prefix: bytes) -> bytes:  # type: ignore[override]
        return Counted(super().removeprefix(prefix))

    def __radd__(self, other: bytes) -> bytes:
        Counted.work += len(other) and len(self)
        return Counted(other + bytes(self))


# From one chunk to the next only what a parser keeps is carried over, and that is bounded: so a
# stream is linear where each of its chunks is.
@pytest.mark.parametrize("end", LINE_ENDS)
@pytest.mark.parametrize("size", [0, 1, 300, 1500, 5000, 10 * MEGABYTE])
@pytest.mark.parametrize("kind", [Counted, memoryview])
def test_work_is_linear(
    kind: Callable[[bytes], Buffer], size: int, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk four times as long has four times as many bytes searched and copied, not sixteen."""
    monkeypatch.setattr(module, "bytes", Counted, raising=False)
    line = b"data: ".ljust(size, b"x")[:size] + end
    work = []
    for length in (300_000, 1_200_000):
        Counted.work = 0
        EventStreamParser().feed(kind((line * (length // len(line) + 1))[:length]))
        work.append(Counted.work)
        assert Counted.work >= length
    assert work[1] < 5 * work[0]
