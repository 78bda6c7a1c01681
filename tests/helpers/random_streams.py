"""Compares the parser with the oracle on random streams."""

import random
from collections.abc import Callable

from helpers.oracle import BOM, LEADS, Buffer, aligned, difference, line_edges, wire
from otel_sse.wire import parser
from otel_sse.wire.parser import EventStreamParser

ENDS = (b"\n", b"\n", b"\r", b"\r\n", b"\r\n")
LINES = (
    *(b"data: x", b"data:", b"data", b"data: 1: 2", b"event: tick", b"event: token", b"event:"),
    *(b"event", b"id: 1", b"id:", b"id", b":", b": x", b"retry: 1", b"date: x", b"eventual", b"x"),
    *(b"event: \xff\xe2\x82", "id: é".encode(), b" data: x", BOM + b"data: x"),
    *(b"event:  tick", b"event:tick", b"id:  1", b"datax: x", "x\f\x85\u2028data: x".encode()),
)
PIECES = (*LINES, *ENDS, *ENDS, b":", b" ", b"data", b"event", b"id", *(b"\xef", b"\xbb", b"\xbf"))
# Values of messages that are alike, and by how many bytes these are cut too early.
SHORT = (b"1234567", b"1234567", b"1\n:4567", b"1\r:4567", b"12", b"")
EARLY = (*[0] * 12, 1, 2, 10)
# An id is cut before a NUL behind its 250th byte, so no stream has both NULs and long lines.
NUL = (b"\0", b"id: \0", b"id: 1\x002")
FILLS = (b"x", b":", b" ", b"\xff", "é".encode(), "😀".encode())
LENGTHS = (*range(12), *range(240, 264), *range(500, 520), *range(2030, 2060))
BOUNDARIES = (256, 2048, 2048, 2048, 4096)
KINDS: tuple[Callable[[bytes], Buffer], ...] = (bytes, bytes, bytes, bytearray, memoryview)

Failure = tuple[str, bytes, list[int], bool, Callable[[bytes], Buffer]]


def long_piece(rng: random.Random) -> bytes:
    length = rng.choice(LENGTHS) if rng.random() < 0.995 else rng.randrange(65_500, 65_560)
    return rng.choice((b"", *LINES)) + rng.choice(FILLS) * length


def alike(rng: random.Random) -> tuple[bytes, list[int]]:
    """Messages of one shape, but for their values and, now and then, a piece that breaks it; and
    nearly all places where they end, if nothing does.
    """
    names = [rng.choice((b"data:", b"id:", b"event: tick")) for _ in range(rng.randrange(3))]
    parts: list[bytes] = []
    for _ in range(rng.randrange(3, 9)):
        for name in (*names, b"data: "):
            parts += name, b"" if name[-1:] == b"k" else rng.choice(SHORT), b"\n"
        parts.append(b"\n")
        if rng.random() < 0.4:
            piece = rng.choice(ENDS) * rng.randrange(3) + rng.choice(PIECES)
            parts.insert(rng.randrange(len(parts)), piece)
    stream = b"".join(parts)
    ends = [at + 2 for at in range(len(stream)) if stream[at : at + 2] == b"\n\n"]
    return stream, [max(0, at - rng.choice(EARLY)) for at in ends]


def random_stream(rng: random.Random) -> bytes:
    """Blocks of lines, here and there behind a long line, or pieces of them in no order."""
    pieces: tuple[bytes, ...] = LINES
    if rng.random() < 0.02:
        pieces += tuple(long_piece(rng) for _ in range(8))
    else:
        pieces += NUL
    start = BOM[: rng.randrange(4)] if rng.random() < 0.2 else b""
    if rng.random() < 0.4:
        return start + b"".join(rng.choices(pieces + PIECES, k=rng.randrange(24)))
    end = rng.choice(ENDS)
    one_end = rng.random() < 0.5
    parts: list[bytes] = []
    for _ in range(rng.randrange(5)):
        for line in rng.choices(pieces, k=rng.randrange(4)):
            parts += line, end if one_end else rng.choice(ENDS)
        if rng.random() < 0.8:
            parts += b"data: x", end
        parts.append(end if one_end else rng.choice(ENDS))
    stream = b"".join(parts)
    if stream and rng.random() < 0.03:
        boundary = rng.choice(BOUNDARIES) if rng.random() < 0.98 else 65536
        stream = aligned(rng.choice(LEADS), stream, rng.choice(line_edges(stream)), boundary)
    return start + stream


def random_cuts(rng: random.Random, stream: bytes) -> list[int]:
    """Nowhere, at the messages, at the line ends, at each byte, or anywhere."""
    way = rng.randrange(9)
    if way == 0:
        return []
    if way <= 2:
        return [block.end for block in wire(stream)]
    if way <= 4:
        return line_edges(stream)
    if way == 5 and len(stream) < 200:
        return list(range(len(stream)))
    return sorted(rng.choices(range(len(stream) + 1), k=rng.randrange(1, 6)))


def run(task: tuple[str, int]) -> Failure | None:
    """The first failure of so many streams."""
    seed, count = task
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < 0.3:
            stream, cuts = alike(rng)
        else:
            stream = random_stream(rng)
            cuts = random_cuts(rng, stream)
        ids = rng.random() < 0.3
        kind = rng.choice(KINDS)
        parser._known_lines.clear()
        found = difference(EventStreamParser(capture_id=ids), stream, cuts, ids=ids, buffer=kind)
        if found:
            return found, stream, cuts, ids, kind
    return None
