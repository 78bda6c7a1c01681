"""Clients read real streams from a real socket: every byte, message and comment is counted."""

import asyncio
import gzip
import time
from typing import Any

import aiohttp
import pytest
from helpers.backend import Backend
from helpers.client_readers import (
    CLIENTS,
    NOT_DECODING,
    RAW,
    USUAL,
    WAYS,
    client,
    close_reason_of,
    decoding,
    instrumented,
    raises,
    read_with_aiohttp,
)
from helpers.client_streams import (
    CHUNKED,
    FIRST,
    ServerSide,
    StreamServer,
    assert_read,
    serving,
)
from helpers.streams import STREAM
from helpers.waiting import until


@pytest.mark.parametrize(
    ("name", "way", "path"),
    [
        (name, way, path)
        for name, ways in WAYS.items()
        for way in ways
        for path in ("/all", "/gzip", "/unicode")
        if path != "/gzip" or name not in NOT_DECODING
    ],
)
async def test_each_way_of_reading_is_counted_exactly(
    name: str, way: str, path: str, server: StreamServer, telemetry: Backend
) -> None:
    """Messages by type, comments and bytes are what the oracle finds, after content decoding, and
    the reader gets every byte.
    """
    read = await CLIENTS[name](WAYS[name][way], server.url + path)
    if isinstance(read, bytes):
        assert read == STREAM
    await assert_read(telemetry, server.port)


@pytest.mark.parametrize("name", RAW)
async def test_what_is_read_raw_is_counted(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Where nothing is encoded there is nothing to decode."""
    assert await CLIENTS[name](RAW[name], server.url + "/all") == STREAM
    await assert_read(telemetry, server.port)


@pytest.mark.parametrize("name", RAW)
async def test_what_is_not_decoded_is_not_parsed(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """The compressed bytes are no event stream: they count as bytes alone, and it still ends."""
    read = await CLIENTS[name](RAW[name], server.url + "/gzip")
    assert gzip.decompress(read) == STREAM
    assert await close_reason_of(telemetry) == "completed"
    (span,) = telemetry.spans("SSE")
    assert span.attributes["sse.io"] == len(read)
    assert span.attributes["sse.messages"] == span.attributes["sse.comments"] == 0


@pytest.mark.parametrize("of_session", [True, False])
async def test_what_aiohttp_must_not_decode_is_not_parsed(
    of_session: bool, server: StreamServer, telemetry: Backend
) -> None:
    """Nor is it where each response would be decoded, but for a setting of the session, or of the
    request.
    """
    setting = {"auto_decompress": False}
    async with (
        aiohttp.ClientSession(**(setting if of_session else {})) as session,
        session.get(server.url + "/gzip", **({} if of_session else setting)) as response,
    ):
        read = await response.read()
        assert gzip.decompress(read) == STREAM
        async with session.get(server.url + "/all") as plain:
            assert await plain.read() == STREAM
    await until(lambda: len(telemetry.spans("SSE")) == 2)
    found = [span.attributes for span in telemetry.spans("SSE")]
    assert [each["sse.close.reason"] for each in found] == ["completed"] * 2
    assert [each["sse.io"] for each in found] == [len(read), len(STREAM)]
    assert found[0]["sse.messages"] == 0


async def test_a_setting_of_a_request_wins_over_its_sessions(telemetry: Backend) -> None:
    """What aiohttp passes on as it came is opaque, though it may look like messages."""

    async def claim(wire: ServerSide) -> None:
        await wire.head(CHUNKED, "Content-Encoding: gzip")
        await wire.chunk(b"data: no gzip\n\n")
        await wire.chunk(b"")

    async with (
        serving(claim) as server,
        aiohttp.ClientSession() as session,
        session.get(server.url + "/claim", auto_decompress=False) as response,
    ):
        await response.read()
    (span,) = await until(lambda: telemetry.spans("SSE"))
    assert (span.attributes["sse.io"], span.attributes["sse.messages"]) == (15, 0)


@pytest.mark.filterwarnings("ignore:unread_data:DeprecationWarning")
async def test_what_is_unread_counts_once(server: StreamServer, telemetry: Backend) -> None:
    """Aiohttp lets a reader look ahead: what is read again is the same, and its rest also."""

    async def ahead(response: Any) -> bytes:
        content = response.content
        read = b""
        while data := await content.read(7):
            content.unread_data(data[2:])
            content.unread_data(data[:2])
            read += await content.read(5)
        return read

    assert await read_with_aiohttp(ahead, server.url + "/all") == STREAM
    await assert_read(telemetry, server.port)


@decoding
@pytest.mark.parametrize("path", ["/deflate", "/br", "/zstd"])
async def test_other_content_codings(
    name: str, path: str, server: StreamServer, telemetry: Backend
) -> None:
    """What a client can decode is counted decoded."""
    if path in ("/br", "/zstd"):
        pytest.importorskip("brotli")
        pytest.importorskip("zstandard")
    await CLIENTS[name](USUAL[name], server.url + path)
    await assert_read(telemetry, server.port)


@client
async def test_a_body_in_one_piece(name: str, server: StreamServer, telemetry: Backend) -> None:
    """A Content-Length makes no difference."""
    await CLIENTS[name](USUAL[name], server.url + "/unicode")
    await assert_read(telemetry, server.port)


@client
async def test_an_empty_body(name: str, server: StreamServer, telemetry: Backend) -> None:
    """A stream without a byte is one that has been read to its end."""
    await CLIENTS[name](USUAL[name], server.url + "/empty")
    await assert_read(telemetry, server.port, b"")


@client
async def test_another_media_type_is_not_reported(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Only event streams are."""
    await CLIENTS[name](USUAL[name], server.url + "/html")
    assert telemetry.spans("SSE") == []
    assert telemetry.events() == []


@client
async def test_a_redirect_is_no_stream(name: str, server: StreamServer, telemetry: Backend) -> None:
    """Only the response at the end of the redirects is a stream."""
    await CLIENTS[name](USUAL[name], server.url + "/redirect")
    assert [request.path for request in server.requests] == ["/redirect", "/all"]
    span = await assert_read(telemetry, server.port)
    assert span.attributes["url.path"] == "/all"


@client
async def test_a_status_of_500_is_an_error(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """A stream may come with any status; it is reported to its end."""
    await CLIENTS[name](USUAL[name], server.url + "/broken")
    await assert_read(telemetry, server.port, FIRST, status=503, error_type="503")


@client
async def test_the_request_is_unmodified(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Nothing is injected, and a request that resumes counts as resumed."""
    bare = {"last-event-id": "7"}
    with telemetry.tracer.start_as_current_span("caller") as caller:
        await CLIENTS[name](USUAL[name], server.url + "/all?key=secret", **bare)
    (request,) = server.requests
    assert "traceparent" not in request.headers
    span = await assert_read(telemetry, server.port, resumed=True)
    assert span.parent.span_id == caller.get_span_context().span_id
    assert "secret" not in span.to_json()


@client
async def test_the_span_starts_with_the_request(name: str, telemetry: Backend) -> None:
    """Not with the response: a server that is slow to answer shows."""

    async def answer(wire: ServerSide) -> None:
        await asyncio.sleep(0.3)
        await wire.head(f"Content-Length: {len(FIRST)}")
        await wire.send(FIRST)

    async with serving(answer) as server:
        before = time.time_ns()
        await CLIENTS[name](USUAL[name], server.url)
        span = await assert_read(telemetry, server.port, FIRST)
    assert before - 1e6 <= span.start_time <= span.end_time - 0.3e9
    ((_, connected),) = telemetry.points("sse.client.connect.duration")
    ((_, first),) = telemetry.points("sse.client.connection.time_to_first_message")
    assert 0.3 <= connected.sum <= first.sum <= (span.end_time - span.start_time) / 1e9


@client
async def test_what_is_live_is_reported_to_its_end(
    name: str, server: StreamServer, backend: Backend
) -> None:
    """Also after the instrumentation has been switched off."""
    with instrumented(backend):
        task = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url + "/endless"))
        await until(lambda: backend.value("sse.client.messages") == 1, running=task)
    assert backend.value("sse.client.active_connections") == 1
    await server.stop(cut=True)
    with raises(name):
        await task
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "disconnected"
    await server.start()


@client
async def test_an_excluded_url_is_not_reported(
    name: str, server: StreamServer, backend: Backend
) -> None:
    """By scheme, host and path."""
    with instrumented(backend, excluded_urls="127.0.0.1/al"):
        await CLIENTS[name](USUAL[name], server.url + "/all")
    assert backend.spans("SSE") == []
