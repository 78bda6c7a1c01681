"""Every client and every way in which it reads a response."""

import asyncio
import contextlib
import io
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import aiohttp
import curl_cffi
import httpx
import httpx2
import httpx_sse
import psutil
import pytest
import requests
import sseclient
import urllib3

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


async def read_with_urllib3(
    way: Way, url: str, wait: float = 20, preload: bool = False, **headers: str
) -> Any:
    def run() -> Any:
        timeout = urllib3.Timeout(connect=20, read=wait)
        with urllib3.PoolManager(timeout=timeout) as pool:
            response = pool.request("GET", url, preload_content=preload, headers=headers)
            try:
                return way(response)
            finally:
                response.close()

    return await asyncio.to_thread(run)


def hang_up(response: Any) -> None:
    """Ends the connection of a curl_cffi response, whose close waits until the server sends more,
    and whose thread holds it until then.
    """
    for each in psutil.Process().net_connections("tcp"):
        if each.fd > 0 and each.laddr.port == response.local_port:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(each.fd)) as wire:
                wire.shutdown(socket.SHUT_RDWR)


async def read_with_curl(way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    def run() -> Any:
        with (
            curl_cffi.Session(timeout=wait) as session,
            session.stream("GET", url, headers=headers) as response,
        ):
            try:
                return way(response)
            finally:
                hang_up(response)

    return await asyncio.to_thread(run)


async def read_with_curl_async(way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    async with (
        curl_cffi.AsyncSession(timeout=wait) as session,
        session.stream("GET", url, headers=headers) as response,
    ):
        try:
            return await way(response)
        finally:
            hang_up(response)


def open_with_urllib(url: str, wait: float = 20, **headers: str) -> Any:
    """A response of any status."""
    try:
        return urlopen(Request(url, headers=headers), timeout=wait)
    except HTTPError as error:
        return error


class UrllibSession(contextlib.nullcontext[Any]):
    """Opens responses; there is nothing to share."""

    get = staticmethod(open_with_urllib)

    def close(self) -> None:
        pass


async def read_with_urllib(way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    def run() -> Any:
        with open_with_urllib(url, wait, **headers) as response:
            return way(response)

    return await asyncio.to_thread(run)


CLIENTS: dict[str, Callable[..., Awaitable[Any]]] = {
    "httpx": partial(_sync, httpx),
    "httpx-async": partial(_async, httpx),
    "httpx2": partial(_sync, httpx2),
    "httpx2-async": partial(_async, httpx2),
    "aiohttp": read_with_aiohttp,
    "curl_cffi": read_with_curl,
    "curl_cffi-async": read_with_curl_async,
    "requests": read_with_requests,
    "urllib3": read_with_urllib3,
    "urllib": read_with_urllib,
}
SYNCHRONOUS = ("httpx", "httpx2", "curl_cffi", "requests", "urllib3", "urllib")
# Their responses are files.
FILES = ("urllib3", "urllib")
# They decode no content.
NOT_DECODING = ("urllib",)
# They give no response whose first bytes cannot be decoded.
STRICT = ("curl_cffi", "curl_cffi-async")


def lines_of(name: str, response: Any) -> Iterator[Any]:
    """The lines of a synchronous client's response, each as soon as it has come."""
    if name in FILES:
        return iter(response)
    if name == "requests":
        return iter(response.iter_lines(chunk_size=1))
    return iter(response.iter_lines())


def _lines(response: Any) -> None:
    for _ in response.iter_lines():
        pass


def _first_line(name: str) -> Way:
    def read(response: Any) -> None:
        for _ in lines_of(name, response):
            break

    return read


def _for(response: Any) -> None:
    for _ in response:
        pass


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


async def _atext(response: Any) -> bytes:
    return (await response.atext()).encode()


def _joined(pieces: Callable[[Any], Any]) -> Way:
    return lambda response: b"".join(pieces(response))


def _until_empty(take: Callable[[Any], bytes]) -> Way:
    return lambda response: b"".join(iter(partial(take, response), b""))


def _readinto(response: Any) -> bytes:
    buffer, read = bytearray(11), b""
    while count := response.readinto(buffer):
        read += buffer[:count]
    return read


def _readinto1(response: Any) -> bytes:
    buffer, read = bytearray(11), b""
    while count := response.readinto1(buffer):
        read += buffer[:count]
    return read


def _peek(response: Any) -> bytes:
    read = b""
    while data := response.peek():
        assert response.read(len(data)) == data
        read += data
    return read + bytes(response.read())


def _text_wrapper(response: Any) -> bytes:
    response.auto_close = False
    with io.TextIOWrapper(response, "latin-1", newline="") as text:
        return "".join(text).encode("latin-1")


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
    **{name: _first_line(name) for name in SYNCHRONOUS},
    "httpx-async": _first_aline,
    "httpx2-async": _first_aline,
    "aiohttp": _first_of_content,
    "curl_cffi-async": _first_aline,
}
# What a client is mostly read by.
USUAL: dict[str, Way] = {
    "httpx": _lines,
    "httpx-async": _alines,
    "httpx2": _lines,
    "httpx2-async": _alines,
    "aiohttp": _content,
    "curl_cffi": _lines,
    "curl_cffi-async": _alines,
    "requests": _lines,
    "urllib3": _for,
    "urllib": _for,
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
    "curl_cffi": {
        "iter_lines": _lines,
        "iter_content": _joined(lambda response: response.iter_content()),
    },
    "curl_cffi-async": {
        "aiter_lines": _alines,
        "aiter_content": _gathered(lambda response: response.aiter_content()),
        "acontent": lambda response: response.acontent(),
        "atext": _atext,
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
        "raw": lambda response: response.raw.read(decode_content=True),
        "raw.stream": _joined(lambda response: response.raw.stream(64, decode_content=True)),
    },
    "urllib3": {
        "for": _joined(iter),
        "stream": _joined(lambda response: response.stream(decode_content=True)),
        "stream-7": _joined(lambda response: response.stream(7, decode_content=True)),
        "stream-none": _joined(lambda response: response.stream(None, decode_content=True)),
        "read": lambda response: response.read(),
        "read-7": _until_empty(lambda response: response.read(7, decode_content=True)),
        "read1": _until_empty(lambda response: response.read1()),
        "read1-7": _until_empty(lambda response: response.read1(7)),
        "readinto": _readinto,
        "readline": _until_empty(lambda response: response.readline()),
        "readlines": _joined(lambda response: response.readlines()),
        "data": lambda response: response.data,
        "text wrapper": _text_wrapper,
    },
    "urllib": {
        "for": _joined(iter),
        "read": lambda response: response.read(),
        "read-7": _until_empty(lambda response: response.read(7)),
        "read1": _until_empty(lambda response: response.read1()),
        "read1-7": _until_empty(lambda response: response.read1(7)),
        "readinto": _readinto,
        "readinto1": _readinto1,
        "readline": _until_empty(lambda response: response.readline()),
        "readline-7": _until_empty(lambda response: response.readline(7)),
        "readlines": _joined(lambda response: response.readlines()),
        "peek": _peek,
        "text wrapper": _text_wrapper,
        "buffered": lambda response: io.BufferedReader(response).read(),
    },
}
# Those that read without decoding: there is nothing to count where the content is encoded.
RAW: dict[str, Way] = {
    "httpx": _joined(lambda response: response.iter_raw()),
    "httpx-async": _gathered(lambda response: response.aiter_raw()),
    "httpx2": _joined(lambda response: response.iter_raw()),
    "httpx2-async": _gathered(lambda response: response.aiter_raw()),
    "requests": _joined(lambda response: response.raw.stream(decode_content=False)),
    "urllib3": _joined(lambda response: response.stream(decode_content=False)),
    "urllib": _until_empty(lambda response: response.read1()),
}
client = pytest.mark.parametrize("name", CLIENTS)
decoding = pytest.mark.parametrize("name", [n for n in CLIENTS if n not in NOT_DECODING])
asynchronous = pytest.mark.parametrize("name", [n for n in CLIENTS if n not in SYNCHRONOUS])
lenient = pytest.mark.parametrize("name", [n for n in CLIENTS if n not in STRICT])
lenient_decoding = pytest.mark.parametrize(
    "name", [n for n in CLIENTS if n not in NOT_DECODING + STRICT]
)
synchronous = pytest.mark.parametrize("name", SYNCHRONOUS)


def raises(name: str) -> contextlib.AbstractContextManager[Any]:
    """What a cut stream raises, read as usual: something, but nothing by lines of http.client."""
    return contextlib.nullcontext() if name == "urllib" else pytest.raises(Exception)  # noqa: PT011


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
