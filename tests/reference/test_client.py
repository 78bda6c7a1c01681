"""The Python client: what it reads, and how it comes back."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from aiohttp import web
from helpers.servers import serve_aiohttp
from reference.served import client
from server import client as module
from server.client import Decoder, Event, NotAStream, events
from server.envelope import wrap

TEXT = json.dumps(list(range(500)))


def _feed(decoder: Decoder, *chunks: bytes) -> list[tuple[str, str, str]]:
    found = [event for chunk in chunks for event in decoder.feed(chunk)]
    return [(event.type, event.data, event.id) for event in found]


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (b"data: a\n\n", [("message", "a", "")]),
        (b"\xef\xbb\xbfdata: a\r\rdata:  b\r\n\r\n", [("message", "a", ""), ("message", " b", "")]),
        (b"data: a\ndata\ndata:b\n\n", [("message", "a\n\nb", "")]),
        (b"event: x\nid: 1\ndata: a\n\ndata: b\n\n", [("x", "a", "1"), ("message", "b", "1")]),
        (b"id: 1\n\nevent: x\n\ndata: a\n\n", [("message", "a", "1")]),
        (b"id: 1\0\ndata: a\n\n", [("message", "a", "")]),
        (b": data: x\nother: y\ndata\n\n", [("message", "", "")]),
        ("data: a\u2028b\x0bc\n\n".encode(), [("message", "a\u2028b\x0bc", "")]),
        (b"data: \xff\n\n", [("message", "\ufffd", "")]),
        (b"data: unfinished\n", []),
        (f"data: {wrap(TEXT.encode())}\n\n".encode(), [("message", TEXT, "")]),
    ],
)
def test_what_is_read(stream: bytes, found: list[tuple[str, str, str]]) -> None:
    """A stream is read as the standard has it, in one piece and byte by byte."""
    assert _feed(Decoder(), stream) == found
    assert _feed(Decoder(), *(bytes([byte]) for byte in stream)) == found


def test_ids_and_retry_are_kept() -> None:
    """The last id is that of the last finished block; retry takes digits and nothing else."""
    decoder = Decoder()
    _feed(decoder, b"id: 1\n\nid: 2\ndata: a")
    assert decoder.last_id == "1"
    decoder.begin()
    assert _feed(decoder, b"data: b\n\n") == [("message", "b", "1")]
    for text, seconds in ((b"250", 0.25), (b"1_000", 0.25), (b"-1", 0.25), (b"9" * 99, 3600)):
        _feed(decoder, b"retry: " + text + b"\n\n")
        assert decoder.retry == seconds


def test_a_message_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one line nor many may fill the memory."""
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    for chunk in (b"data: xxxxxxxxxx", b"data: xxxxxxxxxx\n", b"data\n" * 10):
        decoder = Decoder()
        with pytest.raises(NotAStream, match="more than 1000 bytes"):
            _feed(decoder, *[chunk] * 200)


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _stream(text: str, *, cut: bool = False) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(text.encode())
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return answer


def _empty(status: int, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, headers=named)

    return answer


@contextlib.asynccontextmanager
async def _answers(*answers: Answer) -> AsyncIterator[tuple[httpx.AsyncClient, str, list[Any]]]:
    """A server that gives them in turn; and the last ids and times with which it was asked."""
    left = list(answers)
    asked: list[tuple[str | None, float]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        now = asyncio.get_running_loop().time()
        asked.append((request.headers.get("Last-Event-ID"), now))
        return await left.pop(0)(request)

    app = web.Application()
    app.router.add_get("/", handler)
    async with serve_aiohttp(app) as port, client() as http:
        yield http, f"http://127.0.0.1:{port}/", asked


async def test_it_comes_back_by_the_last_id() -> None:
    """After an end, after a cut and after a refusal, with the id of the last whole message; 204
    is the end.
    """
    async with _answers(
        _stream("retry: 1\nid: 1\n\ndata: a\n\n"),
        _stream("id: 2\ndata: b\n\nid: 3\ndata: unfinished\n", cut=True),
        _empty(503, Retry_After="0"),
        _stream("id: 4\nevent: x\ndata: c\n\n"),
        _empty(204),
    ) as (http, url, asked):
        found = [event async for event in events(http, url)]
    assert found == [Event("message", "a", "1"), Event("message", "b", "2"), Event("x", "c", "4")]
    assert [last for last, _ in asked] == [None, "1", "2", "2", "4"]


async def test_it_waits_as_long_as_it_is_asked_to() -> None:
    """Retry-After is the least; a server that refuses again and again is asked less and less."""
    async with _answers(_stream("retry: 20\n\n"), *[_empty(503)] * 4, _empty(204)) as (
        http,
        url,
        asked,
    ):
        assert [event async for event in events(http, url)] == []
    waits = [after - before for (_, before), (_, after) in itertools.pairwise(asked)]
    # 20, 40, 80 … ms, by chance up to half less.
    assert all(wait >= 0.01 * 2**n for n, wait in enumerate(waits))
    async with _answers(_stream("retry: 1\n\n"), _empty(429, Retry_After="1"), _empty(204)) as (
        http,
        url,
        asked,
    ):
        assert [event async for event in events(http, url)] == []
    assert asked[2][1] - asked[1][1] >= 0.99


async def test_a_quiet_stream_is_no_failure() -> None:
    """Where the server ends streams in which no message has come, it is not asked less and less."""
    quiet = _stream("retry: 10\n\n: heartbeat\n\n")
    async with _answers(*[quiet] * 9, _empty(204)) as (http, url, asked):
        assert [event async for event in events(http, url)] == []
    # The last wait would be 2.5 s or more.
    assert asked[-1][1] - asked[0][1] < 2


async def test_silence_is_a_lost_connection() -> None:
    """Where not even a heartbeat comes, it connects again."""

    async def silent(request: web.Request) -> web.StreamResponse:
        response = await _stream("retry: 1\n\n")(request)
        await asyncio.sleep(30)
        return response

    async with _answers(silent, _empty(204)) as (http, url, asked):
        assert [event async for event in events(http, url, silence=0.1)] == []
    assert len(asked) == 2


@pytest.mark.parametrize("answer", [_empty(404), _empty(200, Content_Type="text/html")])
async def test_what_is_no_stream_is_raised(answer: Answer) -> None:
    """There is nothing to come back for."""
    async with _answers(answer) as (http, url, _):
        with pytest.raises(NotAStream):
            await anext(events(http, url))
