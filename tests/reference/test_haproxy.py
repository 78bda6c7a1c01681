"""What the shipped HAProxy does for clients: disconnects, refusals, health checks, HTTP/2.

Its workers are servers of the test, so that their state is the test's; ``test_cluster.py`` has the
reference server behind it.
"""

import asyncio
import json
import os
import re
import ssl
import subprocess
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from helpers.certificates import self_signed
from helpers.raw_client import RawClient
from helpers.tools import tool
from helpers.waiting import until
from playwright.async_api import async_playwright
from reference.balancer import HAProxy, fake_worker
from reference.served import EXAMPLES, eventually
from server.client import events

# More than the six connections that a browser opens to one host.
_TABS = 12


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of localhost that has signed itself, with its key."""
    return self_signed(tmp_path_factory.mktemp("tls"))


# --- disconnects ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_a_disconnected_client_is_closed_at_the_worker(how: str, tmp_path: Path) -> None:
    """Whichever way a client of a silent stream closes its connection, the worker's handler is
    cancelled at once (1 s is configured), not when heartbeats have failed for half a minute.
    """
    async with fake_worker() as worker:
        with HAProxy(tmp_path, worker.port) as proxy:
            await proxy.listens()
            client = await RawClient.get(proxy.port, "/events")
            await client.until(b"data: hello\n\n")
            assert worker.open == 1
            start = time.monotonic()
            if how == "reset":
                client.reset()
            elif how == "half":
                client.writer.write_eof()
            else:
                await client.close()
            await until(lambda: worker.disconnected == 1, 20)
            assert time.monotonic() - start < 5
            if how == "half":
                await client.close()


async def test_a_client_that_stays_is_not_disconnected(tmp_path: Path) -> None:
    """The second that a closed connection gets is no limit of an open, silent one."""
    async with fake_worker() as worker:
        with HAProxy(tmp_path, worker.port) as proxy:
            await proxy.listens()
            client = await RawClient.get(proxy.port, "/events")
            await client.until(b"data: hello\n\n")
            await asyncio.sleep(3)
            assert (worker.open, worker.disconnected) == (1, 0)
            await client.close()


async def _answers(http: httpx.AsyncClient, url: str, status: int) -> None:
    """Returns when the URL's status is this one."""

    async def answered() -> bool:
        return (await http.get(url)).status_code == status

    await eventually(answered)


# --- refusals ------------------------------------------------------------------------------


def _refusal(answer: httpx.Response, status: int) -> int:
    """The seconds to wait, of a refusal in the reference server's shape."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("application/json")
    assert list(json.loads(answer.text)) == ["error"]
    return int(answer.headers["Retry-After"])


async def test_no_worker_is_a_503_in_json(tmp_path: Path) -> None:
    """Without a worker that takes newcomers they get what a worker's own refusal looks like, with
    waits that differ, so that not all of them come back at once.
    """
    async with fake_worker() as worker:
        worker.ready = False
        with HAProxy(tmp_path, worker.port) as proxy:
            await proxy.listens()
            async with httpx.AsyncClient(trust_env=False) as http:
                await _answers(http, f"{proxy.url}/readyz", 503)
                waits = {_refusal(await http.get(f"{proxy.url}/events"), 503) for _ in range(40)}
    assert waits <= set(range(3, 8))
    assert len(waits) > 1


async def test_a_worker_that_dies_before_its_answer_is_a_502_in_json(tmp_path: Path) -> None:
    """A message that is published is sent to one worker only, and its sender may come back."""
    taken = 0

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        request = await reader.readuntil(b"\r\n\r\n")
        if request.startswith(b"POST"):
            taken += 1
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(drop, "127.0.0.1", 0)
    async with server:
        with HAProxy(tmp_path, server.sockets[0].getsockname()[1]) as proxy:
            await proxy.listens()
            async with httpx.AsyncClient(trust_env=False) as http:
                answer = await http.post(f"{proxy.url}/publish", json={})
    assert 3 <= _refusal(answer, 502) <= 7
    assert taken == 1


async def test_a_workers_own_refusal_reaches_the_client(tmp_path: Path) -> None:
    """Where every worker is full, the client gets the workers' answer with the workers' wait."""
    async with fake_worker() as worker:
        worker.status = 503
        with HAProxy(tmp_path, worker.port) as proxy:
            await proxy.listens()
            async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
                answer = await http.get(f"{proxy.url}/events")
                assert _refusal(answer, 503) == 17
    assert len(worker.requests) > 1


async def test_other_pages_are_refused_in_json(tmp_path: Path) -> None:
    """A path that is not public gets a 403 with a reason, and no worker sees it."""
    async with fake_worker() as worker:
        with HAProxy(tmp_path, worker.port) as proxy:
            await proxy.listens()
            async with httpx.AsyncClient(trust_env=False) as http:
                answer = await http.get(f"{proxy.url}/status")
    assert (answer.status_code, list(answer.json())) == (403, ["error"])
    assert worker.requests == []


async def test_the_projects_client_comes_back_after_the_wait(tmp_path: Path) -> None:
    """``server/client.py`` honours the proxy's Retry-After, and reads when a worker is there."""
    async with fake_worker() as worker:
        worker.ready = False
        with HAProxy(tmp_path, worker.port) as proxy:
            await proxy.listens()
            async with httpx.AsyncClient(trust_env=False) as http:
                await _answers(http, f"{proxy.url}/readyz", 503)
                answered = asyncio.Event()

                async def seen(response: httpx.Response) -> None:
                    if response.status_code == 503:
                        waits.append(int(response.headers["Retry-After"]))
                        answered.set()

                waits: list[int] = []
                http.event_hooks = {"response": [seen]}
                reading = events(http, f"{proxy.url}/events")
                first = asyncio.create_task(anext(reading))
                await asyncio.wait_for(answered.wait(), 20)
                worker.ready = True
                start = time.monotonic()
                event = await asyncio.wait_for(first, 30)
                waited = time.monotonic() - start
                await reading.aclose()
    assert event.data == "hello"
    assert waited >= waits[0] - 0.5


# --- health --------------------------------------------------------------------------------


async def test_full_workers_still_take_messages(tmp_path: Path) -> None:
    """A worker that is not ready for newcomers is alive: what is published goes to it, and its
    streams stay.
    """
    async with fake_worker() as worker:
        with HAProxy(tmp_path, worker.port) as proxy:
            await proxy.listens()
            client = await RawClient.get(proxy.port, "/events")
            await client.until(b"data: hello\n\n")
            worker.ready = False
            async with httpx.AsyncClient(trust_env=False) as http:
                await _answers(http, f"{proxy.url}/readyz", 503)
                assert (await http.get(f"{proxy.url}/healthz")).status_code == 200
                answer = await http.post(f"{proxy.url}/publish", json={})
                assert answer.status_code == 200
                assert worker.open == 1
                worker.ready = True
                await _answers(http, f"{proxy.url}/readyz", 200)
            await client.close()


async def test_newcomers_go_to_the_worker_that_is_ready(tmp_path: Path) -> None:
    """Of two workers the one that is not ready gets no new stream."""
    async with fake_worker() as full, fake_worker() as free:
        full.ready = False
        with HAProxy(tmp_path, full.port, free.port) as proxy:
            await proxy.listens()
            clients = []
            # Until its first check has failed a worker counts as ready.
            await asyncio.sleep(2)
            for _ in range(6):
                client = await RawClient.get(proxy.port, "/events")
                await client.until(b"data: hello\n\n")
                clients.append(client)
            assert (full.open, free.open) == (0, 6)
            for client in clients:
                await client.close()


# --- HTTP/2 --------------------------------------------------------------------------------


async def test_one_http2_connection_carries_many_streams(certificate: Path, tmp_path: Path) -> None:
    """Twelve streams of one client share its only connection; they end with it at the worker."""
    trust = ssl.create_default_context(cafile=str(certificate))
    async with fake_worker() as worker:
        with HAProxy(tmp_path, worker.port, certificate=certificate) as proxy:
            await proxy.listens()
            limits = httpx.Limits(max_connections=1)
            async with httpx.AsyncClient(
                http2=True, verify=trust, limits=limits, trust_env=False
            ) as http:
                url = f"https://localhost:{proxy.tls_port}/events"
                streams = [AsyncExitStack() for _ in range(_TABS)]
                for each in streams:
                    response = await each.enter_async_context(http.stream("GET", url, timeout=20))
                    assert response.http_version == "HTTP/2"
                    chunk = await anext(response.aiter_bytes())
                    assert b"data: hello\n\n" in chunk
                assert worker.open == _TABS
                for each in streams:
                    await each.aclose()
            await until(lambda: worker.open == 0, 20)


async def test_a_client_without_http2_is_served_over_tls(certificate: Path, tmp_path: Path) -> None:
    """The TLS address takes HTTP/1.1 too, with the same rules."""
    trust = ssl.create_default_context(cafile=str(certificate))
    async with fake_worker() as worker:
        with HAProxy(tmp_path, worker.port, certificate=certificate) as proxy:
            await proxy.listens()
            async with httpx.AsyncClient(verify=trust, trust_env=False) as http:
                base = f"https://localhost:{proxy.tls_port}"
                async with http.stream("GET", f"{base}/events", timeout=20) as response:
                    assert (response.status_code, response.http_version) == (200, "HTTP/1.1")
                assert (await http.get(f"{base}/status")).status_code == 403


@pytest.mark.parametrize("secure", [False, True], ids=["http1", "http2"])
async def test_a_browsers_seventh_stream(secure: bool, certificate: Path, tmp_path: Path) -> None:
    """In a real Chromium only six of twelve streams open without TLS, and all of them with it. One
    that the page closes is closed at its worker, while the others go on.
    """
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(fake_worker())
        proxy = stack.enter_context(HAProxy(tmp_path, worker.port, certificate=certificate))
        await proxy.listens()
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(
            executable_path=tool("chromium"), args=["--no-sandbox"], timeout=60_000
        )
        stack.push_async_callback(browser.close)
        context = await browser.new_context(ignore_https_errors=True)
        page = await context.new_page()
        base = f"https://localhost:{proxy.tls_port}" if secure else proxy.url
        # Any page of that origin: a refusal will do.
        await page.goto(f"{base}/")
        await page.evaluate(
            """tabs => {
                window.got = 0;
                window.sources = Array.from({ length: tabs }, () => {
                    const source = new EventSource("/events");
                    source.onmessage = () => { got += 1; };
                    return source;
                });
            }""",
            _TABS,
        )
        expected = _TABS if secure else 6
        await page.wait_for_function(f"got >= {expected}", timeout=60_000)
        # Time for a seventh, if there could be one.
        await asyncio.sleep(1)
        states = await page.evaluate("sources.map(({ readyState }) => readyState)")
        assert states.count(1) == expected
        assert worker.open == expected
        if secure:
            await page.evaluate("sources[0].close()")
            await until(lambda: worker.disconnected == 1, 20)
            assert worker.open == _TABS - 1


def test_haproxy_accepts_both_files_without_a_warning(certificate: Path) -> None:
    """The shipped files, as they are, together."""
    server = EXAMPLES / "server"
    files = ("-f", str(server / "haproxy.cfg"), "-f", str(server / "haproxy-tls.cfg"))
    env = {**os.environ, "SSE_CERTIFICATE": str(certificate)}
    checked = subprocess.run(
        [tool("haproxy"), "-c", *files], env=env, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert not re.search("WARNING|ALERT", checked.stderr + checked.stdout)
