"""Streams that a client drops unread are closed by the garbage collector."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import aiohttp
import curl_cffi
import httpx
import httpx2
import pytest
import requests
import urllib3
from helpers.backend import Backend
from helpers.client_readers import (
    CLIENTS,
    LEAVING,
    SYNCHRONOUS,
    USUAL,
    UrllibSession,
    client,
    close_reason_of,
    hang_up,
    raises,
    synchronous,
)
from helpers.client_streams import (
    CHUNKED,
    FIRST,
    INSTRUMENTORS,
    ServerSide,
    StreamServer,
    assert_read,
    serving,
)
from helpers.waiting import until

from otel_sse.stream.client import ClientStream


class _Holder:
    """Holds itself, so that only the garbage collector ends it."""

    def __init__(self, *held: Any) -> None:
        self.held = (self, *held)


def _drop_sync(client: Any, url: str) -> None:
    response = client.send(client.build_request("GET", url), stream=True)
    lines = response.iter_lines()
    assert next(lines) == "data: 1"
    _Holder(lines)


async def _drop_async(client: Any, url: str) -> None:
    response = await client.send(client.build_request("GET", url), stream=True)
    lines = response.aiter_lines()
    assert await anext(lines) == "data: 1"
    _Holder(lines)


async def _drop_aiohttp(client: Any, url: str) -> None:
    response = await client.get(url)
    assert await response.content.readline() == b"data: 1\n"
    _Holder(response)


def _drop_curl(client: Any, url: str) -> None:
    response = client.get(url, stream=True)
    lines = response.iter_lines()
    assert next(lines) == b"data: 1"
    hang_up(response)
    _Holder(lines)


async def _drop_curl_async(client: Any, url: str) -> None:
    response = await client.get(url, stream=True)
    lines = response.aiter_lines()
    assert await anext(lines) == b"data: 1"
    _Holder(lines)


def _drop_requests(client: Any, url: str) -> None:
    response = client.get(url, stream=True)
    lines = response.iter_lines(chunk_size=1)
    assert next(lines) == b"data: 1"
    _Holder(lines)


class _Pool(urllib3.PoolManager):
    close = urllib3.PoolManager.clear


def _drop_urllib3(client: Any, url: str) -> None:
    lines = iter(client.request("GET", url, preload_content=False))
    assert next(lines) == b"data: 1\n"
    _Holder(lines)


def _drop_urllib(client: Any, url: str) -> None:
    response = client.get(url)
    assert response.readline() == b"data: 1\n"
    _Holder(response)


SESSIONS: dict[str, tuple[Callable[[], Any], Callable[[Any, str], Any]]] = {
    "httpx": (httpx.Client, _drop_sync),
    "httpx-async": (httpx.AsyncClient, _drop_async),
    "httpx2": (httpx2.Client, _drop_sync),
    "httpx2-async": (httpx2.AsyncClient, _drop_async),
    "aiohttp": (aiohttp.ClientSession, _drop_aiohttp),
    "curl_cffi": (curl_cffi.Session, _drop_curl),
    "curl_cffi-async": (curl_cffi.AsyncSession, _drop_curl_async),
    "requests": (requests.Session, _drop_requests),
    "urllib3": (_Pool, _drop_urllib3),
    "urllib": (UrllibSession, _drop_urllib),
}


def _get(name: str, session: Any, url: str) -> Any:
    """A response of a synchronous client, which has not been read."""
    if name == "curl_cffi":
        response = session.get(url, stream=True)
        hang_up(response)
        return response
    if name == "requests":
        return session.get(url, stream=True)
    if name == "urllib":
        return session.get(url)
    if name == "urllib3":
        return session.request("GET", url, preload_content=False)
    return session.send(session.build_request("GET", url), stream=True)


@contextlib.asynccontextmanager
async def _session(name: str) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[None]]]]:
    """A client, and what drops a stream that it has begun to read."""
    make, drop = SESSIONS[name]
    session = make()
    try:
        if name in SYNCHRONOUS:
            yield session, partial(asyncio.to_thread, drop, session)
        else:
            yield session, partial(drop, session)
    finally:
        closed = session.aclose() if "httpx" in name and "async" in name else session.close()
        if closed is not None:
            await closed


@pytest.mark.parametrize("read", [True, False])
async def test_what_outlives_its_response_is_read(read: bool, telemetry: Backend) -> None:
    """The content of an aiohttp response may be held alone: it ends when it is read or dropped,
    though its response was released when all had arrived.
    """
    pieces = [FIRST, FIRST * 2]

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(pieces[0])
        await wire.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(pieces[1]), pieces[1]))

    async with serving(answer) as server, aiohttp.ClientSession() as session:
        content = (await session.get(server.url)).content
        assert await content.readexactly(len(FIRST)) == FIRST
        await until(content.is_eof)
        assert telemetry.value("sse.client.active_connections") == 1
        if read:
            assert await content.read() == FIRST * 2
        del content
        await until(lambda: gc.collect() >= 0 and telemetry.spans("SSE"))
        if read:
            await assert_read(telemetry, server.port, FIRST * 3)
        else:
            assert await close_reason_of(telemetry) == "client_close"


# Python warns of a socket that is garbage.
dropping = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@client
@dropping
async def test_a_dropped_stream_is_closed(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Never closed, only found by the garbage collector, it is reported to its end."""
    async with _session(name) as (session, drop):
        await drop(server.url + "/endless")
        if name == "aiohttp":
            # Its connection holds the response.
            assert telemetry.value("sse.client.active_connections") == 1
            await session.close()
        # The thread that sent the request may hold it for a moment more.
        await until(lambda: gc.collect() >= 0 and telemetry.spans("SSE"))
        assert await close_reason_of(telemetry) == "client_close"
        # A connection that is dropped now reports the end of its stream too late.
        await asyncio.sleep(0.05)
        assert len(telemetry.spans("SSE")) == 1


@client
@dropping
async def test_a_dropped_response_is_closed(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """The same for a response that was never read."""
    async with _session(name) as (session, _):
        if name == "aiohttp":
            _Holder(await session.get(server.url + "/endless"))
            await session.close()
        elif name == "curl_cffi-async":
            _Holder(await session.get(server.url + "/endless", stream=True))
        elif "async" in name:
            request = session.build_request("GET", server.url + "/endless")
            _Holder(await session.send(request, stream=True))
        else:
            _Holder(await asyncio.to_thread(_get, name, session, server.url + "/endless"))
        # The thread that sent the request may hold it for a moment more.
        await until(lambda: gc.collect() >= 0 and telemetry.spans("SSE"))
        assert await close_reason_of(telemetry) == "client_close"


@client
@dropping
async def test_garbage_waits_for_no_lock(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """The collector may run wherever something is allocated, also where telemetry's own locks or
    the SDK's are held: what it finds then does not ask for them.
    """
    # None where the library has not been imported.
    telemetries = [kind().telemetry for kind in INSTRUMENTORS]
    (lock,) = {each.streams.lock for each in telemetries if each is not None}
    async with _session(name) as (session, drop):
        gc.disable()
        try:
            await drop(server.url + "/endless")
            if name == "aiohttp":
                await session.close()
            collected = threading.Event()

            def collect() -> None:
                with lock:
                    gc.collect()
                collected.set()

            threading.Thread(target=collect, daemon=True).start()
            await until(collected.is_set)
        finally:
            gc.enable()
        assert await close_reason_of(telemetry) == "client_close"


@synchronous
@dropping
async def test_a_finalizer_waits_for_no_lock(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """An object may be freed wherever its last reference goes, also where telemetry's own locks
    are held: without a garbage collector, or by another thread where there is no GIL.
    """
    lock = next(kind().telemetry for kind in INSTRUMENTORS).streams.lock
    async with _session(name) as (session, _):
        held: list[Any] = []

        def take() -> None:
            held.append(_get(name, session, server.url + "/endless"))

        def drop() -> None:
            with lock:
                held.clear()
                gc.collect()
            dropped.set()

        dropped = threading.Event()
        gc.disable()
        try:
            await asyncio.to_thread(take)
            threading.Thread(target=drop, daemon=True).start()
            await until(dropped.is_set)
        finally:
            gc.enable()
        await until(lambda: gc.collect() >= 0 and telemetry.spans("SSE"))
        assert await close_reason_of(telemetry) == "client_close"


@client
async def test_nothing_of_ours_stays(name: str, server: StreamServer, telemetry: Backend) -> None:
    """No object of ours outlives its stream."""
    await CLIENTS[name](USUAL[name], server.url + "/all")
    await CLIENTS[name](LEAVING[name], server.url + "/endless")
    with raises(name):
        await CLIENTS[name](USUAL[name], server.url + "/cut")
    await until(lambda: len(telemetry.spans("SSE")) == 3)

    def remaining() -> list[ClientStream]:
        gc.collect()
        # Not isinstance, which asks lazy proxies of others for their class.
        readings = [each for each in gc.get_objects() if type(each) is ClientStream]
        return [
            each for each in readings if each._telemetry.providers.meter is telemetry.meter_provider
        ]

    await until(lambda: not remaining())
