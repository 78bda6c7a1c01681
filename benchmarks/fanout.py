"""Slow clients among quick ones:

    python benchmarks/fanout.py [--clients 1000] [--rate 8] [--seconds 30] [--size 300]

``examples/server`` is a process under ``opentelemetry-instrument`` that exports to an OTLP receiver
which throws all of it away; the clients are another process. A tenth of them stops reading once all
have joined. So many messages a second are published; printed are how late the others had each
message (the delay of each delivery, from before it was published), the server's CPU, and its memory
beside the sum of its settings. The exit status is 1 where a quick client missed a message, or the
memory is beyond that sum. With ``--rate 0`` the clients are idle, and with ``--plain`` the server's
streams are not instrumented.
"""

import argparse
import asyncio
import json
import os
import re
import resource
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import aiohttp
import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from churn import EXAMPLES, SETTINGS, Discarding  # noqa: E402
from helpers.processes import INSTRUMENT  # noqa: E402
from helpers.servers import free_port  # noqa: E402
from startup import OURS  # noqa: E402

MESSAGE = re.compile(rb"data: (\d+) (\d+) ")
# What a client's queue may hold: small, so that a short run fills those of the slow ones.
QUEUE_BYTES = 256 * 1024
CONNECTION_BYTES = 32 * 1024
CLIENT_BUFFER_BYTES = 192 * 1024
HISTORY = 1000


class Client(asyncio.Protocol):
    """Counts what comes, and notes how late it is."""

    late = array("d")

    def __init__(self, joined: asyncio.Semaphore, path: str) -> None:
        self.received = 0
        self._path = path
        self._rest = b""
        self._joined: asyncio.Semaphore | None = joined

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._joined is not None and b"id: " in self._rest + data:
            self._joined.release()
            self._joined = None
        whole, _, self._rest = (self._rest + data).rpartition(b"\n")
        for _, sent in MESSAGE.findall(whole):
            self.received += 1
            Client.late.append((now - int(sent)) / 1e9)


async def crowd(port: int, path: str, count: int, stopped: int, *, awake: bool) -> None:
    """The process of the clients, of which some stop reading once all have joined: a line on its
    standard input is a step. ``awake``: it never sleeps, since to wake it is work of the server's
    kernel, and there is the more of it the slower the server is.
    """
    loop = asyncio.get_running_loop()
    joined = asyncio.Semaphore(0)
    clients = []
    for number in range(count):
        _, client = await loop.create_connection(lambda: Client(joined, path), "127.0.0.1", port)
        clients.append(client)
        if number % 100 == 99:
            await asyncio.sleep(0)
    for _ in clients:
        await joined.acquire()
    slow, quick = clients[:stopped], clients[stopped:]
    for each in slow:
        each.transport.pause_reading()
    print("joined", flush=True)
    if awake:
        _stay_awake(loop)
    await asyncio.to_thread(sys.stdin.readline)
    late = sorted(Client.late)
    at = {
        name: late[min(int(part * len(late)), len(late) - 1)] if late else 0.0
        for name, part in (("p50", 0.5), ("p99", 0.99), ("most", 1.0))
    }
    print(json.dumps({**at, "counts": sorted({each.received for each in quick})}), flush=True)


def _stay_awake(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(_stay_awake, loop)


async def start_crowd(
    port: int, path: str, count: int, stopped: int, *, awake: bool = False
) -> Any:
    """The process of ``crowd``."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--crowd", str(port), "--path", path),
        *("--clients", str(count), "--stopped", str(stopped), *["--awake"] * awake),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


def allow_many_descriptors() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def run(given: argparse.Namespace, process: Any, http: Any, port: int) -> int:
    server = psutil.Process(process.pid)
    base = server.memory_info().rss
    slow = given.clients // 10
    began = time.monotonic()
    reading = await start_crowd(port, "/events", given.clients, slow)
    assert reading.stdin is not None
    assert reading.stdout is not None
    assert await reading.stdout.readline() == b"joined\n"
    each = (server.memory_info().rss - base) / given.clients / 1024
    print(f"{given.clients} clients in {time.monotonic() - began:.1f} s, {each:.1f} KiB each")
    times, began = server.cpu_times(), time.monotonic()
    published = int(given.rate * given.seconds)
    for number in range(published):
        await asyncio.sleep(max(0.0, began + number / given.rate - time.monotonic()))
        data = f"{number} {time.monotonic_ns()} ".ljust(given.size, "x")
        async with http.post("/publish", json={"topic": "t", "data": data}) as answer:
            answer.raise_for_status()
    await asyncio.sleep(given.seconds if not published else 3)
    seconds = time.monotonic() - began
    now = server.cpu_times()
    used = now.user + now.system - times.user - times.system
    async with http.get("/status") as answer:
        status = await answer.json()
    reading.stdin.write(b"\n")
    report = json.loads(await reading.stdout.readline())
    await reading.wait()
    deliveries = published * (given.clients - slow)
    rss = server.memory_info().rss
    bound = base + given.clients * CONNECTION_BYTES + slow * (QUEUE_BYTES + CLIENT_BUFFER_BYTES)
    bound += HISTORY * (2 * given.size + 1024)
    print(
        f"{published} messages of {given.size} bytes in {seconds:.0f} s: {used / seconds:.0%} of a"
        " core" + (f", {1e6 * used / deliveries:.0f} us a delivery" if deliveries else "")
    )
    if deliveries:
        print(
            f"the nine tenths that read: p50 {1000 * report['p50']:.0f} ms, p99"
            f" {1000 * report['p99']:.0f} ms, most {1000 * report['most']:.0f} ms;"
            f" messages each: {report['counts']}"
        )
    print(
        f"memory: {rss / 2**20:.0f} MB, of at most {bound / 2**20:.0f} MB by the settings;"
        f" dropped: {status['messages']['dropped_by_reason']}; {status['health']['state']}:"
        f" {status['health']['reason']}"
    )
    return int(report["counts"] != [published] or rss > bound)


async def main(given: argparse.Namespace) -> int:
    allow_many_descriptors()
    if given.crowd:
        await crowd(given.crowd, given.path, given.clients, given.stopped, awake=given.awake)
        return 0
    port = free_port()
    with Discarding() as receiver:
        own = {
            "SSE_SERVER_PORT": str(port),
            "SSE_SERVER_MAX_CONNECTIONS": str(2 * given.clients),
            "SSE_SERVER_MAX_CONNECTIONS_PER_CLIENT": str(2 * given.clients),
            "SSE_SERVER_QUEUE_BYTES": str(QUEUE_BYTES),
            "SSE_SERVER_HISTORY": str(HISTORY),
        }
        env = {**os.environ, **SETTINGS, **receiver.environment, **own}
        if given.plain:
            env["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] += f",{OURS}"
        process = await asyncio.create_subprocess_exec(
            *(str(INSTRUMENT), sys.executable, "-m", "server"), cwd=EXAMPLES, env=env
        )
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
                while True:
                    try:
                        async with http.get("/healthz"):
                            break
                    except aiohttp.ClientConnectionError:
                        await asyncio.sleep(0.1)
                return await run(given, process, http, port)
        finally:
            process.terminate()
            await process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serves quick clients and slow ones.")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=8, help="messages a second")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--size", type=int, default=300, help="bytes of a message's data")
    parser.add_argument("--plain", action="store_true", help="without otel_sse's instrumentors")
    parser.add_argument("--crowd", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--path", default="", help=argparse.SUPPRESS)
    parser.add_argument("--stopped", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--awake", action="store_true", help=argparse.SUPPRESS)
    sys.exit(asyncio.run(main(parser.parse_args())))
