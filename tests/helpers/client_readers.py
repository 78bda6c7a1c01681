"""Every client and every way in which it reads a response."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import aiohttp
import httpx
import httpx2
import httpx_sse
import pytest
import requests
import sseclient

from helpers.backend import Backend
from helpers.client_streams import (
    INSTRUMENTORS,
)
from helpers.waiting import until

# Reads a response, and gives what it read where that is every byte.
Way = Callable[[Any], Any]


@contextlib.contextmanager
def instrumented(backend: Backend, **options: Any) -> Iterator[None]:
    used = [kind() for kind in INSTRUMENTORS]
    for each in used:
        each.instrument(**backend.providers, **options)
    try:
        yield
    finally:
        for each in used:
            each.uninstrument()


async def _sync(package: Any, way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    def run() -> Any:
        with (
            package.Client(timeout=wait, follow_redirects=True) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            return way(response)

    return await asyncio.to_thread(run)


async def _async(package: Any, way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    async with (
        package.AsyncClient(timeout=wait, follow_redirects=True) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        return await way(response)


async def read_with_aiohttp(way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    timeout = aiohttp.ClientTimeout(sock_read=wait)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(url, headers=headers) as response,
    ):
        return await way(response)


async def read_with_requests(way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    def run() -> Any:
        with requests.get(url, stream=True, timeout=wait, headers=headers) as response:
            return way(response)

    return await asyncio.to_thread(run)


CLIENTS: dict[str, Callable[..., Awaitable[Any]]] = {
    "httpx": partial(_sync, httpx),
    "httpx-async": partial(_async, httpx),
    "httpx2": partial(_sync, httpx2),
    "httpx2-async": partial(_async, httpx2),
    "aiohttp": read_with_aiohttp,
    "requests": read_with_requests,
}


def _lines(response: Any) -> None:
    for _ in response.iter_lines():
        pass


def _first_line(response: Any) -> None:
    for _ in response.iter_lines():
        break


async def _alines(response: Any) -> None:
    async for _ in response.aiter_lines():
        pass


async def _first_aline(response: Any) -> None:
    async for _ in response.aiter_lines():
        break


async def _content(response: Any) -> bytes:
    return b"".join([line async for line in response.content])


async def _first_of_content(response: Any) -> None:
    async for _ in response.content:
        break


def _first_by_requests(response: Any) -> None:
    for _ in response.iter_lines(chunk_size=1):
        break


def _joined(pieces: Callable[[Any], Any]) -> Way:
    return lambda response: b"".join(pieces(response))


def _gathered(pieces: Callable[[Any], Any]) -> Way:
    async def read(response: Any) -> bytes:
        return b"".join([piece async for piece in pieces(response)])

    return read


def _taken(take: Callable[[Any], Awaitable[Any]]) -> Way:
    """Until a read gives nothing more."""

    async def read(response: Any) -> bytes:
        taken = b""
        while not response.content.at_eof():
            taken += await take(response.content)
        return taken

    return read


async def _chunk(content: Any) -> bytes:
    data, _ = await content.readchunk()
    return bytes(data)


async def _exactly(content: Any) -> bytes:
    try:
        return bytes(await content.readexactly(100))
    except asyncio.IncompleteReadError as end:
        return end.partial


async def _tuples(response: Any) -> bytes:
    return b"".join([data async for data, _ in response.content.iter_chunks()])


def _all_events(response: Any) -> None:
    assert [*httpx_sse.EventSource(response).iter_sse()]


async def _all_aevents(response: Any) -> None:
    assert [event async for event in httpx_sse.EventSource(response).aiter_sse()]


def _sseclient(response: Any) -> None:
    assert [*sseclient.SSEClient(response).events()]


def _unicode(response: Any) -> bytes:
    text = "".join(response.iter_content(64, decode_unicode=True))
    return text.encode(response.encoding)


LEAVING: dict[str, Way] = {
    "httpx": _first_line,
    "httpx-async": _first_aline,
    "httpx2": _first_line,
    "httpx2-async": _first_aline,
    "aiohttp": _first_of_content,
    "requests": _first_by_requests,
}
# What a client is mostly read by.
USUAL: dict[str, Way] = {
    "httpx": _lines,
    "httpx-async": _alines,
    "httpx2": _lines,
    "httpx2-async": _alines,
    "aiohttp": _content,
    "requests": _lines,
}
_HTTPX: dict[str, Way] = {
    "iter_lines": _lines,
    "iter_bytes": _joined(lambda response: response.iter_bytes()),
    "iter_bytes-3": _joined(lambda response: response.iter_bytes(3)),
    "iter_text": lambda response: "".join(response.iter_text()).encode(response.encoding),
    "read": lambda response: response.read(),
}
_HTTPX_ASYNC: dict[str, Way] = {
    "aiter_lines": _alines,
    "aiter_bytes": _gathered(lambda response: response.aiter_bytes()),
    "aiter_bytes-3": _gathered(lambda response: response.aiter_bytes(3)),
    "aread": lambda response: response.aread(),
}
WAYS: dict[str, dict[str, Way]] = {
    "httpx": {**_HTTPX, "httpx-sse": _all_events},
    "httpx-async": {**_HTTPX_ASYNC, "httpx-sse": _all_aevents},
    "httpx2": _HTTPX,
    "httpx2-async": _HTTPX_ASYNC,
    "aiohttp": {
        "async for": _content,
        "read-7": _taken(lambda content: content.read(7)),
        "readany": _taken(lambda content: content.readany()),
        "readchunk": _taken(_chunk),
        "readline": _taken(lambda content: content.readline()),
        "readuntil": _taken(lambda content: content.readuntil(b"\n\n")),
        "readexactly": _taken(_exactly),
        "iter_chunked": _gathered(lambda response: response.content.iter_chunked(11)),
        "iter_any": _gathered(lambda response: response.content.iter_any()),
        "iter_chunks": _tuples,
        "content.read": lambda response: response.content.read(),
        "read": lambda response: response.read(),
        "text": lambda response: response.text(),
    },
    "requests": {
        "iter_lines": _lines,
        "iter_content-1": _joined(lambda response: response.iter_content()),
        "iter_content-64": _joined(lambda response: response.iter_content(64)),
        "iter_content-none": _joined(lambda response: response.iter_content(None)),
        "decode_unicode": _unicode,
        "for": _joined(iter),
        "content": lambda response: response.content,
        "text": lambda response: response.text.encode(response.encoding),
        "sseclient": _sseclient,
    },
}
# Those that read without decoding: there is nothing to count where the content is encoded.
RAW: dict[str, Way] = {
    "httpx": _joined(lambda response: response.iter_raw()),
    "httpx-async": _gathered(lambda response: response.aiter_raw()),
    "httpx2": _joined(lambda response: response.iter_raw()),
    "httpx2-async": _gathered(lambda response: response.aiter_raw()),
}
client = pytest.mark.parametrize("name", CLIENTS)
asynchronous = pytest.mark.parametrize("name", ["httpx-async", "httpx2-async", "aiohttp"])
synchronous = pytest.mark.parametrize("name", ["httpx", "httpx2", "requests"])


async def close_reason_of(backend: Backend) -> Any:
    """The close reason of the only stream, which is closed; three signals report the same."""
    await until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    found = span.attributes["sse.close.reason"]
    _, closed = backend.events("sse.connection.")
    assert closed.attributes["sse.close.reason"] == found
    assert backend.value("sse.client.connection.duration", sse__close__reason=found) == 1
    assert backend.value("sse.client.active_connections") == 0
    return found
