"""Every way in which aiohttp.web sends an event stream."""

import asyncio
from contextvars import ContextVar
from typing import Any

import aiohttp_sse
import pytest
from aiohttp import web
from helpers.aiohttp_apps import TYPED, aiohttp_app, start_stream
from helpers.backend import Backend
from helpers.framework_cases import (
    GZIPPED,
    SSE,
    Case,
    Instrument,
    body_of_bytes,
    bytes_body,
    case,
    check,
    write_pieces,
)
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp
from helpers.streams import (
    PIECES,
    STREAM,
    apieces,
    assert_reported,
    fetch,
)
from helpers.waiting import until

AIOHTTP: list[Any] = []

case(AIOHTTP, "/events", "/events")(body_of_bytes)


async def generator_body(request: web.Request) -> web.StreamResponse:
    response = web.Response(body=apieces(), headers=TYPED)
    if "Accept-Encoding" in request.headers:
        response.enable_compression()
    return response


@case(AIOHTTP, "/events", "/events")
def body_of_an_async_generator() -> Any:
    return aiohttp_app("/events", generator_body)


@case(AIOHTTP, "/events", "/events")
def body_of_text() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=STREAM.decode(), content_type=SSE, charset="utf-8")

    return aiohttp_app("/events", handler)


@case(AIOHTTP, "/events/1", "/events/{n}")
def aiohttp_sse_response() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        async with aiohttp_sse.sse_response(request) as response:
            for number in range(3):
                await response.send(f"{number}\nx", id=str(number), event="tick")
            await response.send("done", retry=10)
        return response

    return aiohttp_app("/events/{n}", handler)


@case(AIOHTTP, "/api/v1/rooms/1/events", "/api/v1/rooms/{room}/events")
def sub_applications() -> Any:
    inner = aiohttp_app(r"/rooms/{room:\d+}/events", write_pieces)
    middle = web.Application()
    middle.add_subapp("/v1/", inner)
    app = web.Application()
    app.add_subapp("/api/", middle)
    return app


@case(AIOHTTP, "/rooms/1", "/rooms/{room}", host="eu.example.org")
def domain_application() -> Any:
    app = web.Application()
    app.add_domain("*.example.org", aiohttp_app("/rooms/{room}", write_pieces))
    return app


seen_by: ContextVar[tuple[str, ...]] = ContextVar("seen_by")


@web.middleware
async def first_middleware(request: web.Request, handler: Any) -> Any:
    token = seen_by.set(("first",))
    try:
        return await handler(request)
    finally:
        seen_by.reset(token)


@web.middleware
async def second_middleware(request: web.Request, handler: Any) -> Any:
    assert seen_by.get() == ("first",)
    response = await handler(request)
    assert response.content_type == SSE
    return response


@case(AIOHTTP, "/events", "/events")
def two_middlewares() -> Any:
    return aiohttp_app("/events", write_pieces, middlewares=[first_middleware, second_middleware])


@case(AIOHTTP, "/sub/events", "/sub/events")
def middlewares_of_a_sub_application() -> Any:
    app = web.Application(middlewares=[first_middleware])
    inner = aiohttp_app("/events", generator_body, middlewares=[second_middleware])
    app.add_subapp("/sub", inner)
    return app


async def compressed_writes(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=TYPED)
    response.enable_compression()
    await response.prepare(request)
    for piece in PIECES:
        await response.write(piece)
    return response


@case(AIOHTTP, "/events", "/events", **GZIPPED)
def compression_of_writes() -> Any:
    return aiohttp_app("/events", compressed_writes)


@case(AIOHTTP, "/events", "/events", headers=("Accept-Encoding: deflate",), coding="deflate")
def compression_by_deflate() -> Any:
    return aiohttp_app("/events", compressed_writes)


@case(AIOHTTP, "/events", "/events", **GZIPPED)
def compression_of_bytes() -> Any:
    return aiohttp_app("/events", bytes_body)


@case(AIOHTTP, "/events", "/events", **GZIPPED)
def compression_of_an_async_generator() -> Any:
    return aiohttp_app("/events", generator_body)


class Streams(web.View):
    async def get(self) -> web.StreamResponse:
        return await write_pieces(self.request)


@case(AIOHTTP, "/views/1", "/views/{n}")
def class_based_view() -> Any:
    app = web.Application()
    app.router.add_view("/views/{n}", Streams)
    return app


@case(AIOHTTP, "/events", "/events", status=418)
def http_exception() -> Any:
    class Teapot(web.HTTPClientError):
        status_code = 418

    async def handler(request: web.Request) -> web.StreamResponse:
        raise Teapot(text=STREAM.decode(), content_type=SSE)

    return aiohttp_app("/events", handler)


@case(AIOHTTP, "/events", "/events", status=503)
def http_server_exception() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPServiceUnavailable(text=STREAM.decode(), content_type=SSE)

    return aiohttp_app("/events", handler)


@case(AIOHTTP, "/rooms/1/events", "/rooms/{room}/events")
def write() -> Any:
    return aiohttp_app("/rooms/{room}/events", write_pieces)


@case(AIOHTTP, "/events", "/events", method="POST", body=b"{}")
def write_to_a_post() -> Any:
    return aiohttp_app("/events", write_pieces)


@case(AIOHTTP, "/events", "/events")
def write_other_buffers() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "Text/EVENT-stream;charset=utf-8"})
        await response.prepare(request)
        for piece in PIECES:
            await response.write(bytearray(piece))
        for piece in PIECES:
            await response.write(memoryview(piece))
        return response

    return aiohttp_app("/events", handler)


@case(AIOHTTP, "/events", "/events")
def writer_that_prepare_gives() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=TYPED)
        writer = await response.prepare(request)
        assert writer is not None
        for piece in PIECES:
            await writer.write(piece)
        return response

    return aiohttp_app("/events", handler)


@case(AIOHTTP, "/events", "/events")
def write_eof_with_the_last_piece() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        for piece in PIECES[:-1]:
            await response.write(piece)
        await response.write_eof(PIECES[-1])
        return response

    return aiohttp_app("/events", handler)


@pytest.mark.parametrize("case", AIOHTTP)
async def test_a_stream_of_aiohttp_is_reported_and_unmodified(
    case: Case, backend: Backend, instrument: Instrument
) -> None:
    """However aiohttp.web is made to write a body: same bytes, exact counts, whole route."""
    await check(case, backend, instrument)


def _unrouted(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.Request:
    """An application's kind of request, for which no application has looked up a route."""
    loop = asyncio.get_running_loop()
    return web.Request(message, payload, protocol, writer, task, loop, client_max_size=1 << 20)


@pytest.mark.parametrize("factory", [{}, {"request_factory": _unrouted}], ids=["base", "request"])
async def test_a_low_level_server_of_aiohttp_is_reported(
    factory: dict[str, Any], backend: Backend, instrument: Instrument
) -> None:
    """``web.Server`` has no application and no routes; its streams are streams all the same."""
    instrument()
    runner = web.ServerRunner(web.Server(write_pieces, **factory))  # type: ignore[arg-type]
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        reply = await fetch(runner.addresses[0][1], "/any")
    finally:
        await runner.cleanup()
    assert reply.body == STREAM
    await assert_reported(backend, STREAM, route=None)


@pytest.mark.parametrize("last", [False, True], ids=["write", "write_eof"])
@pytest.mark.parametrize(
    ("error", "reason", "messages"),
    [
        (ConnectionResetError(104, "reset"), "client_disconnect", 1),
        # The server has the bytes of a write that is cancelled while it waits.
        (asyncio.CancelledError(), "unknown", 2),
    ],
    ids=["reset", "cancelled"],
)
async def test_a_write_that_raises_does_so_in_the_handler(
    error: BaseException,
    reason: str,
    messages: int,
    last: bool,
    backend: Backend,
    instrument: Instrument,
) -> None:
    """The handler gets the very error, and its stream closes for the reason that it shows."""
    caught: list[BaseException] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        writer: Any = request.writer
        write = writer.write
        broken = False

        async def breaking(chunk: Any = b"", *args: Any, **options: Any) -> None:
            if broken:
                raise error
            await write(chunk, *args, **options)

        writer.write = writer.write_eof = breaking
        response = await start_stream(request)
        await response.write(b"data: 1\n\n")
        broken = True
        try:
            await (response.write_eof if last else response.write)(b"data: 2\n\n")
        except BaseException as raised:
            caught.append(raised)
            raise
        return response

    instrument()
    async with serve_aiohttp(aiohttp_app("/events", handler)) as port:
        client = await RawClient.get(port, "/events")
        (span,) = await until(lambda: backend.spans("SSE"))
        await client.close()
    assert caught == [error]
    assert span.attributes["sse.close.reason"] == reason
    assert span.attributes["sse.messages"] == messages
