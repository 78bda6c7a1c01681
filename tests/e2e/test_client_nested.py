"""Clients within clients: transports that send by another client, and applications that a transport
calls in this process.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import httpx2
import pytest
import requests
from helpers.backend import Backend
from helpers.client_streams import CHUNKED, FIRST, ServerSide, StreamServer, serving
from helpers.streams import STREAM
from helpers.waiting import until
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

packages = pytest.mark.parametrize("package", [httpx, httpx2])


def _paths(backend: Backend) -> list[Any]:
    return sorted(span.attributes["url.path"] for span in backend.spans("SSE GET"))


def _application(url: str, tasks: list[Any]) -> Starlette:
    async def read(path: str) -> str:
        async with httpx.AsyncClient() as session:
            return (await session.get(url + path)).text

    async def proxy(_: Any) -> JSONResponse:
        return JSONResponse(await read("/all"))

    async def begin(_: Any) -> JSONResponse:
        go_on = asyncio.Event()

        async def later() -> None:
            await go_on.wait()
            await read("/unicode")

        tasks.append((asyncio.create_task(later()), go_on, asyncio.get_running_loop()))
        return JSONResponse({})

    return Starlette(routes=[Route("/proxy", proxy), Route("/begin", begin)])


async def test_what_an_application_reads_while_a_test_client_calls_it(
    server: StreamServer, telemetry: Backend
) -> None:
    """Is recorded, and what its tasks read after that, too."""
    tasks: list[Any] = []

    def call() -> None:
        with TestClient(_application(server.url, tasks)) as session:
            assert session.get("/proxy").json() == STREAM.decode()
            session.get("/begin")
            task, go_on, loop = tasks[0]
            loop.call_soon_threadsafe(go_on.set)

            async def done() -> None:
                await task

            asyncio.run_coroutine_threadsafe(done(), loop).result(60)

    await asyncio.to_thread(call)
    await until(lambda: len(telemetry.spans("SSE GET")) == 2)
    assert _paths(telemetry) == ["/all", "/unicode"]


@packages
async def test_what_an_application_reads_while_an_asgi_transport_calls_it(
    package: Any, server: StreamServer, telemetry: Backend
) -> None:
    """The same where it runs in the reader's own task."""
    tasks: list[Any] = []
    transport = package.ASGITransport(app=_application(server.url, tasks))
    async with package.AsyncClient(transport=transport, base_url="http://app") as session:
        assert (await session.get("/proxy")).json() == STREAM.decode()
        await session.get("/begin")
        tasks[0][1].set()
        await tasks[0][0]
    assert _paths(telemetry) == ["/all", "/unicode"]


@packages
async def test_what_the_handler_of_a_mock_reads(
    package: Any, server: StreamServer, telemetry: Backend
) -> None:
    """Before it answers, by either client library: with a stream of its own, or with another
    content.
    """

    def handler(request: Any) -> Any:
        with package.Client() as session:
            body = session.get(server.url + "/all").content
        assert requests.get(server.url + "/unicode", timeout=20).content == body
        if request.url.path == "/stream":
            headers = {"Content-Type": "text/event-stream"}
            return package.Response(200, headers=headers, content=iter([body]))
        return package.Response(200, content=body)

    def read(path: str) -> None:
        with package.Client(transport=package.MockTransport(handler)) as session:
            assert session.get("http://mock" + path).content == STREAM

    await asyncio.to_thread(read, "/other")
    assert _paths(telemetry) == ["/all", "/unicode"]
    await asyncio.to_thread(read, "/stream")
    assert _paths(telemetry) == ["/all", "/all", "/stream", "/unicode", "/unicode"]


@packages
def test_what_a_wsgi_application_reads_while_it_yields(package: Any, telemetry: Backend) -> None:
    """Both are streams: the one that it reads, and the one that it answers with."""
    upstream = package.MockTransport(
        lambda _: package.Response(
            200, headers={"Content-Type": "text/event-stream"}, content=iter([FIRST, FIRST])
        )
    )

    def app(_: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        with (
            package.Client(transport=upstream) as session,
            session.stream("GET", "http://upstream/up") as response,
        ):
            yield from response.iter_bytes()

    with package.Client(transport=package.WSGITransport(app=app)) as session:
        assert session.get("http://app/down").content == FIRST * 2
    assert _paths(telemetry) == ["/down", "/up"]


PIECES = [b"id: %d\ndata: %d\n\n" % (number, number) for number in range(6)]


async def _two_at_a_time(wire: ServerSide) -> None:
    last = wire.request.headers.get("last-event-id")
    first = 0 if last is None else int(last) + 1
    await wire.head(CHUNKED)
    for piece in PIECES[first : first + 2]:
        await wire.chunk(piece)
    if first == 4:
        await wire.chunk(b"")


def _headers(chunk: bytes) -> dict[str, str]:
    return {"last-event-id": chunk.rpartition(b"id: ")[2].split(b"\n")[0].decode()}


@packages
async def test_a_transport_that_resumes_counts_once(package: Any, telemetry: Backend) -> None:
    """It reads by a client, and opens another stream where one was cut."""
    async with serving(_two_at_a_time) as server, package.AsyncClient() as inner:

        async def opened(headers: dict[str, str]) -> Any:
            request = inner.build_request("GET", server.url, headers=headers)
            return await inner.send(request, stream=True)

        class Body(package.AsyncByteStream):  # type: ignore[misc]
            def __init__(self, response: Any) -> None:
                self.response = response

            async def __aiter__(self) -> AsyncIterator[bytes]:
                chunk = b""
                while True:
                    try:
                        async for chunk in self.response.aiter_bytes():
                            yield chunk
                        return
                    except package.RemoteProtocolError:
                        self.response = await opened(_headers(chunk))

        class Resuming(package.AsyncBaseTransport):  # type: ignore[misc]
            async def handle_async_request(self, _: Any) -> Any:
                response = await opened({})
                return package.Response(200, headers=response.headers, stream=Body(response))

        async with package.AsyncClient(transport=Resuming()) as session:
            assert (await session.get("http://outer/")).content == b"".join(PIECES)
        assert len(server.requests) == 3
        (span,) = telemetry.spans("SSE GET")
        assert span.attributes["server.address"] == "outer"
        assert span.attributes["sse.messages"] == len(PIECES)
        assert telemetry.value("sse.client.messages") == len(PIECES)
        assert telemetry.value("sse.client.connections") == 1
        assert telemetry.value("sse.client.active_connections") == 0
        # Outside of such a transport it reads for itself.
        with pytest.raises(package.RemoteProtocolError):
            await inner.get(server.url)
    assert len(telemetry.spans("SSE GET")) == 2


@packages
async def test_a_sync_transport_that_resumes_counts_once(package: Any, telemetry: Backend) -> None:
    """The same in a thread, by requests within."""

    def body(url: str, response: Any) -> Iterator[bytes]:
        chunk = b""
        while True:
            try:
                for chunk in response.iter_content(None):
                    yield chunk
                return
            except requests.exceptions.ChunkedEncodingError:
                response = requests.get(url, stream=True, timeout=20, headers=_headers(chunk))

    async with serving(_two_at_a_time) as server:

        class Resuming(package.BaseTransport):  # type: ignore[misc]
            def handle_request(self, _: Any) -> Any:
                response = requests.get(server.url, stream=True, timeout=20)
                headers = {"Content-Type": response.headers["content-type"]}
                return package.Response(200, headers=headers, content=body(server.url, response))

        def read() -> None:
            with package.Client(transport=Resuming()) as session:
                assert session.get("http://outer/").content == b"".join(PIECES)

        await asyncio.to_thread(read)
        assert len(server.requests) == 3
    (span,) = telemetry.spans("SSE GET")
    assert span.attributes["sse.messages"] == len(PIECES)
    assert telemetry.value("sse.client.messages") == len(PIECES)


@packages
async def test_an_inner_stream_that_is_never_read(
    package: Any, server: StreamServer, telemetry: Backend
) -> None:
    """Of a transport that answers with another content it is a stream, which its reader closed; of
    one that answers with a stream it is a part of that.
    """

    class Unread(package.AsyncBaseTransport):  # type: ignore[misc]
        async def handle_async_request(self, request: Any) -> Any:
            async with (
                package.AsyncClient() as inner,
                inner.stream("GET", server.url + "/endless"),
            ):
                return package.Response(200, json={})

    async with package.AsyncClient(transport=Unread()) as session:
        assert (await session.get("http://outer/")).json() == {}
    (span,) = telemetry.spans("SSE GET")
    assert span.attributes["url.path"] == "/endless"
    assert span.attributes["sse.close.reason"] == "client_close"
