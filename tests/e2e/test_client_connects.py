"""Requests that ask for an event stream and get none."""

import asyncio
from typing import Any

import aiohttp
import pytest
from helpers.backend import Backend
from helpers.client_readers import CLIENTS, USUAL, client, instrumented
from helpers.client_streams import CHUNKED, FIRST, ServerSide, assert_read, serving, table
from helpers.servers import refusing_port
from helpers.waiting import until

ACCEPT = {"Accept": "application/json, text/event-stream"}


def _failures(backend: Backend) -> dict[tuple[Any, ...], int]:
    return table(backend, "connect.duration", "error.type")


async def _fail(name: str, url: str, **options: Any) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        await CLIENTS[name](USUAL[name], url, **options)
    return raised.value


@client
async def test_a_refused_connection(name: str, telemetry: Backend) -> None:
    """Its error is that of the library, or what made it give up; nothing else is recorded."""
    port = refusing_port()
    error = await _fail(name, f"http://127.0.0.1:{port}/", **ACCEPT)
    if name in ("urllib3", "urllib"):
        error = error.reason  # type: ignore[attr-defined]
    module = type(error).__module__.removeprefix("builtins")
    kind = f"{module}.{type(error).__qualname__}".lstrip(".")
    assert _failures(telemetry) == {("GET", "127.0.0.1", port, kind): 1}
    assert telemetry.value("sse.client.connections") == 0
    assert telemetry.spans("SSE") == []


@client
async def test_a_server_that_never_answers(name: str, telemetry: Backend) -> None:
    """A time-out before the headers."""

    async def answer(wire: ServerSide) -> None:
        await wire.client_disconnected()

    async with serving(answer) as server:
        await _fail(name, server.url, wait=0.5, **ACCEPT)
        ((attributes, point),) = telemetry.points("sse.client.connect.duration")
    assert "imeout" in attributes["error.type"]
    assert attributes["server.port"] == server.port
    assert point.sum >= 0.4


@client
@pytest.mark.parametrize("status", ["404 Not Found", "503 Service Unavailable"])
async def test_a_status_that_refuses(name: str, status: str, telemetry: Backend) -> None:
    """Its code is the error."""

    async def answer(wire: ServerSide) -> None:
        await wire.head("Content-Length: 2", status=status, kind="html")
        await wire.send(b"no")

    async with serving(answer) as server:
        await CLIENTS[name](USUAL[name], server.url, **ACCEPT)
    assert _failures(telemetry) == {("GET", "127.0.0.1", server.port, status[:3]): 1}
    assert telemetry.spans("SSE") == []


@client
async def test_a_status_that_comes_with_a_stream(name: str, telemetry: Backend) -> None:
    """Is one record, with the error, and the stream is reported as any other."""

    async def answer(wire: ServerSide) -> None:
        await wire.head(f"Content-Length: {len(FIRST)}", status="500 Internal Server Error")
        await wire.send(FIRST)

    async with serving(answer) as server:
        await CLIENTS[name](USUAL[name], server.url, **ACCEPT)
        await assert_read(telemetry, server.port, FIRST, status=500, error_type="500")
    assert _failures(telemetry) == {("GET", "127.0.0.1", server.port, "500"): 1}


@client
@pytest.mark.parametrize("url", ["http://", "/relative", "http://[::1"])
async def test_a_url_that_names_no_server(
    name: str, url: str, telemetry: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """It connects to none: only the library's own error comes of it."""
    await _fail(name, url, **ACCEPT)
    assert _failures(telemetry) == {}
    assert [each for each in caplog.records if each.name == "otel_sse"] == []


@client
async def test_what_did_not_ask_for_a_stream_is_not_recorded(name: str, telemetry: Backend) -> None:
    """An HTTP request of any other kind may fail as it likes."""
    await _fail(name, f"http://127.0.0.1:{refusing_port()}/")

    async def answer(wire: ServerSide) -> None:
        await wire.head("Content-Length: 2", status="404 Not Found", kind="html")
        await wire.send(b"no")

    async with serving(answer) as server:
        await CLIENTS[name](USUAL[name], server.url)
    assert _failures(telemetry) == {}


@client
async def test_what_succeeds_has_no_error(name: str, telemetry: Backend) -> None:
    """A stream that was asked for, and an answer of another kind."""

    async def answer(wire: ServerSide) -> None:
        stream = wire.request.path == "/"
        await wire.head(CHUNKED, kind="event-stream" if stream else "html")
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    async with serving(answer) as server:
        await CLIENTS[name](USUAL[name], server.url + "/html", **ACCEPT)
        await CLIENTS[name](USUAL[name], server.url + "/", **ACCEPT)
    assert _failures(telemetry) == {("GET", "127.0.0.1", server.port, None): 1}


@client
async def test_an_excluded_url_is_not_recorded(name: str, backend: Backend) -> None:
    """By the same option as a stream."""
    port = refusing_port()
    with instrumented(backend, excluded_urls="127.0.0.1/x"):
        await _fail(name, f"http://127.0.0.1:{port}/x", **ACCEPT)
        await _fail(name, f"http://127.0.0.1:{port}/y", **ACCEPT)
    ((_, count),) = _failures(backend).items()
    assert count == 1


async def test_a_cancelled_request_is_no_failure(telemetry: Backend) -> None:
    """The application gave it up."""

    async def answer(wire: ServerSide) -> None:
        await wire.client_disconnected()

    async with serving(answer) as server, aiohttp.ClientSession() as session:
        task = asyncio.ensure_future(session.get(server.url, headers=ACCEPT))
        await until(lambda: server.requests, running=task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert _failures(telemetry) == {}
