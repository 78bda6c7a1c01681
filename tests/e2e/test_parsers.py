"""Common parsers read a stream with trace comments as they read it without.

An SDK is imported where it is used: that takes seconds, and every process collects this file.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp_sse_client2.client
import httpx
import httpx2
import httpx_sse
import ld_eventsource
import pytest
import requests
import requests_sse
import sseclient
from helpers.servers import serve_asgi
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

# What each of them reads alike: whole messages, in pieces, of several lines and types.
CHUNKS = (
    b": hello\n\nevent: tick\nid: 1\ndata: one\n\n",
    b"data: two\ndata: lines\n\nevent: ti",
    b"ck\ndata: th",
    b"ree\n\nid: 4\ndata: four\n\n",
    b"event: end\ndata: end\n\n",
)
READ = [("tick", "one"), ("message", "two\nlines"), ("tick", "three"), ("message", "four")]
READ.append(("end", "end"))
Read = tuple[str, str]


async def _stream(_: Any) -> StreamingResponse:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in CHUNKS:
            yield chunk
            await asyncio.sleep(0.01)

    return StreamingResponse(chunks(), media_type="text/event-stream")


APP = Starlette(routes=[Route("/", _stream)])


def _by_httpx_sse(url: str) -> list[Read]:
    with httpx.Client() as client, httpx_sse.connect_sse(client, "GET", url) as source:
        return [(each.event, each.data) for each in source.iter_sse()]


def _by_httpx2(url: str) -> list[Read]:
    with httpx2.Client() as client, client.stream("GET", url) as response:
        return [(each.event, each.data) for each in httpx2.EventSource(response)]


def _by_sseclient(url: str) -> list[Read]:
    with requests.get(url, stream=True, timeout=10) as response:
        return [(each.event, each.data) for each in sseclient.SSEClient(response).events()]


def _by_requests_sse(url: str) -> list[Read]:
    found: list[Read] = []
    with requests_sse.EventSource(url, max_connect_retry=0) as source:
        for each in source:
            found.append((each.type or "message", each.data))
            if each.type == "end":
                break
    return found


def _by_launchdarkly(url: str) -> list[Read]:
    found: list[Read] = []
    source = ld_eventsource.SSEClient(url)
    for each in source.events:
        found.append((each.event, each.data))
        if each.event == "end":
            break
    source.close()
    return found


def _by_openai(url: str) -> list[Read]:
    import openai._streaming

    with httpx.Client() as client, client.stream("GET", url) as response:
        events = openai._streaming.SSEDecoder().iter_bytes(response.iter_bytes())
        return [(each.event or "message", each.data) for each in events]


def _by_anthropic(url: str) -> list[Read]:
    import anthropic._streaming

    with httpx.Client() as client, client.stream("GET", url) as response:
        events = anthropic._streaming.SSEDecoder().iter_bytes(response.iter_bytes())
        return [(each.event or "message", each.data) for each in events]


def _by_aiohttp_sse_client2(url: str) -> list[Read]:
    async def read() -> list[Read]:
        found: list[Read] = []
        async with aiohttp_sse_client2.client.EventSource(url, max_connect_retry=0) as source:
            with contextlib.suppress(ConnectionError):
                async for each in source:
                    found.append((each.type or "message", each.data))
                    if each.type == "end":
                        break
        return found

    return asyncio.run(read())


PARSERS = (
    _by_httpx_sse,
    _by_httpx2,
    _by_sseclient,
    _by_requests_sse,
    _by_launchdarkly,
    _by_openai,
    _by_anthropic,
    _by_aiohttp_sse_client2,
)


@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize("parser", PARSERS)
async def test_a_parser_reads_the_same(
    parser: Any, propagate: bool, instrument: Callable[..., None]
) -> None:
    """With trace comments and without."""
    instrument(propagate=propagate)
    async with serve_asgi(APP) as port:
        url = f"http://127.0.0.1:{port}/"
        async with httpx.AsyncClient() as client:
            body = (await client.get(url)).content
        assert (b": otel traceparent=" in body) is propagate
        assert await asyncio.to_thread(parser, url) == READ
