"""What is urllib3's own: responses that it reads itself, its retries, and what stands on it."""

import asyncio
import contextvars
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import requests
import urllib3
from helpers.backend import Backend
from helpers.client_readers import close_reason_of, read_with_urllib3
from helpers.client_streams import (
    CHUNKED,
    FIRST,
    ServerSide,
    StreamServer,
    assert_read,
    serving,
    table,
)
from helpers.servers import refusing_port
from helpers.streams import STREAM
from helpers.waiting import until
from ld_eventsource import SSEClient
from ld_eventsource.config import ConnectStrategy
from urllib3.connectionpool import connection_from_url
from urllib3.response import HTTPResponse

from otel_sse.frameworks import SSERequestsInstrumentor, SSEUrllib3Instrumentor


@pytest.fixture
def pool() -> Any:
    with urllib3.PoolManager(timeout=20) as pool:
        yield pool


def get(pool: Any, url: str, **options: Any) -> Any:
    return pool.request("GET", url, preload_content=False, **options)


@pytest.mark.parametrize("path", ["/all", "/gzip", "/unicode", "/empty"])
async def test_what_urllib3_reads_itself_is_counted(
    path: str, server: StreamServer, telemetry: Backend
) -> None:
    """As it does unless it is asked not to."""

    def data(response: Any) -> bytes:
        return bytes(response.data)

    expected = b"" if path == "/empty" else STREAM
    assert await read_with_urllib3(data, server.url + path, preload=True) == expected
    await assert_read(telemetry, server.port, expected)


async def test_what_urllib3_reads_itself_is_reported_meanwhile(telemetry: Backend) -> None:
    """Its stream is active as long as that takes."""
    go_on = asyncio.Event()

    async def answer(wire: ServerSide) -> None:
        await wire.head(f"Content-Length: {2 * len(FIRST)}")
        await wire.send(FIRST)
        await go_on.wait()
        await wire.send(FIRST)

    async with serving(answer) as server:
        task = asyncio.ensure_future(read_with_urllib3(bytes, server.url, preload=True))
        await until(lambda: telemetry.value("sse.client.active_connections") == 1, running=task)
        go_on.set()
        await asyncio.gather(task, return_exceptions=True)
        await assert_read(telemetry, server.port, FIRST * 2)


async def test_what_breaks_while_urllib3_reads_it_is_tried_again(telemetry: Backend) -> None:
    """Each response is a stream, and the failure is none of a request."""
    count = 0

    async def answer(wire: ServerSide) -> None:
        nonlocal count
        count += 1
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        if count > 1:
            await wire.chunk(b"")

    async with serving(answer) as server:
        await read_with_urllib3(
            lambda response: response.data, server.url, preload=True, Accept="text/event-stream"
        )
        reasons = table(telemetry, "connection.duration", "sse.close.reason")
        base = ("GET", "127.0.0.1", server.port)
    assert reasons == {(*base, "disconnected"): 1, (*base, "completed"): 1}
    assert table(telemetry, "connect.duration", "error.type") == {(*base, None): 2}


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("by", ["status", "header", "redirect"])
async def test_a_response_that_urllib3_discards_is_no_stream(
    by: str, preload: bool, telemetry: Backend
) -> None:
    """It sends the request again for a status, or for another place, in the pool or above it."""
    count = 0

    async def answer(wire: ServerSide) -> None:
        nonlocal count
        count += 1
        if count == 1 and by == "redirect":
            await wire.head("Location: /end", "Content-Length: 0", status="302 Found")
        elif count == 1:
            extra = ["Retry-After: 0"] if by == "header" else []
            length = f"Content-Length: {len(FIRST)}"
            await wire.head(length, *extra, status="503 Service Unavailable")
            await wire.send(FIRST)
        else:
            await wire.head(CHUNKED)
            await wire.chunk(FIRST * 2)
            await wire.chunk(b"")

    def read(url: str) -> None:
        retries = urllib3.Retry(3, status_forcelist=[503] if by == "status" else [])
        with connection_from_url(url) as pool:
            response = pool.request("GET", "/", preload_content=preload, retries=retries)
            assert response.data == FIRST * 2

    async with serving(answer) as server:
        await asyncio.to_thread(read, server.url)
        span = await assert_read(telemetry, server.port, FIRST * 2)
    assert span.attributes["url.path"] == ("/end" if by == "redirect" else "/")
    assert count == 2


@pytest.mark.parametrize("kinds", [[SSEUrllib3Instrumentor], [SSERequestsInstrumentor]])
@pytest.mark.parametrize("path", ["/all", "/gzip", "/unicode"])
async def test_requests_is_counted_by_either_instrumentor(
    path: str, kinds: list[Any], server: StreamServer, backend: Backend
) -> None:
    """One of the two is enough; both are in every other test."""
    used = [kind() for kind in kinds]
    for each in used:
        each.instrument(**backend.providers)
    try:

        def read() -> None:
            with requests.get(server.url + path, stream=True, timeout=20) as response:
                assert b"".join(response.iter_content(64)) == STREAM

        await asyncio.to_thread(read)
        await assert_read(backend, server.port)
    finally:
        for each in used:
            each.uninstrument()


class _Buffering(requests.adapters.HTTPAdapter):
    """Answers with a body of its own, as adapters of tests and caches do."""

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        response = super().build_response(req, resp)
        response.raw = io.BytesIO(resp.read(decode_content=True))
        return response


async def test_an_adapters_own_body_is_counted(server: StreamServer, telemetry: Backend) -> None:
    """It is none of urllib3: what requests reads of it counts."""

    def read() -> None:
        with requests.Session() as session:
            session.mount("http://", _Buffering())
            with session.get(server.url + "/all", stream=True, timeout=20) as response:
                assert b"".join(response.iter_content(64)) == STREAM

    await asyncio.to_thread(read)
    await until(lambda: telemetry.spans("SSE"))
    (span,) = telemetry.spans("SSE")
    assert span.attributes["sse.io"] == len(STREAM)
    assert span.attributes["sse.close.reason"] == "completed"


def _release(response: Any) -> None:
    response.release_conn()


def _misuse(response: Any) -> None:
    with pytest.raises(urllib3.exceptions.ResponseNotChunked):
        next(response.read_chunked())


def _wrong_type(response: Any) -> None:
    assert response.read(0) == b""


@pytest.mark.parametrize("act", [_release, _misuse, _wrong_type])
async def test_what_does_not_end_a_body_does_not_end_its_stream(
    act: Callable[[Any], None], pool: Any, server: StreamServer, telemetry: Backend
) -> None:
    """It is read on after it."""

    def read() -> None:
        response = get(pool, server.url + "/unicode")
        assert response.read(10) == STREAM[:10]
        act(response)
        assert telemetry.value("sse.client.active_connections") == 1
        assert response.read() == STREAM[10:]

    await asyncio.to_thread(read)
    await assert_read(telemetry, server.port)


async def test_a_body_that_is_cut_short_is_disconnected(
    pool: Any, server: StreamServer, telemetry: Backend
) -> None:
    """Also where urllib3 is asked not to raise for it."""

    def read() -> None:
        response = get(pool, server.url + "/short", enforce_content_length=False)
        assert b"".join(iter(lambda: response.read(3), b"")) == FIRST

    await asyncio.to_thread(read)
    await assert_read(telemetry, server.port, FIRST, reason="disconnected")


async def test_what_is_drained_is_given_up(
    pool: Any, server: StreamServer, telemetry: Backend
) -> None:
    """Its reader gets no more of it."""

    def read() -> None:
        response = get(pool, server.url + "/unicode")
        assert response.read(10) == STREAM[:10]
        response.drain_conn()

    await asyncio.to_thread(read)
    assert await close_reason_of(telemetry) == "client_close"
    assert telemetry.value("sse.client.io") == 10


@pytest.mark.skipif(not hasattr(HTTPResponse, "shutdown"), reason="this urllib3 has no shutdown")
async def test_a_shutdown_by_another_thread_is_a_close(
    pool: Any, server: StreamServer, telemetry: Backend
) -> None:
    """It wakes the reader, which finds the end of the network connection."""
    begun: list[Any] = []

    def read() -> None:
        response = get(pool, server.url + "/endless")
        for _ in response:
            begun.append(response)

    task = asyncio.ensure_future(asyncio.to_thread(read))
    await until(lambda: begun, running=task)
    await asyncio.to_thread(begun[0].shutdown)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        await task
    await assert_read(telemetry, server.port, FIRST, reason="client_close")


async def test_a_broken_off_loop_may_be_read_on(
    pool: Any, server: StreamServer, telemetry: Backend
) -> None:
    """Where the body has a known length, urllib3 keeps the connection open."""

    def read() -> None:
        response = get(pool, server.url + "/unicode")
        for chunk in response.stream(7):
            assert chunk == STREAM[:7]
            break
        assert response.read() == STREAM[7:]

    await asyncio.to_thread(read)
    await assert_read(telemetry, server.port)


async def test_a_proxy_is_not_the_server(telemetry: Backend) -> None:
    """The request's own host is reported."""

    async def answer(wire: ServerSide) -> None:
        await wire.head(f"Content-Length: {len(FIRST)}")
        await wire.send(FIRST)

    def read(url: str) -> None:
        with urllib3.ProxyManager(url) as proxy:
            assert get(proxy, "http://example.test:81/all").read() == FIRST

    async with serving(answer) as server:
        await asyncio.to_thread(read, server.url)
    await until(lambda: telemetry.spans("SSE"))
    (span,) = telemetry.spans("SSE")
    assert span.attributes["server.address"] == "example.test"
    assert span.attributes["server.port"] == 81
    assert span.attributes["url.path"] == "/all"


async def test_arguments_by_name(server: StreamServer, telemetry: Backend) -> None:
    """As botocore calls a pool, and reads what it gets undecoded."""

    def read() -> None:
        with connection_from_url(server.url) as pool:
            response = pool.urlopen(
                method="GET",
                url="/all?key=secret",
                body=None,
                headers={"Last-Event-ID": "7", "Accept": b"text/event-stream"},
                retries=urllib3.Retry(False),
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
                chunked=False,
            )
            assert response.read() == STREAM

    await asyncio.to_thread(read)
    span = await assert_read(telemetry, server.port, resumed=True)
    assert span.attributes["url.path"] == "/all"


async def test_other_responses_are_unmodified(
    pool: Any, server: StreamServer, telemetry: Backend
) -> None:
    """They have the class and the attributes that they would have; a stream has them at its end."""

    def read() -> list[Any]:
        other, stream = get(pool, server.url + "/html"), get(pool, server.url + "/all")
        assert type(other) is HTTPResponse
        assert isinstance(stream, HTTPResponse)
        assert repr(stream).startswith("<urllib3.response.HTTPResponse object")
        assert vars(stream).keys() - vars(other).keys() == {"_otel_sse"}
        stream.read()
        assert type(stream) is HTTPResponse
        assert vars(stream).keys() == vars(other).keys()
        other.read()
        for headers in ({"content-type": "text/event-stream"}, [("content-type", "x")], None):
            made = HTTPResponse(io.BytesIO(b"x"), headers=headers)
            assert made.data == b"x"
        return [other, stream]

    await asyncio.to_thread(read)
    await assert_read(telemetry, server.port)


@pytest.mark.parametrize("answers", [True, False])
async def test_a_request_that_is_over_keeps_no_pool(
    server: StreamServer, telemetry: Backend, answers: bool
) -> None:
    """Threads that urllib3-future starts within a call may keep its context variables for long."""
    contexts = []

    class Pool(urllib3.HTTPConnectionPool):
        def _get_conn(self, timeout: float | None = None) -> Any:
            contexts.append(contextvars.copy_context())
            return super()._get_conn(timeout)

    def send() -> weakref.ref[Pool]:
        pool = Pool("127.0.0.1", server.port if answers else refusing_port())
        if answers:
            assert pool.urlopen("GET", "/html").status == 200
        else:
            with pytest.raises(urllib3.exceptions.MaxRetryError):
                pool.urlopen("GET", "/html", retries=0)
        pool.close()
        return weakref.ref(pool)

    pool = await asyncio.to_thread(send)
    gc.collect()
    assert contexts
    assert pool() is None


async def test_launchdarkly_is_counted(telemetry: Backend) -> None:
    """Its synchronous client reads by urllib3, and closes from another thread."""

    async def answer(wire: ServerSide) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST * 3)
        await wire.client_disconnected()

    def read(url: str) -> list[str]:
        client = SSEClient(ConnectStrategy.http(url, pool=urllib3.PoolManager()))
        events = client.events
        try:
            return [next(iter(events)).data for _ in range(3)]
        finally:
            client.close()

    async with serving(answer) as server:
        assert await asyncio.to_thread(read, server.url) == ["1"] * 3
        await assert_read(telemetry, server.port, FIRST * 3, reason="client_close")
