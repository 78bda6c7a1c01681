"""Workers as processes behind the shipped HAProxy, with a real Redis."""

import asyncio
import contextlib
import signal
import time
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp
from helpers.waiting import until
from reference.served import HAProxy, RedisServer, Site, Worker, running, visiting

CLIENTS = 400
MESSAGES = 40


async def _read(site: Site, after: str, found: list[int]) -> None:
    async for event in site.events("?topic=a", after):
        found.append(int(event.data))
        if found[-1] == MESSAGES - 1:
            return


async def test_each_message_exactly_once_whatever_becomes_of_the_workers(tmp_path: Path) -> None:
    """Four workers and 400 clients. One worker is killed and another is stopped while messages
    are published; every client comes back to those that remain, by its last id, and has every
    message once and in order.
    """
    store = RedisServer(tmp_path)
    settings = {
        "redis_url": store.url,
        "proxy": "127.0.0.1",
        "max_connections_per_client": CLIENTS,
        "retry_seconds": 0.5,
    }
    workers = [Worker(**settings) for _ in range(4)]
    proxy = HAProxy(tmp_path, *(each.port for each in workers))
    with running(store, *workers):
        for worker in workers:
            async with visiting(worker.url):
                pass
        with proxy:
            async with visiting(proxy.url) as site:
                asked = 0

                async def ask(request: object) -> None:
                    nonlocal asked
                    asked += "/events" in str(getattr(request, "url", ""))

                site.http.event_hooks = {"request": [ask]}
                start = await site.publish("start")
                found: list[list[int]] = [[] for _ in range(CLIENTS)]
                reading = [asyncio.create_task(_read(site, start, each)) for each in found]
                await site.publish("0")
                await until(lambda: all(found), 60)
                assert asked == CLIENTS
                for number in range(1, MESSAGES):
                    if number == 10:
                        workers[0].end(signal.SIGKILL)
                    if number == 20:
                        workers[1].process.send_signal(signal.SIGTERM)
                    await site.publish(str(number))
                    await asyncio.sleep(0.05)
                await asyncio.wait_for(asyncio.gather(*reading), 60)
                assert workers[1].process.wait(20) == 0, workers[1].log
    assert found == [list(range(MESSAGES))] * CLIENTS
    # Each of the two had its share of the clients, and those came back.
    assert asked >= CLIENTS * 5 // 4


@contextlib.asynccontextmanager
async def _behind_haproxy(folder: Path, **settings: object) -> AsyncIterator[Site]:
    """One worker, through HAProxy."""
    worker = Worker(proxy="127.0.0.1", batch_seconds=0, **settings)
    with worker:
        async with visiting(worker.url):
            pass
        proxy = HAProxy(folder, worker.port)
        with proxy:
            async with visiting(proxy.url) as site:
                yield site


def _plain(chunk: bytes) -> bytes:
    return chunk


@pytest.mark.parametrize("coding", ["", "gzip"])
async def test_haproxy_holds_nothing_back(coding: str, tmp_path: Path) -> None:
    """Each message is at the client, whole, before the next is published, plain or coded."""
    async with _behind_haproxy(tmp_path, content_coding=coding, compress_from=0) as site:
        client = await RawClient.get(site.port, "/events", "Accept-Encoding: gzip")
        head = await client.until(b"\r\n\r\n")
        assert (b"content-encoding: gzip" in head.lower()) == bool(coding)
        decode: Callable[[bytes], bytes] = zlib.decompressobj(31).decompress if coding else _plain
        plain = b""
        while plain.count(b"\n\n") < 2:
            plain += decode(await _chunk(client))
        for number in range(10):
            await site.publish(f"{number} {'x' * 3000}")
            plain = b""
            while not plain.endswith(b"\n\n"):
                plain += decode(await _chunk(client))
            assert plain.count(b"\n\n") == 1
            assert f"data: {number} xxx".encode() in plain
        await client.close()


async def _chunk(client: RawClient) -> bytes:
    size = int(await asyncio.wait_for(client.until(b"\r\n"), 5), 16)
    chunk = await client.reader.readexactly(size)
    await client.until(b"\r\n")
    return chunk


async def test_a_client_cannot_choose_its_address(tmp_path: Path) -> None:
    """Behind HAProxy the limit for each address is for the client's own, whatever header it has; a
    client that is refused gets a 503 where no other worker takes it.
    """
    async with _behind_haproxy(tmp_path, max_connections_per_client=1) as site:
        first = await RawClient.get(site.port, "/events", "X-Forwarded-For: 10.0.0.1")
        await first.until(b"retry: ")
        second = await RawClient.get(site.port, "/events", "X-Forwarded-For: 10.0.0.2")
        head = await asyncio.wait_for(second.until(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 503 ")
        await first.close()
        await second.close()


async def test_a_workers_own_pages_are_not_for_all(tmp_path: Path) -> None:
    """HAProxy shows no client a worker's dashboard, status and alerts, however it is asked."""
    async with _behind_haproxy(tmp_path) as site:
        for path in ("/", "/status", "/status/events", "/alerts", "//status", "/healthz/../status"):
            client = await RawClient.get(site.port, path)
            head = await asyncio.wait_for(client.until(b"\r\n\r\n"), 10)
            assert head.startswith(b"HTTP/1.1 403 "), path
            await client.close()
        answer = await site.http.post(f"{site.url}/alerts", json={})
        assert answer.status_code == 403
        await site.publish("x")


async def test_a_worker_that_answers_late_is_not_left(tmp_path: Path) -> None:
    """One that sends a message to very many has no time for a health check that comes then."""
    checked = 0

    async def late(_: web.Request) -> web.Response:
        nonlocal checked
        checked += 1
        await asyncio.sleep(1)
        return web.Response()

    app = web.Application()
    app.router.add_get("/healthz", late)
    async with serve_aiohttp(app) as port:
        with HAProxy(tmp_path, port) as proxy:
            await until(lambda: checked == 3)
            client = await RawClient.get(proxy.port, "/healthz")
            assert await asyncio.wait_for(client.until(b"\r\n"), 10) == b"HTTP/1.1 200 OK\r\n"
            await client.close()


async def test_a_stopping_worker_is_left_by_the_balancer_first(tmp_path: Path) -> None:
    """While it drains, a new client is served by another worker, and sees no refusal."""
    store = RedisServer(tmp_path)
    settings = {"redis_url": store.url, "proxy": "127.0.0.1", "drain_seconds": 2}
    workers = [Worker(**settings) for _ in range(2)]
    with running(store, *workers):
        for worker in workers:
            async with visiting(worker.url):
                pass
        proxy = HAProxy(tmp_path, *(each.port for each in workers))
        with proxy:
            async with visiting(proxy.url) as site:
                workers[0].process.send_signal(signal.SIGTERM)
                statuses = []
                deadline = time.monotonic() + 30
                while workers[0].process.poll() is None:
                    assert time.monotonic() < deadline
                    client = await RawClient.get(site.port, "/events")
                    statuses.append((await client.until(b"\r\n"))[9:12])
                    await client.close()
                    await asyncio.sleep(0.05)
                assert len(statuses) > 5
                assert set(statuses) == {b"200"}
                assert workers[0].process.returncode == 0
