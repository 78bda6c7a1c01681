"""What is curl_cffi's own: a response comes with the first piece of its body, decoded."""

import asyncio
import contextlib
import gzip
import zlib
from typing import Any

import curl_cffi
import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from curl_cffi import CurlHttpVersion
from curl_cffi.requests.exceptions import HTTPError, RequestException
from helpers.backend import Backend
from helpers.client_readers import close_reason_of, hang_up
from helpers.client_streams import (
    CHUNKED,
    FIRST,
    ServerSide,
    StreamServer,
    assert_read,
    serving,
    table,
)
from helpers.streams import STREAM
from helpers.waiting import until

ACCEPT = {"Accept": "text/event-stream"}
both = pytest.mark.parametrize("asynchronous", [False, True])


async def read(asynchronous: bool, url: str, method: str = "GET", **options: Any) -> bytes:
    """The whole body."""
    if asynchronous:
        async with (
            curl_cffi.AsyncSession(timeout=20) as session,
            session.stream(method, url, **options) as response,
        ):
            return bytes(await response.acontent())

    def run() -> bytes:
        with (
            curl_cffi.Session(timeout=20) as session,
            session.stream(method, url, **options) as response,
        ):
            return b"".join(response.iter_content())

    return await asyncio.to_thread(run)


def _failures(backend: Backend) -> dict[tuple[Any, ...], int]:
    return table(backend, "connect.duration", "error.type")


@both
async def test_the_request_is_described(
    asynchronous: bool, server: StreamServer, telemetry: Backend
) -> None:
    """Its method, path and headers, in any case."""
    options = {"data": b"question", "headers": {"LAST-EVENT-ID": "7"}}
    assert await read(asynchronous, server.url + "/all?key=secret", "post", **options) == STREAM
    span = await assert_read(telemetry, server.port, method="POST", resumed=True)
    assert span.attributes["url.path"] == "/all"
    assert "secret" not in span.to_json()


@both
async def test_what_is_not_decoded_is_not_parsed(
    asynchronous: bool, server: StreamServer, telemetry: Backend
) -> None:
    """Where the request names no codings, libcurl passes the body on as it is."""
    body = await read(asynchronous, server.url + "/gzip", accept_encoding=None)
    assert gzip.decompress(body) == STREAM
    assert await close_reason_of(telemetry) == "completed"
    assert telemetry.value("sse.client.io") == len(body)
    assert telemetry.value("sse.client.messages") == 0


@both
async def test_what_cannot_be_decoded_any_more_is_an_error(
    asynchronous: bool, telemetry: Backend
) -> None:
    """Behind what could be."""
    compressor = zlib.compressobj(wbits=31)
    first = compressor.compress(FIRST) + compressor.flush(zlib.Z_SYNC_FLUSH)

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED, "Content-Encoding: gzip")
        await wire.chunk(first)
        await until(lambda: telemetry.value("sse.client.connections") == 1)
        await wire.chunk(b"\xff" * 50)
        await wire.chunk(b"")

    async with serving(answer) as server:
        with pytest.raises(RequestException):
            await read(asynchronous, server.url)
        assert await close_reason_of(telemetry) == "error"
    (span,) = telemetry.spans("SSE")
    assert span.attributes["error.type"] == "curl_cffi.requests.exceptions.HTTPError"


@both
async def test_a_loop_may_be_left_and_another_one_begun(
    asynchronous: bool, telemetry: Backend
) -> None:
    """The queue stays: only the body's end is the stream's."""
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        await go_on.wait()
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    def run(url: str) -> None:
        with curl_cffi.Session() as session, session.stream("GET", url) as response:
            for chunk in response.iter_content():
                assert chunk == FIRST
                break
            loop.call_soon_threadsafe(go_on.set)
            assert b"".join(response.iter_content()) == FIRST

    async with serving(answer) as server:
        if asynchronous:
            async with (
                curl_cffi.AsyncSession() as session,
                session.stream("GET", server.url) as response,
            ):
                async for chunk in response.aiter_content():
                    assert chunk == FIRST
                    break
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(response.aiter_content()), 0.1)
                go_on.set()
                assert await response.acontent() == FIRST
        else:
            await asyncio.to_thread(run, server.url)
        await assert_read(telemetry, server.port, FIRST * 2)


@both
async def test_what_is_used_wrongly_does_not_end(
    asynchronous: bool, server: StreamServer, telemetry: Backend
) -> None:
    """It raises what it would raise."""

    def run() -> None:
        with curl_cffi.Session() as session, session.stream("GET", server.url + "/all") as response:
            with pytest.raises(NotImplementedError):
                next(response.iter_content(decode_unicode=True))
            assert b"".join(response.iter_content()) == STREAM

    if asynchronous:
        async with (
            curl_cffi.AsyncSession() as session,
            session.stream("GET", server.url + "/all") as response,
        ):
            with pytest.raises(NotImplementedError):
                await anext(response.aiter_content(decode_unicode=True))
            assert await response.acontent() == STREAM
    else:
        await asyncio.to_thread(run)
    await assert_read(telemetry, server.port)


async def test_a_close_without_await_is_a_close(server: StreamServer, telemetry: Backend) -> None:
    """An asynchronous response has both."""
    async with curl_cffi.AsyncSession() as session:
        response = await session.get(server.url + "/endless", stream=True)
        assert await anext(response.aiter_content()) == FIRST
        hang_up(response)
        await response.astream_task
        response.close()
    await assert_read(telemetry, server.port, FIRST, reason="client_close")


class _Response(curl_cffi.Response):
    """A class of the application's own."""


async def test_other_responses_are_unmodified(server: StreamServer, telemetry: Backend) -> None:
    """They have the class and the attributes that they would have; a stream has them at its end.
    What is not read as a stream is none.
    """

    def run() -> None:
        with curl_cffi.Session(response_class=_Response) as session:
            whole = session.get(server.url + "/all")
            assert whole.content == STREAM
            other = session.get(server.url + "/html", stream=True)
            stream = session.get(server.url + "/all", stream=True)
            assert type(whole) is type(other) is _Response
            assert isinstance(stream, _Response)
            assert vars(stream).keys() - vars(other).keys() == {"_otel_sse"}
            assert b"".join(stream.iter_content()) == STREAM
            assert type(stream) is _Response
            assert vars(stream).keys() == vars(other).keys()
            assert b"".join(other.iter_content()) == b"hi"

    await asyncio.to_thread(run)
    await assert_read(telemetry, server.port)


@both
@pytest.mark.parametrize("stream", [False, True])
async def test_a_status_that_a_session_raises_for(
    stream: bool, asynchronous: bool, telemetry: Backend
) -> None:
    """Its code is the error, though the application has no response."""

    async def answer(wire: ServerSide) -> None:
        await wire.head("Content-Length: 2", status="404 Not Found", kind="html")
        await wire.send(b"no")

    def get(url: str) -> None:
        with curl_cffi.Session(raise_for_status=True) as session:
            session.get(url, headers=ACCEPT, stream=stream)

    async def get_async(url: str) -> None:
        async with curl_cffi.AsyncSession(raise_for_status=True) as session:
            await session.get(url, headers=ACCEPT, stream=stream)

    async with serving(answer) as server:
        with pytest.raises(HTTPError):
            await (get_async(server.url) if asynchronous else asyncio.to_thread(get, server.url))
    assert _failures(telemetry) == {("GET", "127.0.0.1", server.port, "404"): 1}
    assert telemetry.spans("SSE") == []


async def test_a_request_that_is_never_sent_is_no_failure(telemetry: Backend) -> None:
    """There is nothing that it could have reached."""
    session = curl_cffi.Session()
    session.close()
    with pytest.raises(curl_cffi.requests.exceptions.SessionClosed):
        session.get("http://127.0.0.1/", headers=ACCEPT)
    assert _failures(telemetry) == {}


@both
async def test_a_request_that_is_sent_again_is_one(asynchronous: bool, telemetry: Backend) -> None:
    """A session may try more than once; what it gives up for is recorded once."""

    async def answer(wire: ServerSide) -> None:
        if len(server.requests) > 1:
            await wire.head(f"Content-Length: {len(FIRST)}")
            await wire.send(FIRST)

    def run() -> bytes:
        with curl_cffi.Session(retry=1) as session:
            return b"".join(session.get(server.url, headers=ACCEPT, stream=True).iter_content())

    async with serving(answer) as server:
        if asynchronous:
            async with curl_cffi.AsyncSession(retry=1) as session:
                response = await session.get(server.url, headers=ACCEPT, stream=True)
                assert await response.acontent() == FIRST
        else:
            assert await asyncio.to_thread(run) == FIRST
        assert len(server.requests) == 2
        await assert_read(telemetry, server.port, FIRST)


class _Transport(httpx.BaseTransport):
    """Sends by curl_cffi."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def handle_request(self, request: Any) -> Any:
        response = self.session.get(str(request.url), stream=True)
        headers = {"Content-Type": response.headers["content-type"]}
        return httpx.Response(200, headers=headers, content=response.iter_content())


class _AsyncTransport(httpx.AsyncBaseTransport):
    def __init__(self, session: Any) -> None:
        self.session = session

    async def handle_async_request(self, request: Any) -> Any:
        response = await self.session.get(str(request.url), stream=True)
        headers = {"Content-Type": response.headers["content-type"]}
        return httpx.Response(200, headers=headers, content=response.aiter_content())


@both
async def test_a_transport_of_httpx_that_sends_by_it_counts_once(
    asynchronous: bool, server: StreamServer, telemetry: Backend
) -> None:
    """Each stream is the client's that the application reads."""

    def run(url: str) -> bytes:
        with curl_cffi.Session() as below, httpx.Client(transport=_Transport(below)) as session:
            return session.get(url).content

    url = server.url + "/all"
    if asynchronous:
        async with (
            curl_cffi.AsyncSession() as below,
            httpx.AsyncClient(transport=_AsyncTransport(below)) as session,
        ):
            assert (await session.get(url)).content == STREAM
    else:
        assert await asyncio.to_thread(run, url) == STREAM
    (span,) = await until(lambda: telemetry.spans("SSE"))
    assert span.attributes["sse.close.reason"] == "completed"
    assert table(telemetry, "io") == {("GET", "127.0.0.1", server.port): len(STREAM)}


@both
@pytest.mark.parametrize("ending", ["completed", "disconnected"])
async def test_http2(ending: str, asynchronous: bool, telemetry: Backend) -> None:
    """A reset of the stream is a break, though curl_cffi's error is of no connection."""

    async def answer(wire: ServerSide) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        # The server of these tests has read the first line of it.
        data = b"PRI * HTTP/2.0\r\n\r\n"
        while data:
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    headers = [(":status", "200"), ("content-type", "text/event-stream")]
                    connection.send_headers(event.stream_id, headers)
                    connection.send_data(event.stream_id, FIRST, ending == "completed")
                    if ending == "disconnected":
                        await wire.send(connection.data_to_send())
                        await until(lambda: telemetry.value("sse.client.messages") == 1)
                        connection.reset_stream(event.stream_id, 2)
                        await wire.send(connection.data_to_send())
                        return
            await wire.send(connection.data_to_send())
            data = await wire.reader.read(65536)

    async with serving(answer) as server:
        version = CurlHttpVersion.V2_PRIOR_KNOWLEDGE
        with contextlib.nullcontext() if ending == "completed" else pytest.raises(RequestException):
            assert await read(asynchronous, server.url, http_version=version) == FIRST
        assert await close_reason_of(telemetry) == ending
    (span,) = telemetry.spans("SSE")
    assert span.attributes["network.protocol.version"] == "2"
    assert span.attributes["sse.messages"] == 1
    assert "error.type" not in span.attributes
