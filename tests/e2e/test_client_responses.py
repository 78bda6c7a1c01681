"""Which responses are event streams, which bodies are read, and who may read them first."""

import asyncio
from typing import Any

import aiohttp
import pytest
from helpers.backend import Backend
from helpers.client_readers import (
    CLIENTS,
    RAW,
    USUAL,
    client,
    close_reason_of,
    instrumented,
    lenient,
)
from helpers.client_streams import (
    CHUNKED,
    FIRST,
    ServerSide,
    StreamServer,
    assert_read,
    serving,
)
from helpers.waiting import until


def _answer(*types: str, headers: tuple[str, ...] = (), status: str = "200 OK") -> Any:
    async def answer(wire: ServerSide) -> None:
        lines = [f"HTTP/1.1 {status}", "Connection: close", CHUNKED, *headers]
        lines += [f"Content-Type: {kind}" for kind in types]
        await wire.send("\r\n".join([*lines, "", ""]).encode())
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    return answer


@client
@pytest.mark.parametrize(
    "types",
    [
        ("application/json, text/event-stream; charset=utf-8",),
        ("text/event-stream", "text/event-stream; charset=utf-8"),
        ("application/json", "text/event-stream"),
        ("Text/Event-Stream",),
    ],
    ids=str,
)
async def test_the_last_content_type_counts(
    name: str, types: tuple[str, ...], telemetry: Backend
) -> None:
    """In one header or in several."""
    async with serving(_answer(*types)) as server:
        await CLIENTS[name](USUAL[name], server.url)
        await assert_read(telemetry, server.port, FIRST)


@client
@pytest.mark.parametrize(
    "types", [("text/event-stream, application/json",), ("text/event-stream", "text/html")], ids=str
)
async def test_another_last_content_type_is_no_stream(
    name: str, types: tuple[str, ...], telemetry: Backend
) -> None:
    """Though one before it would be."""
    async with serving(_answer(*types)) as server:
        await CLIENTS[name](USUAL[name], server.url)
    assert telemetry.spans("SSE") == []


@client
async def test_the_identity_coding_is_none(name: str, telemetry: Backend) -> None:
    """In any case."""
    answer = _answer("text/event-stream", headers=("Content-Encoding: Identity",))
    async with serving(answer) as server:
        await CLIENTS[name](USUAL[name], server.url)
        await assert_read(telemetry, server.port, FIRST)


@lenient
async def test_a_coding_that_the_client_does_not_know(name: str, telemetry: Backend) -> None:
    """It gives its reader the bytes as they are: they count, and nothing is read into them."""
    answer = _answer("text/event-stream", headers=("Content-Encoding: x-own",))
    async with serving(answer) as server:
        await CLIENTS[name](USUAL[name], server.url)
        assert await close_reason_of(telemetry) == "completed"
    (span,) = telemetry.spans("SSE")
    assert span.attributes["sse.io"] == len(FIRST)
    assert span.attributes["sse.messages"] == 0


@pytest.mark.parametrize("name", RAW)
async def test_a_body_that_nobody_decodes_never_stalls(name: str, backend: Backend) -> None:
    """Its messages are unknown, so their absence is, too."""

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED, "Content-Encoding: gzip")
        await wire.chunk(b"\x1f\x8b")
        await wire.client_disconnected()

    with instrumented(backend, stall_seconds=0.2):
        async with serving(answer) as server:
            task = asyncio.ensure_future(CLIENTS[name](RAW[name], server.url))
            await until(lambda: backend.value("sse.client.io") == 2, running=task)
            await asyncio.sleep(0.5)
            assert backend.value("sse.client.stalled_connections") == 0
            await server.stop(cut=True)
            with pytest.raises(Exception):  # noqa: B017, PT011
                await task
            await server.start()


@client
async def test_a_redirect_is_no_stream_whatever_its_type(name: str, telemetry: Backend) -> None:
    """Only the response behind it is one."""

    async def answer(wire: ServerSide) -> None:
        if wire.request.path == "/end":
            await _answer("text/event-stream")(wire)
        else:
            await wire.head("Location: /end", "Content-Length: 0", status="302 Found")

    async with serving(answer) as server:
        await CLIENTS[name](USUAL[name], server.url + "/to")
        span = await assert_read(telemetry, server.port, FIRST)
    assert span.attributes["url.path"] == "/end"


async def _middleware(request: Any, handler: Any) -> Any:
    response = await handler(request)
    await response.read()
    return response


async def _check(response: Any) -> None:
    await response.read()


async def _on_end(_: Any, __: Any, params: Any) -> None:
    await params.response.read()


@pytest.mark.parametrize("first", ["middleware", "raise_for_status", "trace"])
async def test_what_aiohttps_hooks_read_first_is_counted(
    first: str, server: StreamServer, telemetry: Backend
) -> None:
    """Before the application gets the response."""
    options: dict[str, Any] = {}
    if first == "middleware":
        if not hasattr(aiohttp, "ClientHandlerType"):
            pytest.skip("this aiohttp has no middlewares")
        options["middlewares"] = (_middleware,)
    elif first == "raise_for_status":
        options["raise_for_status"] = _check
    else:
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(_on_end)
        options["trace_configs"] = [trace]
    async with aiohttp.ClientSession(**options) as session, session.get(server.url + "/all") as got:
        await got.read()
    await assert_read(telemetry, server.port)


async def test_a_status_that_aiohttp_raises_for(server: StreamServer, telemetry: Backend) -> None:
    """Its stream is closed by the reader, and is reported though the application never had it."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        with pytest.raises(aiohttp.ClientResponseError):
            await session.get(server.url + "/broken")
    await until(lambda: telemetry.spans("SSE"))
    (span,) = telemetry.spans("SSE")
    assert span.attributes["http.response.status_code"] == 503
    assert span.attributes["error.type"] == "503"
