"""Tornado's client reads real streams: it pushes the pieces, and only the server ends a stream."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.client_readers import close_reason_of, instrumented
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
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError

ACCEPT = {"Accept": "text/event-stream"}


async def fetch(url: str, callback: Any = None, wait: float = 20, **options: Any) -> Any:
    """The response of any status."""
    client = AsyncHTTPClient(force_instance=True)
    return await client.fetch(
        url, streaming_callback=callback, request_timeout=wait, raise_error=False, **options
    )


async def fail(url: str, callback: Any = None, **options: Any) -> Exception:
    """What it raises without a response, or without the whole of it."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        await fetch(url, callback, **options)
    return raised.value


async def _read_pushed(url: str) -> bytes:
    taken = bytearray()
    await fetch(url, taken.extend)
    return bytes(taken)


async def _read_awaited(url: str) -> bytes:
    taken = bytearray()

    async def take(chunk: bytes) -> None:
        await asyncio.sleep(0)
        taken.extend(chunk)

    await fetch(url, take)
    return bytes(taken)


async def _read_whole(url: str) -> bytes:
    return bytes((await fetch(url)).body)


@pytest.mark.parametrize("path", ["/all", "/gzip", "/unicode", "/empty", "/redirect"])
@pytest.mark.parametrize("read", [_read_pushed, _read_awaited, _read_whole])
async def test_each_way_of_reading_is_counted_exactly(
    read: Callable[[str], Any], path: str, server: StreamServer, telemetry: Backend
) -> None:
    """By a callback that returns, one that is awaited, and without one; decoded."""
    expected = b"" if path == "/empty" else STREAM
    assert await read(server.url + path) == expected
    await assert_read(telemetry, server.port, expected)


async def test_what_is_not_decoded_is_not_parsed(server: StreamServer, telemetry: Backend) -> None:
    """Where the request asks for the body as it is."""
    body = (await fetch(server.url + "/gzip", decompress_response=False)).body
    assert body[:2] == b"\x1f\x8b"
    assert await close_reason_of(telemetry) == "completed"
    assert telemetry.value("sse.client.io") == len(body)
    assert telemetry.value("sse.client.messages") == 0


async def test_the_request_is_unmodified(server: StreamServer, telemetry: Backend) -> None:
    """Nothing is injected, and a request that resumes counts as resumed."""
    headers = {"last-event-id": "7"}
    with telemetry.tracer.start_as_current_span("caller") as caller:
        await fetch(server.url + "/all?key=secret", headers=headers)
    (request,) = server.requests
    assert "traceparent" not in request.headers
    span = await assert_read(telemetry, server.port, resumed=True)
    assert span.parent.span_id == caller.get_span_context().span_id
    assert "secret" not in span.to_json()


async def test_a_request_that_waits_for_another_has_its_own_caller(
    server: StreamServer, telemetry: Backend
) -> None:
    """A client sends so many at once; the next is sent where one of those ends."""
    client = AsyncHTTPClient(force_instance=True, max_clients=1)
    fetches, callers = [], []
    for name in ("first", "second"):
        with telemetry.tracer.start_as_current_span(name) as caller:
            callers.append(caller.get_span_context().span_id)
            fetches.append(client.fetch(server.url + "/all"))
    await asyncio.gather(*fetches)
    await until(lambda: len(telemetry.spans("SSE")) == 2)
    assert [span.parent.span_id for span in telemetry.spans("SSE")] == callers


@pytest.mark.parametrize("path", ["/cut", "/short"])
async def test_a_stream_that_the_server_cuts_is_disconnected(
    path: str, server: StreamServer, telemetry: Backend
) -> None:
    """Chunked or of a known length."""
    taken = bytearray()
    error = await fail(server.url + path, taken.extend)
    assert isinstance(error, HTTPStreamClosedError)
    await assert_read(telemetry, server.port, bytes(taken), reason="disconnected")


async def test_a_read_that_takes_too_long_is_a_timeout(
    server: StreamServer, telemetry: Backend
) -> None:
    """The time for the whole request; its stream is active until then."""
    task = asyncio.ensure_future(fail(server.url + "/endless", bytearray().extend, wait=2))
    await until(lambda: telemetry.value("sse.client.active_connections") == 1, running=task)
    assert isinstance(await task, HTTPTimeoutError)
    assert await close_reason_of(telemetry) == "timeout"
    (span,) = telemetry.spans("SSE")
    assert span.attributes["error.type"] == "tornado.simple_httpclient.HTTPTimeoutError"


@pytest.mark.parametrize("awaited", [False, True])
async def test_an_error_of_the_reader_is_a_close(
    awaited: bool, server: StreamServer, telemetry: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Tornado closes the connection for it, and logs it."""

    def look_up(_: bytes) -> None:
        raise LookupError

    async def look_up_later(_: bytes) -> None:
        await asyncio.sleep(0)
        raise LookupError

    await fail(server.url + "/endless", look_up_later if awaited else look_up)
    await assert_read(telemetry, server.port, FIRST, reason="client_close")
    assert all(record.name == "tornado.application" for record in caplog.records)


async def test_the_readers_own_work_is_not_in_the_gap(
    server: StreamServer, telemetry: Backend
) -> None:
    """While its callback is awaited, Tornado reads nothing for it."""
    worked = []

    async def work(_: bytes) -> None:
        began = time.perf_counter()
        await asyncio.sleep(0.1)
        worked.append(time.perf_counter() - began)

    began = time.perf_counter()
    await fetch(server.url + "/all", work)
    took = time.perf_counter() - began
    ((_, point),) = telemetry.points("sse.client.message.gap")
    assert sum(worked) >= 0.1
    assert point.sum + sum(worked) <= took


async def test_an_idle_stream_is_reported_meanwhile(server: StreamServer, backend: Backend) -> None:
    """Its stall and its segments."""
    with instrumented(backend, segment_seconds=0.2, stall_seconds=0.1):
        task = asyncio.ensure_future(fail(server.url + "/endless", bytearray().extend))
        await until(
            lambda: backend.metrics() and backend.events("sse.connection.stalled"), running=task
        )
        await until(lambda: backend.metrics() and len(backend.spans("SSE")) >= 2, running=task)
        await server.stop(cut=True)
        await task
    await server.start()


async def test_what_is_live_is_reported_to_its_end(server: StreamServer, backend: Backend) -> None:
    """Also after the instrumentation has been switched off."""
    with instrumented(backend):
        task = asyncio.ensure_future(fail(server.url + "/endless", bytearray().extend))
        await until(lambda: backend.value("sse.client.messages") == 1, running=task)
    await server.stop(cut=True)
    await task
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "disconnected"
    await server.start()


def _failures(backend: Backend) -> dict[tuple[Any, ...], int]:
    return table(backend, "connect.duration", "error.type")


@pytest.mark.parametrize("redirected", [False, True])
async def test_a_refused_connection(redirected: bool, telemetry: Backend) -> None:
    """Is recorded once, also behind a redirect, for the request of the application."""
    port = refusing_port()

    async def answer(wire: ServerSide) -> None:
        location = f"Location: http://127.0.0.1:{port}/"
        await wire.head(location, "Content-Length: 0", status="302 Found", kind="plain")

    async with serving(answer) as server:
        url = server.url if redirected else f"http://127.0.0.1:{port}/"
        assert isinstance(await fail(url, headers=ACCEPT), ConnectionRefusedError)
        expected = server.port if redirected else port
    assert _failures(telemetry) == {("GET", "127.0.0.1", expected, "ConnectionRefusedError"): 1}
    assert telemetry.spans("SSE") == []


async def test_a_status_that_refuses(telemetry: Backend) -> None:
    """Its code is the error; one that did not ask for a stream is none of ours."""

    async def answer(wire: ServerSide) -> None:
        await wire.head("Content-Length: 2", status="404 Not Found", kind="html")
        await wire.send(b"no")

    async with serving(answer) as server:
        with pytest.raises(HTTPClientError):
            await AsyncHTTPClient(force_instance=True).fetch(server.url, headers=ACCEPT)
        await fetch(server.url)
    assert _failures(telemetry) == {("GET", "127.0.0.1", server.port, "404"): 1}


async def test_a_status_that_comes_with_a_stream(server: StreamServer, telemetry: Backend) -> None:
    """Is one record, with the error, and the stream is reported as any other."""
    assert (await fetch(server.url + "/broken", headers=ACCEPT)).body == FIRST
    await assert_read(telemetry, server.port, FIRST, status=503, error_type="503")
    assert _failures(telemetry) == {("GET", "127.0.0.1", server.port, "503"): 1}


async def test_a_stream_that_breaks_is_no_failed_request(
    server: StreamServer, telemetry: Backend
) -> None:
    """Though Tornado makes a response 599 of both."""
    await fail(server.url + "/cut", headers=ACCEPT)
    assert _failures(telemetry) == {("GET", "127.0.0.1", server.port, None): 1}


async def test_a_server_that_never_answers(telemetry: Backend) -> None:
    """A time-out before the headers."""

    async def answer(wire: ServerSide) -> None:
        await wire.client_disconnected()

    async with serving(answer) as server:
        await fail(server.url, wait=0.5, headers=ACCEPT)
        ((attributes, point),) = telemetry.points("sse.client.connect.duration")
    assert attributes["error.type"] == "tornado.simple_httpclient.HTTPTimeoutError"
    assert point.sum >= 0.4


@pytest.mark.parametrize("url", ["http://", "/relative", "http://[::1", "http://localhost:x/"])
async def test_a_url_that_names_no_server(
    url: str, telemetry: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """It connects to none: only Tornado's own error comes of it."""
    await fail(url, headers=ACCEPT)
    assert _failures(telemetry) == {}
    assert [each for each in caplog.records if each.name == "otel_sse"] == []


async def test_another_media_type_is_not_reported(server: StreamServer, telemetry: Backend) -> None:
    """Only event streams are."""
    assert (await fetch(server.url + "/html")).body == b"hi"
    assert telemetry.spans("SSE") == telemetry.events() == []


async def test_continue_is_no_response(telemetry: Backend) -> None:
    """Tornado passes its headers on, too."""

    async def answer(wire: ServerSide) -> None:
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wire.reader.readexactly(8)
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    async with serving(answer) as server:
        response = await fetch(
            server.url, method="POST", body=b"question", expect_100_continue=True
        )
        assert response.body == FIRST
        await assert_read(telemetry, server.port, FIRST, method="POST")
