"""The memory of the reference server while clients come and go:

    python benchmarks/churn.py [--minutes 20] [--rate 30] [--file churn.csv]

``examples/server`` is a process under ``opentelemetry-instrument`` that exports to an OTLP receiver
which throws all of it away. So many clients a second connect and disconnect after ten seconds on
average; three messages of 2 to 38 KB a second fill the history, and every five minutes 300 clients
come at once and 100 messages with them. Each three seconds a line of what /status has goes to the
file; the exit status is 1 where a leak was reported, or memory grew by more than a tenth between
the second and the last quarter.
"""

import argparse
import asyncio
import csv
import os
import random
import resource
import sys
import time
from email.message import Message
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from helpers.otlp import Receiver  # noqa: E402
from helpers.processes import CONTRIB, INSTRUMENT  # noqa: E402
from helpers.servers import free_port  # noqa: E402

EXAMPLES = HERE.parent / "examples"
COLUMNS = ("at", "rss", "heap", "connections", "history", "queued", "transport")
STAY, BURST_EVERY, BURST, BURST_MESSAGES = 10.0, 300.0, 300, 100
SETTINGS = {
    "SSE_SERVER_COMPRESS_FROM": "0",
    "SSE_SERVER_MAX_CONNECTIONS_PER_CLIENT": "10000",
    "OTEL_PYTHON_SSE_EXCLUDED_URLS": "/status/events",
    "OTEL_PYTHON_SYSTEM_METRICS_EXCLUDED_METRICS": "system.*",
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": CONTRIB,
    "OTEL_METRIC_EXPORT_INTERVAL": "15000",
}


class Discarding(Receiver):
    """Takes everything and keeps nothing."""

    def take(self, path: str, headers: Message, body: bytes) -> bytes:
        return b""


class Client(asyncio.Protocol):
    """Reads, and disconnects after a while."""

    received = 0
    refused = 0

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first = True

    def connection_made(self, transport: Any) -> None:
        transport.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        asyncio.get_running_loop().call_later(self._seconds, transport.close)

    def data_received(self, data: bytes) -> None:
        if self._first:
            Client.refused += not data.startswith(b"HTTP/1.1 200")
            self._first = False
        Client.received += len(data)


class Load:
    """What is done to the server."""

    def __init__(self, port: int, rate: float, http: aiohttp.ClientSession) -> None:
        self._port, self._rate, self._http = port, rate, http
        self.opened = 0

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        seconds = min(60.0, random.expovariate(1 / STAY))
        await loop.create_connection(lambda: Client(seconds), "127.0.0.1", self._port)
        self.opened += 1

    async def connect(self) -> None:
        while True:
            await asyncio.sleep(random.expovariate(self._rate))
            await self._open()

    async def publish(self) -> None:
        while True:
            await asyncio.sleep(random.expovariate(3))
            await self._message(random.randint(2000, 38_000))

    async def burst(self) -> None:
        while True:
            await asyncio.sleep(BURST_EVERY)
            for _ in range(BURST):
                await self._open()
            for _ in range(BURST_MESSAGES):
                await self._message(random.randint(200, 2000))

    async def _message(self, size: int) -> None:
        body = {"topic": "churn", "data": "x" * size}
        async with self._http.post("/publish", json=body) as answer:
            answer.raise_for_status()


def row(status: dict[str, Any]) -> list[float]:
    own, memory = status["server"], status["memory"]

    def value(name: str) -> float:
        return float(own.get(name, {}).get("value", 0.0))

    return [
        status["process"]["uptime_seconds"],
        memory["rss"]["bytes"],
        memory["heap"]["bytes"],
        status["connections"]["active"],
        value("server.history.size"),
        value("server.queue.size"),
        status["backlog"]["bytes_by_layer"].get("transport", 0),
    ]


async def record(http: aiohttp.ClientSession, seconds: float, file: Path) -> list[list[float]]:
    """The rows, each written as soon as it is read; prints what is reported as a leak."""
    rows: list[list[float]] = []
    deadline = time.monotonic() + seconds
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        while time.monotonic() < deadline:
            await asyncio.sleep(3)
            async with http.get("/status") as answer:
                status = await answer.json()
            rows.append(row(status))
            writer.writerow(rows[-1])
            out.flush()
            if status["memory"]["leak"]["leaking"]:
                print("a leak is reported:", status["memory"]["leak"], flush=True)
    return rows


def summary(rows: list[list[float]], opened: int) -> int:
    """Prints it; the exit status."""
    quarter = len(rows) // 4
    grown = 0.0
    for name in ("rss", "heap"):
        index = COLUMNS.index(name)
        second, last = (
            median(each[index] for each in part)
            for part in (rows[quarter : 2 * quarter], rows[-quarter:])
        )
        grown = max(grown, last / second - 1)
        print(
            f"{name}: {second / 2**20:.1f} MB in the second quarter, {last / 2**20:.1f} MB in the"
            f" last ({100 * (last / second - 1):+.1f} %)"
        )
    print(f"{opened} connections, {Client.received / 1e6:.0f} MB read, {Client.refused} refused")
    return int(grown > 0.1)


async def main(minutes: float, rate: float, file: Path) -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port = free_port()
    with Discarding() as receiver:
        env = {**os.environ, **SETTINGS, **receiver.environment, "SSE_SERVER_PORT": str(port)}
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
                load = Load(port, rate, http)
                tasks = [
                    asyncio.create_task(each()) for each in (load.connect, load.publish, load.burst)
                ]
                rows = await record(http, 60 * minutes, file)
                for task in tasks:
                    task.cancel()
                    if not task.cancelled() and task.done():
                        task.result()
            return summary(rows, load.opened)
        finally:
            process.terminate()
            await process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Churns the reference server's connections.")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rate", type=float, default=30, help="connections a second")
    parser.add_argument("--file", type=Path, default=Path("churn.csv"))
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.minutes, given.rate, given.file)))
