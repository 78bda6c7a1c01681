"""What is http.client's own: connections that are kept, methods, and what stands on it."""

import asyncio
import http.client
from collections.abc import Callable
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
import requests
import urllib3
from helpers.backend import Backend
from helpers.client_readers import close_reason_of
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

from otel_sse.frameworks import SSEHttpClientInstrumentor


@pytest.fixture
def connection(server: StreamServer) -> Any:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
    yield connection
    connection.close()


def get(connection: HTTPConnection, path: str, **headers: str) -> HTTPResponse:
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def _part(response: Any) -> None:
    assert response.read(len(FIRST)) == FIRST


async def test_closing_the_connection_is_a_close(
    connection: HTTPConnection, server: StreamServer, telemetry: Backend
) -> None:
    """Where it waits for the response's end to be used again; else it holds no response."""

    async def answer(wire: ServerSide) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        await wire.send(f"{CHUNKED}\r\n\r\n".encode())
        await wire.chunk(FIRST)
        await wire.client_disconnected()

    def read(port: int) -> None:
        kept = HTTPConnection("127.0.0.1", port)
        response = get(kept, "/")
        assert response.readline() == b"data: 1\n"
        kept.close()
        assert response.read() == b""

    async with serving(answer) as other:
        await asyncio.to_thread(read, other.port)
        assert await close_reason_of(telemetry) == "client_close"


async def test_requests_on_one_connection_are_streams_of_their_own(telemetry: Backend) -> None:
    """One after the other."""

    async def answer(wire: ServerSide) -> None:
        for number in range(2):
            if number:
                await wire.reader.readuntil(b"\r\n\r\n")
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
            await wire.send(b"Content-Length: %d\r\n\r\n%s" % (len(FIRST), FIRST))
        await wire.client_disconnected()

    def read(port: int) -> None:
        connection = HTTPConnection("127.0.0.1", port)
        for _ in range(2):
            assert get(connection, "/").read() == FIRST
        connection.close()

    async with serving(answer) as server:
        await asyncio.to_thread(read, server.port)
        base = ("GET", "127.0.0.1", server.port)
    assert table(telemetry, "connection.duration", "sse.close.reason") == {(*base, "completed"): 2}
    assert table(telemetry, "messages") == {base: 2}


async def test_the_request_is_described(
    connection: HTTPConnection, server: StreamServer, telemetry: Backend
) -> None:
    """Its method, path and headers, in any case."""

    def read() -> None:
        headers = {"LAST-EVENT-ID": "7", "Accept": "text/event-stream"}
        connection.request("POST", "/all?key=secret", body=b"question", headers=headers)
        assert connection.getresponse().read() == STREAM

    await asyncio.to_thread(read)
    span = await assert_read(telemetry, server.port, method="POST", resumed=True)
    assert span.attributes["url.path"] == "/all"
    assert "secret" not in span.to_json()


async def test_a_proxy_is_not_the_server(telemetry: Backend) -> None:
    """The request's own host is reported, by a whole URL or behind a tunnel."""

    async def answer(wire: ServerSide) -> None:
        if wire.request.path == "example.test:82":
            await wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
            await wire.reader.readuntil(b"\r\n\r\n")
        await wire.head(f"Content-Length: {len(FIRST)}")
        await wire.send(FIRST)

    def read(port: int) -> None:
        assert get(HTTPConnection("127.0.0.1", port), "http://example.test:81/x").read() == FIRST
        tunnel = HTTPConnection("127.0.0.1", port)
        tunnel.set_tunnel("example.test", 82)
        assert get(tunnel, "/x").read() == FIRST

    async with serving(answer) as server:
        await asyncio.to_thread(read, server.port)
    await until(lambda: len(telemetry.spans("SSE")) == 2)
    found = [
        (span.attributes["server.address"], span.attributes["server.port"])
        for span in telemetry.spans("SSE")
    ]
    assert found == [("example.test", 81), ("example.test", 82)]


@pytest.mark.parametrize("take", [lambda body: body.read(3), lambda body: body.read1(3)])
async def test_a_body_that_is_cut_short_is_disconnected(
    take: Callable[[Any], bytes],
    connection: HTTPConnection,
    server: StreamServer,
    telemetry: Backend,
) -> None:
    """Though http.client gives its reader an end like any other."""

    def read() -> None:
        response = get(connection, "/short")
        assert b"".join(iter(lambda: take(response), b"")) == FIRST

    await asyncio.to_thread(read)
    await assert_read(telemetry, server.port, FIRST, reason="disconnected")


async def test_a_head_has_no_stream(
    connection: HTTPConnection, server: StreamServer, telemetry: Backend
) -> None:
    """Whatever its content type."""

    def read() -> None:
        connection.request("HEAD", "/all")
        assert connection.getresponse().status == 200

    await asyncio.to_thread(read)
    assert telemetry.metrics() is not None
    assert telemetry.spans("SSE") == telemetry.events() == []


async def test_other_responses_are_unmodified(server: StreamServer, telemetry: Backend) -> None:
    """They have the class and the attributes that they would have; a stream has them at its end."""

    def read() -> None:
        connections = [HTTPConnection("127.0.0.1", server.port, timeout=20) for _ in range(2)]
        before = vars(connections[0]).keys()
        other, stream = get(connections[0], "/html"), get(connections[1], "/all")
        assert vars(connections[0]).keys() == vars(connections[1]).keys() == before
        assert type(other) is HTTPResponse
        assert isinstance(stream, HTTPResponse)
        assert repr(stream).startswith("<http.client.HTTPResponse object")
        assert vars(stream).keys() - vars(other).keys() == {"_otel_sse"}
        stream.read()
        assert type(stream) is HTTPResponse
        assert vars(stream).keys() == vars(other).keys()
        assert other.read() == b"hi"

    await asyncio.to_thread(read)
    await assert_read(telemetry, server.port)


@pytest.mark.parametrize("library", ["urllib3", "requests"])
async def test_what_urllib3_reads_is_left_to_its_own_hooks(
    library: str, server: StreamServer, backend: Backend
) -> None:
    """Also where those are off: its connections read chunks of their own, and decode."""
    SSEHttpClientInstrumentor().instrument(**backend.providers)
    try:

        def read() -> bytes:
            if library == "requests":
                return requests.get(server.url + "/all", timeout=20).content
            return urllib3.request("GET", server.url + "/all").data

        assert await asyncio.to_thread(read) == STREAM
        assert backend.spans("SSE") == backend.events() == []
        assert backend.value("sse.client.connections") == 0
    finally:
        SSEHttpClientInstrumentor().uninstrument()


async def test_an_error_before_the_request_is_the_callers(telemetry: Backend) -> None:
    """A connection that is used wrongly raises what it would raise."""
    with pytest.raises(http.client.CannotSendHeader):
        HTTPConnection("127.0.0.1").endheaders()
    with pytest.raises(http.client.ResponseNotReady):
        HTTPConnection("127.0.0.1").getresponse()
    assert telemetry.events() == []
