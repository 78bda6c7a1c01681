"""Close reasons of the streams that clients read."""

import asyncio
from typing import Any

import aiohttp
import pytest
from helpers.backend import Backend
from helpers.client_readers import (
    CLIENTS,
    LEAVING,
    SYNCHRONOUS,
    USUAL,
    asynchronous,
    client,
    close_reason_of,
    lenient_decoding,
    lines_of,
    raises,
    read_with_requests,
    synchronous,
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


@client
@pytest.mark.parametrize("path", ["/endless", "/ticking"])
async def test_breaking_out_of_the_loop_is_a_close(
    name: str, path: str, server: StreamServer, telemetry: Backend
) -> None:
    """A reader that stops reading is no error."""
    await CLIENTS[name](LEAVING[name], server.url + path)
    assert await close_reason_of(telemetry) == "client_close"


@client
async def test_a_response_that_is_not_read_is_closed(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Its client closes it at once."""
    ignore = (lambda _: None) if name in SYNCHRONOUS else _ignore
    await CLIENTS[name](ignore, server.url + "/endless")
    await assert_read(telemetry, server.port, b"", reason="client_close")


async def _ignore(_: Any) -> None:
    pass


@client
async def test_an_error_of_the_reader_is_a_close(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """What goes wrong in the loop's body is not the stream's."""

    def fail(_: Any) -> None:
        raise LookupError

    async def afail(_: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await CLIENTS[name](fail if name in SYNCHRONOUS else afail, server.url + "/endless")
    assert await close_reason_of(telemetry) == "client_close"


@client
@pytest.mark.parametrize("path", ["/cut", "/short"])
async def test_a_stream_that_the_server_cuts_is_disconnected(
    name: str, path: str, server: StreamServer, telemetry: Backend
) -> None:
    """The end of the network connection in the middle of a body, chunked or of a known length."""
    with raises(name):
        await CLIENTS[name](USUAL[name], server.url + path)
    # Of a body that is cut short, urllib3 gives none of what it still waits to make a chunk of.
    given = b"" if path == "/short" and name in ("requests", "urllib3") else FIRST
    await assert_read(telemetry, server.port, given, reason="disconnected")


@client
async def test_a_server_that_goes_away(name: str, server: StreamServer, telemetry: Backend) -> None:
    """The same, while the reader waits."""
    task = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url + "/endless"))
    await until(lambda: telemetry.value("sse.client.messages") == 1, running=task)
    await server.stop(cut=True)
    with raises(name):
        await task
    await assert_read(telemetry, server.port, FIRST, reason="disconnected")
    await server.start()


@client
async def test_a_read_that_takes_too_long_is_a_timeout(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """The client's own time-out, with its error type."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        await CLIENTS[name](USUAL[name], server.url + "/endless", wait=1)
    assert await close_reason_of(telemetry) == "timeout"
    (span,) = telemetry.spans("SSE")
    assert "imeout" in span.attributes["error.type"]
    assert not span.status.is_ok


@lenient_decoding
async def test_a_body_that_cannot_be_decoded_is_an_error(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Its header claims a compression that it has not."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        await CLIENTS[name](USUAL[name], server.url + "/not-gzip")
    assert await close_reason_of(telemetry) == "error"
    (span,) = telemetry.spans("SSE")
    assert not span.status.is_ok


@asynchronous
async def test_a_cancelled_reader_has_closed(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Cancellation leaves the loop, too."""
    task = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url + "/endless"))
    await until(lambda: telemetry.value("sse.client.messages") == 1, running=task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_read(telemetry, server.port, FIRST, reason="client_close")


@synchronous
async def test_a_close_by_another_thread_is_a_close(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Whatever its reader finds then: requests' close itself waits for the read under way."""
    begun: list[Any] = []

    def read(response: Any) -> None:
        for _ in lines_of(name, response):
            begun.append(response)

    reading = asyncio.ensure_future(CLIENTS[name](read, server.url + "/endless"))
    await until(lambda: begun, running=reading)
    closing = asyncio.ensure_future(asyncio.to_thread(begun[0].close))
    # The report comes before the close, which must have begun when the server ends it all.
    await until(lambda: telemetry.spans("SSE"))
    await server.stop(cut=True)
    await asyncio.gather(reading, closing, return_exceptions=True)
    assert await close_reason_of(telemetry) == "client_close"
    await server.start()


async def test_a_read_that_is_given_up_is_not_the_end(telemetry: Backend) -> None:
    """A reader may stop to wait, and wait again: only the stream's own end is one."""
    go_on = asyncio.Event()

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        await go_on.wait()
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    async with (
        serving(answer) as server,
        aiohttp.ClientSession() as session,
        session.get(server.url) as response,
    ):
        assert await response.content.readuntil(b"\n\n") == FIRST
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(response.content.readline(), 0.1)
        assert telemetry.value("sse.client.active_connections") == 1
        go_on.set()
        assert await response.content.read() == FIRST
        await assert_read(telemetry, server.port, FIRST * 2)


@pytest.mark.parametrize("busy", [False, True])
async def test_aiohttps_time_for_the_whole_response(
    busy: bool, server: StreamServer, telemetry: Backend
) -> None:
    """It may end while the reader waits, or be found to have ended when it reads again."""

    async def read_on(content: Any) -> None:
        while True:
            await content.readany()
            await asyncio.sleep(2 if busy else 0)

    timeout = aiohttp.ClientTimeout(total=1)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(server.url + "/ticking") as response,
    ):
        with pytest.raises(asyncio.TimeoutError):
            await read_on(response.content)
    assert await close_reason_of(telemetry) == "timeout"


@pytest.mark.parametrize("chunked", [False, True])
async def test_requests_may_be_read_on(chunked: bool, telemetry: Backend) -> None:
    """A reader that breaks out of a loop over a requests response may begin another one, where
    urllib3 keeps the connection open: not in a chunked body.
    """

    async def answer(wire: ServerSide) -> None:
        if chunked:
            await wire.head(CHUNKED)
            await wire.chunk(FIRST)
            await wire.client_disconnected()
        else:
            await wire.head(f"Content-Length: {3 * len(FIRST)}")
            await wire.send(3 * FIRST)

    def read(response: Any) -> None:
        for chunk in response.iter_content(len(FIRST)):
            assert chunk == FIRST
            break
        rest = b"".join(response.iter_content(len(FIRST)))
        assert rest == (b"" if chunked else FIRST * 2)

    async with serving(answer) as server:
        await read_with_requests(read, server.url)
        if chunked:
            await assert_read(telemetry, server.port, FIRST, reason="client_close")
        else:
            await assert_read(telemetry, server.port, FIRST * 3)
