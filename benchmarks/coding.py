"""What compression costs and saves: nothing, envelopes and HTTP content coding, side by side.

``python benchmarks/coding.py`` prints a table. For each kind of message and each way, a
server process (``examples/server``) sends the same messages, one at a time, to the same clients;
given are the bytes on the wire and the server's CPU time, both for each message that a client
gets, and the memory of a connection with what is on its way there.
"""

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path

import aiohttp
import psutil

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PORT = 18_321
CLIENTS = 100
WAYS = {
    "none": {"COMPRESS_FROM": "0"},
    "envelope": {"COMPRESS_FROM": "1024"},
    "gzip": {"COMPRESS_FROM": "0", "CONTENT_CODING": "gzip"},
}
# Bytes of a message, about, and how many of them.
SIZES = {"small": (200, 200), "medium": (4_000, 100), "large": (50_000, 30)}


def messages(size: int, count: int) -> list[str]:
    """Prices as JSON, no two messages alike."""
    rng = random.Random(7)
    return [
        json.dumps({"rows": [_row(rng) for _ in range(max(1, size // 100))]}) for _ in range(count)
    ]


def _row(rng: random.Random) -> dict[str, object]:
    return {
        "symbol": "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=4)),
        "price": round(rng.uniform(1, 1000), 2),
        "volume": rng.randrange(10**6),
        "time": 1_700_000_000_000 + rng.randrange(10**9),
    }


class CountingClient:
    """Reads and counts."""

    def __init__(self) -> None:
        self.bytes = 0

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        try:
            writer.write(b"GET /events HTTP/1.1\r\nHost: [::1]\r\nAccept-Encoding: gzip\r\n\r\n")
            while chunk := await reader.read(2**16):
                self.bytes += len(chunk)
        finally:
            writer.close()


async def measure(way: dict[str, str], texts: list[str]) -> tuple[float, float, float]:
    """Bytes, and microseconds of CPU, of a message; KiB of a connection."""
    settings = {"PORT": str(PORT), "BATCH_SECONDS": "0", **way}
    env = {**os.environ, **{f"SSE_SERVER_{name}": value for name, value in settings.items()}}
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server"),
        cwd=EXAMPLES,
        env=env,
        stderr=asyncio.subprocess.DEVNULL,
    )
    process = psutil.Process(server.pid)
    clients = [CountingClient() for _ in range(CLIENTS)]
    tasks: list[asyncio.Task[None]] = []
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{PORT}") as http:
            await _started(http)
            await _publish(http, texts[:3])
            before = process.memory_info().rss
            tasks = [asyncio.create_task(each.run()) for each in clients]
            await _quiet(clients)
            cpu, received = _cpu(process), _received(clients)
            await _publish(http, texts)
            await _quiet(clients)
            sent = CLIENTS * len(texts)
            return (
                (_received(clients) - received) / sent,
                (_cpu(process) - cpu) / sent * 1e6,
                (process.memory_info().rss - before) / CLIENTS / 1024,
            )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.kill()
        await server.wait()


async def _started(http: aiohttp.ClientSession) -> None:
    while True:
        try:
            async with http.get("/healthz"):
                return
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.1)


async def _publish(http: aiohttp.ClientSession, texts: list[str]) -> None:
    for text in texts:
        async with http.post("/publish", json={"topic": "a", "data": text}) as answer:
            answer.raise_for_status()


async def _quiet(clients: list[CountingClient]) -> None:
    """Returns when nothing has come for a while."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 0.5 or not last:
        await asyncio.sleep(0.05)
        if _received(clients) != last:
            last, since = _received(clients), time.monotonic()


def _received(clients: list[CountingClient]) -> int:
    return sum(each.bytes for each in clients)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def main() -> None:
    print("| message | way | bytes on the wire | server's CPU, us | connection, KiB |")
    print("|---|---|---|---|---|")
    for name, (size, count) in SIZES.items():
        texts = messages(size, count)
        mean = sum(map(len, texts)) // count
        for way, settings in WAYS.items():
            wire, cpu, memory = await measure(settings, texts)
            print(
                f"| {name}, {mean} B | {way} | {wire:.0f} | {cpu:.0f} | {memory:.0f} |", flush=True
            )


if __name__ == "__main__":
    asyncio.run(main())
