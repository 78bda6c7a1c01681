"""Both ends linked: a trace comment before each message, which only our readers notice."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from helpers import oracle
from helpers.backend import Backend
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import PIECES, STREAM, fetch
from helpers.waiting import until
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from otel_sse.frameworks import SSEAiohttpClientInstrumentor, SSEHttpxInstrumentor

Instrument = Callable[..., None]
SSE = "text/event-stream"


async def _pieces() -> AsyncIterator[bytes]:
    for piece in PIECES:
        yield piece
        await asyncio.sleep(0)


async def _stream(_: Any) -> StreamingResponse:
    return StreamingResponse(_pieces(), media_type=SSE)


async def _whole(_: Any) -> Response:
    return Response(STREAM, media_type=SSE)


async def _encoded(_: Any) -> StreamingResponse:
    headers = {"Content-Encoding": "rot13"}
    return StreamingResponse(_pieces(), media_type=SSE, headers=headers)


async def _written(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": SSE})
    if "gzip" in request.path:
        response.enable_compression(web.ContentCoding.gzip)
    if "length" in request.path:
        response.content_length = len(STREAM)
    await response.prepare(request)
    for piece in PIECES:
        await response.write(piece)
    return response


STARLETTE = Starlette(
    routes=[Route("/stream", _stream), Route("/whole", _whole), Route("/encoded", _encoded)],
)


def _aiohttp() -> web.Application:
    app = web.Application()
    for path in ("/stream", "/gzip", "/length"):
        app.router.add_get(path, _written)
    return app


def _serve(kind: str) -> Any:
    return serve_asgi(STARLETTE) if kind == "starlette" else serve_aiohttp(_aiohttp())


async def _bytes(kind: str, path: str) -> bytes:
    async with _serve(kind) as port:
        return (await fetch(port, path, "Accept-Encoding: gzip")).stream


@pytest.mark.parametrize("kind", ["starlette", "aiohttp"])
@pytest.mark.parametrize("propagate", [True, False])
async def test_trace_comments_are_there_where_configured(
    kind: str, propagate: bool, instrument: Instrument, backend: Backend
) -> None:
    """Off, not one byte differs; on, a literal reader finds the same messages, and one comment
    more for each; the server counts neither the trace comments nor their bytes.
    """
    instrument(propagate=propagate)
    stream = await _bytes(kind, "/stream")
    messages, comments = oracle.read(STREAM)
    if not propagate:
        assert stream == STREAM
    else:
        again, more = oracle.read(stream)
        assert again == messages
        # The blocks without data have one, too.
        assert more - comments == stream.count(b": otel traceparent=00-") >= len(messages)
    await until(lambda: backend.spans("SSE"))
    assert backend.value("sse.server.io") == len(STREAM)
    assert backend.value("sse.server.comments") == comments
    assert backend.value("sse.server.messages") == len(messages)


@pytest.mark.parametrize(
    ("kind", "path"), [("starlette", "/whole"), ("starlette", "/encoded"), ("aiohttp", "/length")]
)
async def test_a_body_of_a_settled_length_or_coding_is_unmodified(
    kind: str, path: str, instrument: Instrument
) -> None:
    """More bytes than the headers announce would break the response."""
    instrument(propagate=True)
    async with (
        _serve(kind) as port,
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        assert await response.read() == STREAM


@pytest.mark.parametrize(("kind", "path"), [("starlette", "/stream"), ("aiohttp", "/gzip")])
async def test_trace_comments_are_encoded_with_the_body(
    kind: str, path: str, instrument: Instrument
) -> None:
    """Where the framework encodes the body after us, it encodes the trace comments, too."""
    instrument(propagate=True)
    assert b": otel traceparent=00-" in await _bytes(kind, path)


@pytest.fixture
def reader() -> Iterator[Backend]:
    """The backend of the instrumented clients."""
    backend = Backend()
    clients = (SSEHttpxInstrumentor(), SSEAiohttpClientInstrumentor())
    for each in clients:
        each.instrument(**backend.providers)
    yield backend
    for each in clients:
        each.uninstrument()


async def _read_by_httpx(url: str) -> bytes:
    async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
        return b"".join([chunk async for chunk in response.aiter_bytes()])


async def _read_by_aiohttp(url: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return b"".join([chunk async for chunk in response.content.iter_any()])


@pytest.mark.parametrize("read", [_read_by_httpx, _read_by_aiohttp])
@pytest.mark.parametrize("kind", ["starlette", "aiohttp"])
async def test_both_ends_are_linked_and_count_the_same(
    kind: str, read: Any, instrument: Instrument, backend: Backend, reader: Backend
) -> None:
    """The reader's span links to the sender's, each message has its delivery time, and the
    trace comments are in no count of either end.
    """
    instrument(propagate=True)
    async with _serve(kind) as port:
        await read(f"http://127.0.0.1:{port}/stream")
    messages, comments = oracle.read(STREAM)
    (sent,) = await until(lambda: backend.spans("SSE"))
    (received,) = reader.spans("SSE")
    assert received.links[0].context.span_id == sent.context.span_id
    assert received.links[0].context.trace_id == sent.context.trace_id
    assert len(received.links) == 1
    assert reader.value("sse.client.messages") == len(messages)
    assert reader.value("sse.client.comments") == comments
    assert reader.value("sse.client.io") == len(STREAM)
    assert reader.value("sse.client.delivery.duration") == len(messages)
    ((_, point),) = reader.points("sse.client.delivery.duration")
    assert 0 <= point.sum < 10 * len(messages)
    assert reader.value("sse.client.delivery.skewed") == 0


async def test_clocks_that_disagree_give_no_negative_time(
    instrument: Instrument, monkeypatch: pytest.MonkeyPatch, reader: Backend
) -> None:
    """A server whose clock is ahead: its messages are counted as skewed."""
    instrument(propagate=True)
    monkeypatch.setattr(
        "otel_sse.wire.trace_comment.time_ns", lambda: time.time_ns() + 3_600_000_000_000
    )
    async with _serve("starlette") as port:
        await _read_by_httpx(f"http://127.0.0.1:{port}/stream")
    messages, _ = oracle.read(STREAM)
    assert reader.value("sse.client.delivery.skewed") == len(messages)
    assert reader.points("sse.client.delivery.duration") == []


async def test_gzip_around_the_router_encodes_the_trace_comments(instrument: Instrument) -> None:
    """A middleware's encoding comes after the trace comments."""
    instrument(propagate=True)
    routes = [Route("/stream", _stream)]
    app = Starlette(routes=routes, middleware=[Middleware(GZipMiddleware, minimum_size=1)])
    async with serve_asgi(app) as port:
        stream = (await fetch(port, "/stream", "Accept-Encoding: gzip")).stream
    assert oracle.read(stream)[0] == oracle.read(STREAM)[0]
