"""What clients that are no friends send, and pages of other origins, on real sockets."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from helpers.raw_client import RawClient
from helpers.waiting import until
from reference.served import QUICK, Worker, head_of, serving, visiting
from server import connections
from server.app import HEADS, build, warn_of_open_doors
from server.connections import BadRequests, Heads
from server.hosts import is_loopback
from server.settings import Settings

SHOP = "https://shop.example"


async def test_pages_of_elsewhere_may_not_publish() -> None:
    """A browser sends a page's text anywhere; it names the page's origin, which has to be the
    server's own, or the one that may read.
    """
    other = "https://shop.example"
    for allowed, asked in (
        ("", {None: 200, "own": 200, other: 403, "null": 403}),
        (other, {"own": 200, other: 200, "https://evil.example": 403}),
        ("*", {other: 200, "null": 200}),
    ):
        async with serving(replace(QUICK, cors_origin=allowed)) as site:
            for origin, status in asked.items():
                headers = {"Origin": site.url if origin == "own" else origin} if origin else {}
                answer = await site.http.post(
                    f"{site.url}/publish", content='{"topic": "a", "data": "x"}', headers=headers
                )
                assert answer.status_code == status


async def test_pages_of_the_named_origin_may_read() -> None:
    """They may, with the header by which they come back; others may not."""
    origin = "https://shop.example"
    async with serving(replace(QUICK, cors_origin=origin)) as site:
        allowed = f"Access-Control-Allow-Origin: {origin}\r\n".encode()
        assert allowed in await head_of(site)
        preflight = await head_of(site, method="OPTIONS")
        assert allowed in preflight
        assert b"Last-Event-ID" in preflight
    async with serving() as site:
        assert b"Allow-Origin" not in await head_of(site)


@pytest.mark.parametrize("allowed", [SHOP, "*"])
async def test_the_page_that_may_publish_can(allowed: str) -> None:
    """A browser asks before it sends JSON with a token, and shows the page the answer only where
    it bears the header: the preflight, the answer and a refusal all do.
    """
    settings = replace(QUICK, cors_origin=allowed, publish_token="s3cret")
    async with serving(settings) as site:
        ask = {
            "Origin": SHOP,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        preflight = await site.http.request("OPTIONS", f"{site.url}/publish", headers=ask)
        assert preflight.status_code == 204
        assert preflight.headers["Access-Control-Allow-Methods"] == "POST"
        sent = preflight.headers["Access-Control-Allow-Headers"].lower().split(", ")
        assert {"authorization", "content-type"} <= set(sent)
        statuses = []
        for token, body in (("s3cret", {"topic": "a", "data": "x"}), ("s3cret", {}), ("no", {})):
            headers = {"Origin": SHOP, "Authorization": f"Bearer {token}"}
            answer = await site.http.post(f"{site.url}/publish", json=body, headers=headers)
            statuses.append(answer.status_code)
            assert answer.headers["Access-Control-Allow-Origin"] == allowed
            assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After"
        assert statuses == [200, 400, 401]
        for query in ("?topics=a", "?topic=a%20b"):
            answer = await site.http.get(f"{site.url}/events{query}", headers={"Origin": SHOP})
            assert answer.status_code == 400
            assert answer.headers["Access-Control-Allow-Origin"] == allowed
        # Its figures are not for other pages.
        answer = await site.http.get(f"{site.url}/healthz", headers={"Origin": SHOP})
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_page_that_no_origin_is_set_for() -> None:
    """Its browser gets no header that would let it."""
    async with serving() as site:
        answer = await site.http.request("OPTIONS", f"{site.url}/publish", headers={"Origin": SHOP})
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("10.1.2.3", 200),
        ("localhost:1", 200),
        ("a.localhost", 200),
        ("prices.example:8080", 200),
        ("PRICES.example.", 200),
        ("evil.example:8080", 421),
        ("prices.example.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
    ],
)
async def test_a_name_that_is_not_the_servers(host: str, status: int) -> None:
    """A page of a site whose name has come to resolve to this server is of the server's own origin
    for its browser: it reads and publishes nothing, and no figures.
    """
    async with serving(replace(QUICK, allowed_hosts="other.example, prices.example")) as site:
        for path in ("/healthz", "/alerts"):
            answer = await site.http.get(f"{site.url}{path}", headers={"Host": host})
            assert answer.status_code == status
            if status == 421:
                assert "SSE_SERVER_ALLOWED_HOSTS" in answer.json()["error"]
        answer = await site.http.post(
            f"{site.url}/publish",
            json={"topic": "a", "data": "x"},
            headers={"Host": host, "Origin": f"http://{host}"},
        )
        assert answer.status_code == status


async def test_a_request_without_a_name() -> None:
    """A health check of HTTP/1.0 sends none, and no browser is such a client."""
    async with serving() as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_what_is_this_machine(address: str, loopback: bool) -> None:
    """Only loopback is; what cannot be read is not."""
    assert is_loopback(address) is loopback


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        (Settings(host="0.0.0.0"), True),
        (Settings(host="0.0.0.0", publish_token="x"), False),
        (Settings(host="127.0.0.1"), False),
        (Settings(host="localhost"), False),
    ],
)
def test_an_open_door_is_logged(
    settings: Settings, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that takes messages of the whole network has that in its log when it starts."""
    warn_of_open_doors(settings)
    assert ("SSE_SERVER_PUBLISH_TOKEN" in caplog.text) is warned


# --- requests that do not come, or are none ----------------------------------------------------


@contextlib.asynccontextmanager
async def _swept(app: web.Application) -> AsyncIterator[int]:
    """The application as ``__main__`` serves it; yields its port."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.SockSite(runner, _listening())
    await site.start()
    assert runner.server is not None
    sweeper = asyncio.create_task(app[HEADS].sweep(runner.server))
    yield runner.addresses[0][1]
    sweeper.cancel()
    await runner.cleanup()


def _listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.mark.parametrize("sent", [b"", b"GET /events HT", b"GET /events HTTP/1.1\r\nHost: a\r\n"])
async def test_a_head_that_does_not_come(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends no whole request is disconnected; one that did stays, also where it
    sends no other one.
    """
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    async with _swept(build(QUICK)) as port:
        stream = await RawClient.get(port, "/events")
        await stream.until(b"id: ")
        kept = await RawClient.get(port, "/healthz")
        await kept.until(b"ok")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        kept.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(kept.until(b"\r\n\r\n"), 10)
        assert not stream.writer.transport.is_closing()
        await stream.close()
        await kept.close()


async def test_a_sweep_forgets_what_has_ended() -> None:
    """Ten thousand connections that came and went take no memory."""
    heads = Heads()

    one, two = object(), object()
    heads._asked.update({one, two})
    server: Any = SimpleNamespace(connections=[one])
    sweeping = asyncio.create_task(heads.sweep(server))
    await until(lambda: heads._asked == {one})
    sweeping.cancel()


async def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of which the rest never comes is refused after a while."""
    monkeypatch.setattr("server.stream.BODY_SECONDS", 0.2)
    async with serving() as site:
        client = await RawClient.get(site.port, "/publish", "Content-Length: 100", method="POST")
        client.writer.write(b'{"topic": "a"')
        assert b" 408 " in await asyncio.wait_for(client.until(b"\r\n\r\n"), 10)
        await client.close()


async def test_what_is_no_request_is_one_line_of_the_log() -> None:
    """An over-long URL or header, and bytes that are no HTTP, are answered with 400, and the log of
    the process has a sentence for each and no traceback, nor what they would do to a terminal.
    """
    with Worker() as worker:
        async with visiting(worker.url) as site:
            for request in (
                b"GET /events?" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
                b"GET /\x1b[31m HTTP/1.1\r\n\r\n",
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
                writer.write(request)
                assert b" 400 " in await asyncio.wait_for(reader.readline(), 10)
                writer.close()
        log = worker.log
        assert log.count("A request was refused: ") == 3
        assert "Traceback" not in log
        assert "\x1b" not in log


def test_other_errors_keep_their_traceback() -> None:
    """Only what a client caused by its bytes is cut short."""
    record = logging.makeLogRecord({"exc_info": (ValueError, ValueError("ours"), None)})
    assert BadRequests().filter(record)
    assert record.exc_info is not None
