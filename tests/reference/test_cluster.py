"""The reference server in several processes behind the shipped HAProxy, with a real Redis."""

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
from reference.balancer import HAProxy
from reference.served import RedisServer, Site, Worker, eventually, running, visiting

CLIENTS = 400
MESSAGES = 40


async def _read(site: Site, after: str, found: list[int]) -> None:
    async for event in site.events("?topic=a", after):
        found.append(int(event.data))
        if found[-1] == MESSAGES - 1:
            return


async def test_each_message_exactly_once_while_workers_stop(
    tmp_path: Path,
) -> None:
    """Four workers and 400 clients. One worker is killed and another is stopped while messages
    are published; every client comes back to the other two, by its last id, and has every message
    once and in order.
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
    """Behind HAProxy the limit for each address applies to the client's real one, whatever
    X-Forwarded-For it sends; a client that no worker takes gets the workers' own refusal.
    """
    async with _behind_haproxy(tmp_path, max_connections_per_client=1) as site:
        first = await RawClient.get(site.port, "/events", "X-Forwarded-For: 10.0.0.1")
        await first.until(b"retry: ")
        second = await RawClient.get(site.port, "/events", "X-Forwarded-For: 10.0.0.2")
        head = await asyncio.wait_for(second.until(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 503 ")
        await first.close()
        await second.close()


async def test_a_workers_own_pages_are_not_public(tmp_path: Path) -> None:
    """HAProxy serves no worker's dashboard, status and alerts, under any spelling of the path."""
    async with _behind_haproxy(tmp_path) as site:
        for path in ("/", "/status", "/status/events", "/alerts", "//status", "/healthz/../status"):
            client = await RawClient.get(site.port, path)
            head = await asyncio.wait_for(client.until(b"\r\n\r\n"), 10)
            assert head.startswith(b"HTTP/1.1 403 "), path
            await client.close()
        answer = await site.http.post(f"{site.url}/alerts", json={})
        assert answer.status_code == 403
        await site.publish("x")


async def test_a_late_health_check_does_not_take_a_worker_out(tmp_path: Path) -> None:
    """A worker that sends a message to very many clients answers a check that comes then late."""
    checked = 0

    async def late(_: web.Request) -> web.Response:
        nonlocal checked
        checked += 1
        await asyncio.sleep(1)
        return web.Response()

    app = web.Application()
    app.router.add_get("/healthz", late)
    app.router.add_get("/readyz", late)
    async with serve_aiohttp(app) as port:
        with HAProxy(tmp_path, port) as proxy:
            await until(lambda: checked == 6)
            for path in ("/healthz", "/readyz"):
                client = await RawClient.get(proxy.port, path)
                status = await asyncio.wait_for(client.until(b"\r\n"), 10)
                assert status == b"HTTP/1.1 200 OK\r\n"
                await client.close()


@pytest.mark.parametrize("outage", [signal.SIGKILL, signal.SIGSTOP], ids=["away", "hung"])
async def test_newcomers_in_a_redis_outage_are_served(
    outage: signal.Signals, tmp_path: Path
) -> None:
    """Without Redis, and with one that does not answer, no worker is taken out: a new client gets
    its stream at once, and its messages when Redis is back.
    """
    store = RedisServer(tmp_path)
    settings = {"redis_url": store.url, "proxy": "127.0.0.1", "heartbeat_seconds": 1}
    workers = [Worker(**settings) for _ in range(2)]
    with running(store, *workers):
        for worker in workers:
            async with visiting(worker.url):
                pass
        with HAProxy(tmp_path, *(each.port for each in workers)) as proxy:
            async with visiting(proxy.url) as site:
                store.process.send_signal(outage)
                if outage == signal.SIGKILL:
                    store.process.wait(20)
                # Some checks have seen it then.
                await asyncio.sleep(8)
                client = await RawClient.get(site.port, "/events?topic=a")
                head = await asyncio.wait_for(client.until(b"\r\n\r\n"), 10)
                assert head.startswith(b"HTTP/1.1 200 "), head
                if outage == signal.SIGKILL:
                    store.start()
                    await store.answers()
                else:
                    store.process.send_signal(signal.SIGCONT)

                async def published() -> bool:
                    body = {"topic": "a", "data": "back"}
                    answer = await site.http.post(f"{site.url}/publish", json=body)
                    return answer.status_code == 200

                await eventually(published, 60)
                await asyncio.wait_for(client.until(b"data: back\n\n"), 30)
                await client.close()


async def test_a_stopping_worker_gets_no_new_clients(tmp_path: Path) -> None:
    """While a worker drains, new clients are served by the other one, and see no refusal."""
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
