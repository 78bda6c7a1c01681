"""The parser follows the standard, wherever the bytes are cut; so do the envelopes."""

import base64
import gzip
import json
import random
from typing import Any

from browser.tab import SHARED_LOOP, Opener
from helpers import oracle
from helpers.streams import STREAM

pytestmark = SHARED_LOOP

_PARSE = """streams => streams.map(chunks => {
    const parser = new sse.EventStreamParser();
    const read = { messages: [], sizes: [], comments: 0 };
    for (const chunk of chunks) {
        const bytes = Uint8Array.from(atob(chunk), char => char.charCodeAt(0));
        for (const { type, data, lastEventId, size, comment } of parser.feed(bytes)) {
            if (comment !== undefined) {
                read.comments += 1;
            } else {
                read.messages.push([type, data, lastEventId]);
                read.sizes.push(size);
            }
        }
    }
    return read;
})"""
# What lines are made of, whole and cut, and what is easily taken for something else.
_BITS = [
    *(b"\n", b"\r", b"\r\n", b":", b" ", b"data", b"event", b"id", b"retry", b"Data"),
    *(b"data: x\n", b"data\n\n", b"event: tick\n", b"id: 7\n", b"id\n", b"id: \0\n", b": ping\n\n"),
    *(b"retry: 10\n", b"x", "ü€𝄞".encode(), b"\xc3", b"\xe2\x82", b"\xff", oracle.BOM, b"\0"),
    *("\u2028".encode(), "\u0085".encode(), b"\x0b", b"\x0c", b"\x1c"),
]


def _streams() -> list[bytes]:
    rng = random.Random(7)
    made = (b"".join(rng.choices(_BITS, k=rng.randrange(1, 40))) for _ in range(1500))
    return [STREAM, oracle.BOM + STREAM, *made]


async def test_the_standard(tab: Opener) -> None:
    """Messages, ids, sizes and comments are the oracle's: whole, byte by byte, cut randomly."""
    rng = random.Random(11)
    cases: list[tuple[bytes, list[bytes]]] = []
    for stream in _streams():
        cases.append((stream, [stream]))
        cases.append((stream, oracle.cut(stream, range(1, len(stream)))))
        cuts = rng.choices(range(len(stream) + 1), k=3)
        cases.append((stream, oracle.cut(stream, sorted(cuts))))
    page = await tab()
    chunks = [[base64.b64encode(chunk).decode() for chunk in case] for _, case in cases]
    found = await page.run(_PARSE, chunks)
    for (stream, case), read in zip(cases, found, strict=True):
        messages, comments = oracle.read(stream)
        assert read["messages"] == [list(message) for message in messages], case
        assert read["comments"] == comments, case
        for size, block in zip(read["sizes"], oracle.wire(stream), strict=True):
            # The LF of a blank line's CRLF may come later than the message.
            halved = stream[block.blank : block.end] == b"\r\n" and len(case) > 1
            assert size in (block.end - block.start, block.end - block.start - halved), case


async def test_retry(tab: Opener) -> None:
    """A reconnection time is taken where it is all digits."""
    page = await tab()
    found = await page.run(
        """streams => streams.map(stream => {
            const parser = new sse.EventStreamParser();
            [...parser.feed(new TextEncoder().encode(stream))];
            return parser.retry ?? null;
        })""",
        ["retry: 10\n", "retry:7\n\n", "retry: 1s\n", "retry\n", "retry: -1\n", "retry: 5"],
    )
    assert found == [10, 7, None, None, None, None]


async def test_envelopes(tab: Opener) -> None:
    """An envelope becomes its text; data that is no sound one is returned as it is."""
    text = "größe 𝄞 " * 5000
    sound = _envelope(text)
    bomb = _envelope("x" * 1_000_000)
    unsound = [
        "plain",
        "",
        '{"data": "gzip"}',
        json.dumps({**sound, "more": 1}),
        json.dumps({**sound, "encoding": "br"}),
        json.dumps({**sound, "size": sound["size"] + 1}),
        json.dumps({**sound, "size": sound["size"] - 1}),
        json.dumps({**bomb, "size": 10}),
        json.dumps({**sound, "data": sound["data"][:-400]}),
        json.dumps({**sound, "data": "*"}),
        json.dumps({**sound, "data": base64.b64encode(gzip.compress(b"\xff")).decode(), "size": 1}),
        json.dumps(sound)[:-1],
    ]
    page = await tab()
    found = await page.run(
        "all => Promise.all(all.map(sse.unwrap))",
        [json.dumps(sound), json.dumps(_envelope("")), *unsound],
    )
    assert found == [text, "", *unsound]
    assert page.logged == []


async def test_a_bomb(tab: Opener) -> None:
    """What unpacks to more than its size is not unpacked any further."""
    bomb = {**_envelope("x" * 50_000_000), "size": 10}
    page = await tab()
    unpacked = await page.run(
        """async bomb => {
            const read = ReadableStreamDefaultReader.prototype.read;
            let unpacked = 0;
            ReadableStreamDefaultReader.prototype.read = async function () {
                const got = await read.call(this);
                unpacked += got.value?.length ?? 0;
                return got;
            };
            await sse.unwrap(bomb);
            return unpacked;
        }""",
        json.dumps(bomb),
    )
    assert 10 < unpacked < 5_000_000


def _envelope(text: str) -> dict[str, Any]:
    raw = text.encode()
    data = base64.b64encode(gzip.compress(raw)).decode()
    return {"encoding": "gzip", "data": data, "size": len(raw)}
