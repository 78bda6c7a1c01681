"""Streams that break, or that their own application ends: whose doing it was."""

import asyncio
import gc
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp
import curl_cffi
import httpx
import httpx2
import pytest
import requests
import urllib3
from helpers.backend import Backend
from helpers.certificates import self_signed_context
from helpers.client_readers import (
    CLIENTS,
    RAW,
    USUAL,
    asynchronous,
    client,
    close_reason_of,
    lenient_decoding,
    read_with_requests,
)
from helpers.client_streams import (
    CHUNKED,
    FIRST,
    ServerSide,
    StreamServer,
    assert_read,
    compress,
    serving,
)
from helpers.waiting import until


@lenient_decoding
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_an_encoded_body_that_ends_incomplete(
    name: str, coding: str, telemetry: Backend
) -> None:
    """The reason is the reader's finding: an error where it has got one, and else the end."""
    if (name, coding) == ("aiohttp", "deflate"):
        pytest.skip("aiohttp itself gives its reader neither an error nor the end, and it waits")
    body = compress(coding, FIRST * 1000)
    cut = body[: len(body) * 3 // 4]

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED, f"Content-Encoding: {coding}")
        # aiohttp may refuse the response where it finds the headers and the error at once.
        await until(lambda: telemetry.value("sse.client.connections") == 1)
        await wire.chunk(cut)
        await wire.chunk(b"")

    async with serving(answer) as server:
        error: Exception | None = None
        try:
            await CLIENTS[name](USUAL[name], server.url)
        except Exception as raised:
            error = raised
        reason = await close_reason_of(telemetry)
    assert reason == ("completed" if error is None else "error")
    if coding == "zstd" and name != "aiohttp":
        assert error is not None


@pytest.mark.parametrize("package", [httpx, httpx2])
async def test_an_application_that_closes_its_client(
    package: Any, server: StreamServer, telemetry: Backend
) -> None:
    """While a task of it reads, as at the end of a lifespan."""
    session = package.AsyncClient()

    async def read() -> None:
        async with session.stream("GET", server.url + "/endless") as response:
            async for _ in response.aiter_lines():
                pass

    task = asyncio.ensure_future(read())
    await until(lambda: telemetry.value("sse.client.messages") == 1, running=task)
    await session.aclose()
    await asyncio.gather(task, return_exceptions=True)
    await assert_read(telemetry, server.port, FIRST, reason="client_close")


@pytest.mark.parametrize("package", [httpx, httpx2])
async def test_an_application_that_closes_its_transport(
    package: Any, server: StreamServer, telemetry: Backend
) -> None:
    """Which several clients may share."""
    transport = package.AsyncHTTPTransport()
    session = package.AsyncClient(transport=transport)

    async def read() -> None:
        async with session.stream("GET", server.url + "/endless") as response:
            async for _ in response.aiter_lines():
                pass

    task = asyncio.ensure_future(read())
    await until(lambda: telemetry.value("sse.client.messages") == 1, running=task)
    await transport.aclose()
    await asyncio.gather(task, return_exceptions=True)
    await assert_read(telemetry, server.port, FIRST, reason="client_close")


@pytest.mark.parametrize("package", [httpx, httpx2])
async def test_an_application_that_closes_its_client_in_another_thread(
    package: Any, server: StreamServer, telemetry: Backend
) -> None:
    """The reader notices when the server sends more, or goes."""
    session = package.Client()

    def read() -> None:
        with session.stream("GET", server.url + "/endless") as response:
            for _ in response.iter_lines():
                pass

    task = asyncio.ensure_future(asyncio.to_thread(read))
    await until(lambda: telemetry.value("sse.client.messages") == 1, running=task)
    session.close()
    await server.stop(cut=True)
    await asyncio.gather(task, return_exceptions=True)
    assert await close_reason_of(telemetry) == "client_close"
    await server.start()


async def test_an_application_that_closes_its_aiohttp_session(
    server: StreamServer, telemetry: Backend
) -> None:
    """The same by aiohttp."""
    session = aiohttp.ClientSession()

    async def read() -> None:
        async with session.get(server.url + "/endless") as response:
            async for _ in response.content:
                pass

    task = asyncio.ensure_future(read())
    await until(lambda: telemetry.value("sse.client.messages") == 1, running=task)
    await session.close()
    await asyncio.wait([task], timeout=1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await assert_read(telemetry, server.port, FIRST, reason="client_close")


@asynchronous
async def test_a_response_that_another_task_closes(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """While one task reads."""
    begun: list[Any] = []

    async def read(response: Any) -> None:
        lines = response.content if name == "aiohttp" else response.aiter_lines()
        async for _ in lines:
            begun.append(response)

    async def close() -> None:
        if name == "aiohttp":
            begun[0].close()
        else:
            await begun[0].aclose()

    task = asyncio.ensure_future(CLIENTS[name](read, server.url + "/endless"))
    await until(lambda: telemetry.value("sse.client.messages") == 1, running=task)
    closing = asyncio.ensure_future(close())
    await asyncio.wait([task], timeout=1)
    task.cancel()
    await asyncio.gather(task, closing, return_exceptions=True)
    await assert_read(telemetry, server.port, FIRST, reason="client_close")


@client
async def test_a_connection_that_is_reset(name: str, telemetry: Backend) -> None:
    """By an RST of the server's."""
    reset = asyncio.Event()

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        await reset.wait()
        raw = wire.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.writer.transport.abort()

    async with serving(answer) as server:
        task = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url))
        await until(lambda: telemetry.value("sse.client.messages") == 1, running=task)
        reset.set()
        with pytest.raises(Exception):  # noqa: B017, PT011
            await task
        await assert_read(telemetry, server.port, FIRST, reason="disconnected")


def _read_httpx(package: Any, url: str) -> None:
    with package.Client(verify=False) as session, session.stream("GET", url) as response:
        for _ in response.iter_lines():
            pass


async def _read_httpx_async(package: Any, url: str) -> None:
    async with (
        package.AsyncClient(verify=False) as session,
        session.stream("GET", url) as response,
    ):
        async for _ in response.aiter_lines():
            pass


async def _read_aiohttp(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(url, ssl=False) as response:
        async for _ in response.content:
            pass


def _read_curl(url: str) -> None:
    with curl_cffi.Session(verify=False) as session, session.stream("GET", url) as response:
        for _ in response.iter_lines():
            pass


async def _read_curl_async(url: str) -> None:
    async with (
        curl_cffi.AsyncSession(verify=False) as session,
        session.stream("GET", url) as response,
    ):
        async for _ in response.aiter_lines():
            pass


def _read_requests(url: str) -> None:
    with requests.get(url, verify=False, stream=True) as response:
        for _ in response.iter_lines(chunk_size=1):
            pass


def _read_urllib3(url: str) -> None:
    with urllib3.PoolManager(cert_reqs="CERT_NONE") as pool:
        for _ in pool.request("GET", url, preload_content=False):
            pass


def _read_urllib(url: str) -> None:
    with urlopen(url, context=ssl._create_unverified_context()) as response:
        for _ in response:
            pass


OVER_TLS: dict[str, Callable[[str], Any]] = {
    "httpx": lambda url: asyncio.to_thread(_read_httpx, httpx, url),
    "httpx-async": lambda url: _read_httpx_async(httpx, url),
    "httpx2": lambda url: asyncio.to_thread(_read_httpx, httpx2, url),
    "httpx2-async": lambda url: _read_httpx_async(httpx2, url),
    "aiohttp": _read_aiohttp,
    "curl_cffi": lambda url: asyncio.to_thread(_read_curl, url),
    "curl_cffi-async": _read_curl_async,
    "requests": lambda url: asyncio.to_thread(_read_requests, url),
    "urllib3": lambda url: asyncio.to_thread(_read_urllib3, url),
    "urllib": lambda url: asyncio.to_thread(_read_urllib, url),
}


@client
@pytest.mark.filterwarnings("ignore::Warning")
async def test_a_tls_that_breaks(name: str, telemetry: Backend, tmp_path: Path) -> None:
    """What arrives is no TLS record: an error of no class of httpx's own."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = self_signed_context(tmp_path)
    received = asyncio.Event()
    loop = asyncio.get_running_loop()

    def serve() -> None:
        with context.wrap_socket(listener.accept()[0], server_side=True) as wire:
            while not wire.recv(65536).endswith(b"\r\n\r\n"):
                pass
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{CHUNKED}\r\n\r\n"
            wire.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(FIRST), FIRST))
            asyncio.run_coroutine_threadsafe(received.wait(), loop).result(60)
            with socket.socket(fileno=wire.detach()) as bare:
                bare.sendall(b"no TLS record" * 5)
                bare.shutdown(socket.SHUT_WR)
                while bare.recv(65536):
                    pass

    serving_task = asyncio.ensure_future(asyncio.to_thread(serve))
    url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
    task = asyncio.ensure_future(OVER_TLS[name](url))
    try:
        await until(lambda: telemetry.value("sse.client.messages") == 1, running=task)
        received.set()
        with pytest.raises(Exception):  # noqa: B017, PT011
            await task
        assert await close_reason_of(telemetry) == "disconnected"
    finally:
        received.set()
        listener.close()
        await asyncio.gather(task, serving_task, return_exceptions=True)


class _OwnError(Exception):
    pass


@pytest.mark.parametrize("package", [httpx, httpx2])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError("reset"), "disconnected"),
        (ssl.SSLError("wrong version"), "disconnected"),
        (asyncio.IncompleteReadError(b"", 1), "disconnected"),
        (aiohttp.ClientPayloadError("cut"), "disconnected"),
        (curl_cffi.requests.exceptions.IncompleteRead("cut"), "disconnected"),
        (requests.exceptions.ChunkedEncodingError("cut"), "disconnected"),
        (TimeoutError("slow"), "timeout"),
        (aiohttp.ServerTimeoutError("slow"), "timeout"),
        (curl_cffi.requests.exceptions.Timeout("slow"), "timeout"),
        (requests.exceptions.ReadTimeout("slow"), "timeout"),
        (curl_cffi.requests.exceptions.HTTPError("garbage"), "error"),
        (requests.exceptions.ContentDecodingError("garbage"), "error"),
        (ValueError("a bug"), "error"),
        (_OwnError("mine"), "error"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_other_transports_raise(
    package: Any, error: Exception, reason: str, wrapped: bool, telemetry: Backend
) -> None:
    """Errors of no class of httpx's own, alone or as the cause of a transport's own error."""

    class Body(package.SyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Any:
            yield FIRST
            if wrapped:
                raise _OwnError from error
            raise error

    def answer(_: Any) -> Any:
        headers = {"Content-Type": "text/event-stream"}
        return package.Response(200, headers=headers, stream=Body())

    with (
        package.Client(transport=package.MockTransport(answer)) as session,
        pytest.raises((type(error), _OwnError)),
    ):
        session.get("http://mock/")
    (span,) = telemetry.spans("SSE")
    assert span.attributes["sse.close.reason"] == reason
    assert ("error.type" in span.attributes) is (reason in ("error", "timeout"))


async def test_a_line_too_long_for_aiohttp_is_an_error(telemetry: Backend) -> None:
    """The reader gives up for what its read has raised."""

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        for _ in range(20):
            await wire.chunk(b"x" * 40_000)
        await wire.client_disconnected()

    async with serving(answer) as server:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            await CLIENTS["aiohttp"](USUAL["aiohttp"], server.url)
        assert await close_reason_of(telemetry) == "error"
    (span,) = telemetry.spans("SSE")
    assert span.attributes["error.type"].endswith(type(raised.value).__qualname__)


@pytest.mark.parametrize(
    ("path", "reason"), [("/all", "completed"), ("/unicode", "completed"), ("/cut", "disconnected")]
)
@pytest.mark.parametrize("held", [False, True])
async def test_what_requests_reads_raw_ends_as_it_does(
    path: str, reason: str, held: bool, server: StreamServer, telemetry: Backend
) -> None:
    """Also where nothing closes the response."""

    def read(response: Any) -> None:
        response.raw.read()

    def read_and_drop() -> None:
        response = requests.get(server.url + path, stream=True, timeout=20)
        response.raw.read()

    reading = (
        asyncio.to_thread(read_and_drop) if held else read_with_requests(read, server.url + path)
    )
    if path == "/cut":
        with pytest.raises(Exception):  # noqa: B017, PT011
            await reading
    else:
        await reading
    await until(lambda: gc.collect() >= 0 and telemetry.spans("SSE"))
    assert await close_reason_of(telemetry) == reason


async def test_what_is_read_raw_and_given_up_is_a_close(
    server: StreamServer, telemetry: Backend
) -> None:
    """The reader takes a part of it."""

    def read(response: Any) -> None:
        assert response.raw.read(3)

    await read_with_requests(read, server.url + "/endless")
    assert await close_reason_of(telemetry) == "client_close"


@pytest.mark.parametrize("name", RAW)
async def test_raw_bytes_of_an_incomplete_body_are_complete(name: str, telemetry: Backend) -> None:
    """Nobody decodes it, so nobody finds it incomplete."""
    cut = compress("gzip", FIRST * 100)[:-10]

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED, "Content-Encoding: gzip")
        await wire.chunk(cut)
        await wire.chunk(b"")

    async with serving(answer) as server:
        assert await CLIENTS[name](RAW[name], server.url) == cut
        assert await close_reason_of(telemetry) == "completed"
    assert telemetry.value("sse.client.io") == len(cut)
