"""HTTP content coding: each message can be decoded when it comes."""

import asyncio
import zlib
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.waiting import until
from reference.served import QUICK, serving
from server.app import STREAMS
from server.coding import takes_gzip


@pytest.fixture(autouse=True)
def _own_zlib() -> Any:
    """The coding is the process's; the other tests' is the usual one."""
    yield
    aiohttp.set_zlib_backend(zlib)


async def _chunk(client: RawClient) -> bytes:
    """The next chunk of a chunked response."""
    size = int(await asyncio.wait_for(client.until(b"\r\n"), 10), 16)
    chunk = await client.reader.readexactly(size)
    await client.until(b"\r\n")
    return chunk


async def test_each_message_is_complete_when_it_comes(backend: Backend, instrument: Any) -> None:
    """Without a later one to push it; telemetry counts messages and bytes before the coding."""
    instrument()
    settings = replace(QUICK, content_coding="gzip", compress_from=0)
    async with serving(settings, backend) as site:
        client = await RawClient.get(site.port, "/events", "Accept-Encoding: br, gzip")
        head = await client.until(b"\r\n\r\n")
        assert b"\r\nContent-Encoding: gzip\r\n" in head
        assert b"\r\nVary: Accept-Encoding\r\n" in head
        decoder = zlib.decompressobj(31)
        plain = b""
        while b"\nid: " not in plain or not plain.endswith(b"\n\n"):
            plain += decoder.decompress(await _chunk(client))
        coded = 0
        for number in range(20):
            data = f"{number} {'the same again ' * 500}"
            await site.publish(data)
            chunk = await _chunk(client)
            coded += len(chunk)
            message = decoder.decompress(chunk)
            assert message.endswith(f"data: {data}\n\n".encode())
            plain += message
        assert coded < len(plain) / 20
        assert backend.value("sse.server.messages") == 20
        assert backend.value("sse.server.io") == len(plain)
        await client.close()
        await until(lambda: not site.app[STREAMS]._broker._readers)


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        ("gzip", True),
        ("br, GZip ; q=0.5", True),
        ("*", True),
        ("br;q=1.0, *;q=0.1", True),
        ("gzip;q=1, *;q=0", True),
        ("", False),
        ("br, gzipped", False),
        ("gzip;q=0", False),
        ("*, gzip; Q = 0.000", False),
        ("*;q=0", False),
    ],
)
def test_what_a_client_accepts(accepted: str, takes: bool) -> None:
    """By name or by ``*``, where its weight is not 0."""
    assert takes_gzip(accepted) is takes


async def test_who_accepts_none_gets_none() -> None:
    """A client that wants no gzip reads plain text; without the setting everyone does."""
    coded = replace(QUICK, content_coding="gzip")
    for settings, accepted in ((coded, "br"), (coded, "br, gzip;q=0"), (QUICK, "gzip")):
        async with serving(settings) as site:
            client = await RawClient.get(site.port, "/events", f"Accept-Encoding: {accepted}")
            assert b"Content-Encoding" not in await client.until(b"\r\n\r\n")
            await client.until(b"retry: 50\n\n")
            await client.close()
