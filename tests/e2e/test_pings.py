"""Keep-alive comments that libraries send from a task of their own."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp_sse
import fastapi
import pytest
import sse_starlette
from aiohttp import web
from fastapi.sse import EventSourceResponse, ServerSentEvent
from helpers.aiohttp_apps import aiohttp_app
from helpers.backend import Backend
from helpers.framework_cases import (
    Instrument,
    starlette,
)
from helpers.raw_client import RawClient
from helpers.servers import AIOHTTP_SSE_3, serve_aiohttp, serve_asgi
from helpers.streams import (
    Reply,
    assert_reported,
    parse,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def read_past_pings(port: int, path: str, go_on: asyncio.Event) -> Reply:
    """Reads a response of which the rest comes only once two pings have been seen."""
    client = await RawClient.get(port, path, "Connection: close")
    raw = await client.until(b": ping")
    raw += await client.until(b": ping")
    go_on.set()
    raw += await client.reader.read(-1)
    await client.close()
    return parse(raw)


async def test_pings_of_sse_starlette_are_comments(
    backend: Backend, instrument: Instrument
) -> None:
    """What the library's own keep-alive task sends, beside the generator, is counted exactly."""
    go_on = asyncio.Event()

    async def waiting() -> AsyncIterator[Any]:
        yield {"data": "before"}
        await go_on.wait()
        yield {"data": "after", "event": "tick"}

    async def events(request: Request) -> Response:
        return sse_starlette.EventSourceResponse(waiting(), ping=0.02)

    instrument()
    async with serve_asgi(starlette(Route("/events", events))) as port:
        reply = await read_past_pings(port, "/events", go_on)
    assert reply.body.count(b"data: ") == 2
    assert reply.body.count(b": ping") >= 2
    await assert_reported(backend, reply.body, route="/events")


async def test_pings_of_native_fastapi_streams_are_comments(
    backend: Backend, instrument: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastAPI inserts its keep-alives in a task of its own; they are counted exactly."""
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.02)
    go_on = asyncio.Event()

    async def events() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(data="before")
        await go_on.wait()
        yield ServerSentEvent(data="after", event="tick")

    app = fastapi.FastAPI()
    app.get("/events", response_class=EventSourceResponse)(events)
    instrument()
    async with serve_asgi(app) as port:
        reply = await read_past_pings(port, "/events", go_on)
    assert reply.body.count(b"data: ") == 2
    assert reply.body.count(b": ping") >= 2
    await assert_reported(backend, reply.body, route="/events")


@AIOHTTP_SSE_3
async def test_pings_of_aiohttp_sse_are_comments(backend: Backend, instrument: Instrument) -> None:
    """aiohttp-sse pings from a task of its own; its writes belong to the stream."""
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        async with aiohttp_sse.sse_response(request, ping_interval=0.02) as response:
            await response.send("before")
            await go_on.wait()
            await response.send("after", event="tick")
        return response

    instrument()
    async with serve_aiohttp(aiohttp_app("/events", handler)) as port:
        reply = await read_past_pings(port, "/events", go_on)
    assert reply.body.count(b"data: ") == 2
    assert reply.body.count(b": ping") >= 2
    await assert_reported(backend, reply.body, route="/events")
