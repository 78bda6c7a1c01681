"""Clients that people use read real streams from a real socket, and each tells what it read."""

import asyncio
import contextlib
import gc
import gzip
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import httpx
import httpx2
import oracle
import pytest
import requests
from e2e.streams import PIECES, STREAM
from support import Backend, until

from otel_sse.aiohttp_client import SSEAiohttpClientInstrumentor
from otel_sse.httpx import SSEHttpxInstrumentor
from otel_sse.requests import SSERequestsInstrumentor

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        if path == "/all":
            writer.write(CHUNKED + b"\r\n")
            for piece in PIECES:
                writer.write(_chunk(piece))
                await writer.drain()
                await asyncio.sleep(0.001)
            writer.write(b"0\r\n\r\n")
        elif path == "/gzip":
            body = gzip.compress(STREAM)
            writer.write(CHUNKED + b"Content-Encoding: gzip\r\n\r\n")
            for start in range(0, len(body), 50):
                writer.write(_chunk(body[start : start + 50]))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        elif path == "/whole":
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(STREAM) + STREAM)
        elif path == "/cut":
            writer.write(CHUNKED + b"\r\n" + _chunk(b"data: 1\n\n"))
            await writer.drain()
        elif path == "/html":
            writer.write(HEAD.replace(b"event-stream", b"html") + b"Content-Length: 2\r\n\r\nhi")
        else:
            writer.write(CHUNKED + b"\r\n" + _chunk(b"data: 1\n\n"))
            # Until the client leaves.
            await reader.read()
        await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    answers: set[asyncio.Task[None]] = set()

    def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers.add(asyncio.ensure_future(_answer(reader, writer)))

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*answers), 10)


@pytest.fixture
def told(backend: Backend) -> Iterator[Backend]:
    kinds = (SSEAiohttpClientInstrumentor, SSEHttpxInstrumentor, SSERequestsInstrumentor)
    used = [kind() for kind in kinds]
    for each in used:
        each.instrument(**backend.providers)
    yield backend
    for each in used:
        each.uninstrument()


def _sync(package: Any) -> Callable[..., Any]:
    async def read(url: str, *, stop: bool = False, wait: float = 10) -> None:
        def run() -> None:
            with package.Client(timeout=wait) as client, client.stream("GET", url) as response:
                for _ in response.iter_lines():
                    if stop:
                        break

        await asyncio.to_thread(run)

    return read


def _async(package: Any) -> Callable[..., Any]:
    async def read(url: str, *, stop: bool = False, wait: float = 10) -> None:
        async with (
            package.AsyncClient(timeout=wait) as client,
            client.stream("GET", url) as response,
        ):
            async for _ in response.aiter_lines():
                if stop:
                    break

    return read


async def _aiohttp(url: str, *, stop: bool = False, wait: float = 10) -> None:
    timeout = aiohttp.ClientTimeout(sock_read=wait)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
        async for _ in response.content:
            if stop:
                break


async def _requests(url: str, *, stop: bool = False, wait: float = 10) -> None:
    def run() -> None:
        with requests.get(url, stream=True, timeout=wait) as response:
            for _ in response.iter_lines(chunk_size=1 if stop else 512):
                if stop:
                    break

    await asyncio.to_thread(run)


CLIENTS = {
    "httpx": _sync(httpx),
    "httpx-async": _async(httpx),
    "httpx2": _sync(httpx2),
    "httpx2-async": _async(httpx2),
    "aiohttp": _aiohttp,
    "requests": _requests,
}
client = pytest.mark.parametrize("name", CLIENTS)


def reason(backend: Backend) -> Any:
    """The reason of the one stream that there was, told in three places and live no more."""
    (span,) = backend.spans("SSE")
    found = span.attributes["sse.close.reason"]
    _, closed = backend.events("sse.connection.")
    assert closed.attributes["sse.close.reason"] == found
    assert backend.value("sse.client.connection.duration", sse__close__reason=found) == 1
    assert backend.value("sse.client.active_connections") == 0
    return found


@client
@pytest.mark.parametrize("path", ["/all", "/gzip", "/whole"])
async def test_what_is_read_is_counted_exactly(
    name: str, path: str, url: str, told: Backend
) -> None:
    """Messages by type, comments and bytes are what the oracle finds, after content decoding."""
    await CLIENTS[name](url + path)
    assert reason(told) == "completed"
    messages, comments = oracle.read(STREAM)
    types = {
        attributes["sse.event.type"]: point.value
        for attributes, point in told.points("sse.client.messages")
    }
    assert types == Counter(message.type for message in messages)
    assert told.value("sse.client.comments") == comments
    assert told.value("sse.client.io") == len(STREAM)
    assert told.value("sse.client.connect.duration") == 1
    port = int(url.rpartition(":")[2])
    ((attributes, _),) = told.points("sse.client.connections")[:1]
    assert attributes["server.address"] == "127.0.0.1"
    assert attributes["server.port"] == port


@client
async def test_leaving_the_loop_is_a_close(name: str, url: str, told: Backend) -> None:
    """A reader that has had enough is no error."""
    await CLIENTS[name](url + "/endless", stop=True)
    assert reason(told) == "client_close"


@client
async def test_a_stream_that_the_server_cuts_is_disconnected(
    name: str, url: str, told: Backend
) -> None:
    """The end of the network connection in the middle of the body."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        await CLIENTS[name](url + "/cut")
    assert reason(told) == "disconnected"
    assert told.value("sse.client.messages") == 1


@client
async def test_a_read_that_takes_too_long_is_a_timeout(name: str, url: str, told: Backend) -> None:
    """The client's own time-out, with its error type."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        await CLIENTS[name](url + "/endless", wait=0.3)
    assert reason(told) == "timeout"
    (span,) = told.spans("SSE")
    assert "imeout" in span.attributes["error.type"]
    assert not span.status.is_ok


@client
async def test_another_media_type_is_not_told(name: str, url: str, told: Backend) -> None:
    """Only event streams are."""
    await CLIENTS[name](url + "/html")
    assert told.spans("SSE") == []
    assert told.events() == []


@pytest.mark.parametrize("name", ["httpx-async", "httpx2-async", "aiohttp"])
async def test_a_cancelled_reader_has_closed(name: str, url: str, told: Backend) -> None:
    """Cancellation leaves the loop, too."""
    task = asyncio.ensure_future(CLIENTS[name](url + "/endless"))
    await until(lambda: told.value("sse.client.messages") == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reason(told) == "client_close"


async def test_a_response_that_is_forgotten_is_closed(url: str, told: Backend) -> None:
    """Nobody reads it and nobody closes it: with the response the stream ends."""

    def run() -> None:
        with httpx.Client() as session:
            request = session.build_request("GET", url + "/endless")
            response = session.send(request, stream=True)
            assert told.value("sse.client.active_connections") == 1
            del response
            gc.collect()
            assert reason(told) == "client_close"

    await asyncio.to_thread(run)


async def test_the_consumers_own_work_is_not_in_the_gap(url: str, told: Backend) -> None:
    """Only the waiting counts: a reader that is busy between two messages does not slow them."""
    async with aiohttp.ClientSession() as session, session.get(url + "/all") as response:
        async for line in response.content:
            if line == b"\n":
                await asyncio.sleep(0.05)
    ((_, point),) = told.points("sse.client.message.gap")
    assert point.sum < 0.05
