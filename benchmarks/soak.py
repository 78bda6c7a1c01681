"""Three servers at once, with clients of every kind, for minutes:

    python benchmarks/soak.py [--minutes 2] [--clients 20]

Starlette on uvicorn, Flask on gunicorn's threads and aiohttp.web, each under
``opentelemetry-instrument``, exporting each two seconds. So many clients of each server read a
stream to its end, leave in its middle, stop reading, or reconnect with a Last-Event-ID, one stream
after the other. They read by httpx, by aiohttp's client and by a bare socket; the first two are
instrumented, too. Streams that pause stall: that is set to a second.

After each tenth of the time the clients rest, and what the servers and this process hold is
printed. The exit status is 1 where that has grown from the second to the last of these, beyond what
is in ``SLACK``, where an answer was not what it should be or did not come, and where a server has
counted other streams than the clients have read.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from email.message import Message
from pathlib import Path
from typing import Any

import aiohttp
import httpx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from helpers.otlp import Receiver  # noqa: E402
from helpers.processes import Served, serve  # noqa: E402
from helpers.raw_client import RawClient  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from soaked import held  # noqa: E402

from otel_sse.frameworks import SSEAiohttpClientInstrumentor, SSEHttpxInstrumentor  # noqa: E402

SERVERS = {
    "uvicorn": "uvicorn soaked:starlette_app --factory --port {port} --log-level critical",
    "gunicorn": "gunicorn soaked:flask_app() --bind 127.0.0.1:{port} --threads 64",
    "aiohttp": "python soaked.py {port}",
}
SETTINGS = {
    "OTEL_METRIC_EXPORT_INTERVAL": "2000",
    "OTEL_BSP_SCHEDULE_DELAY": "2000",
    "OTEL_BLRP_SCHEDULE_DELAY": "2000",
    "OTEL_PYTHON_SSE_STALL_SECONDS": "1",
}
PARTS = 10
# Of one stream, in seconds; the longest takes some thirty on a busy machine.
PATIENCE = 120
# What may grow between two parts in which thousands of streams begin and end.
SLACK = {
    "our objects": 200,
    "objects": 3_000,
    "blocks": 8_000,
    "KiB": 8_192,
    "descriptors": 3,
    "threads": 3,
}


class MetricsReceiver(Receiver):
    """Keeps the last metrics of each server, and nothing else."""

    def take(self, path: str, headers: Message, body: bytes) -> bytes:
        return super().take(path, headers, body) if path == "/v1/metrics" else b""


class Crowd:
    """Clients of every kind.

    Attributes:
        streams: how many were read, by server.
        reads: how many there were of each kind.

    """

    def __init__(self, ports: dict[str, int], count: int) -> None:
        self._ports = ports
        self._count = count
        self._random = random.Random(1)
        self.streams: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()

    async def read(self, seconds: float) -> None:
        """Reads one stream after the other for so long, and then each to its end."""
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, over.set)
        async with (
            httpx.AsyncClient(timeout=PATIENCE) as self._httpx,
            aiohttp.ClientSession() as self._aiohttp,
        ):
            await asyncio.gather(
                *(self._go_on(name, over) for name in self._ports for _ in range(self._count))
            )

    async def _go_on(self, server: str, over: asyncio.Event) -> None:
        kinds: list[Callable[[str], Awaitable[None]]] = [
            self._read_to_the_end,
            self._leave,
            self._stop_reading,
            self._reconnect,
        ]
        while not over.is_set():
            kind = self._random.choice(kinds)
            name = kind.__name__.strip("_")
            try:
                await asyncio.wait_for(kind(server), PATIENCE)
            except Exception as error:
                raise RuntimeError(f"{server}, {name}: {error!r}") from error
            self.reads[name] += 1

    def _path(self, server: str, messages: int, delay: float) -> str:
        """The path of a stream that is about to be read."""
        self.streams[server] += 1
        return f"/stream?messages={messages}&delay={delay}"

    def _url(self, server: str, messages: int, delay: float) -> str:
        return f"http://127.0.0.1:{self._ports[server]}{self._path(server, messages, delay)}"

    async def _read_to_the_end(self, server: str) -> None:
        count = self._random.randint(1, 30)
        url = self._url(server, count, self._random.choice([0, 0.01, 0.05]))
        async with self._httpx.stream("GET", url) as response:
            lines = [line async for line in response.aiter_lines() if line.startswith("data:")]
        if len(lines) != count:
            raise ValueError(f"{len(lines)} messages of {count} came")

    async def _leave(self, server: str) -> None:
        async with self._aiohttp.get(self._url(server, 1000, 0.02)) as response:
            async for _ in response.content:
                if self._random.random() < 0.05:
                    break

    async def _stop_reading(self, server: str) -> None:
        path = self._path(server, 3000, 0)
        client = await RawClient.get(self._ports[server], path, limit=2**12)
        await client.until(b"data:")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(self._random.choice([0.1, 1.5]))
        client.reset()

    async def _reconnect(self, server: str) -> None:
        for number in range(3):
            headers = {"Last-Event-ID": str(number)} if number else {}
            url = self._url(server, 1000, 0.01)
            async with self._httpx.stream("GET", url, headers=headers) as response:
                async for _ in response.aiter_lines():
                    if self._random.random() < 0.1:
                        break


def keep_output(server: Served) -> deque[str]:
    """The last lines that it writes: a pipe that nobody reads would stop it."""
    lines: deque[str] = deque(maxlen=20)
    threading.Thread(target=lines.extend, args=(server.process.stdout,), daemon=True).start()
    return lines


async def at_rest(ports: dict[str, int]) -> dict[str, dict[str, int]]:
    """What each process holds, once its streams have ended and been exported."""
    await asyncio.sleep(5)
    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        found = {
            name: (await client.get(f"http://127.0.0.1:{port}/held")).json()
            for name, port in ports.items()
        }
    return {**found, "clients": held()}


async def soak(minutes: float, clients: int) -> list[str]:
    """Gives what is wrong."""
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    for kind in (SSEHttpxInstrumentor, SSEAiohttpClientInstrumentor):
        kind().instrument(tracer_provider=TracerProvider(), meter_provider=provider)
    parts: list[dict[str, dict[str, int]]] = []
    wrong = []
    with ExitStack() as stack:
        receivers = {name: stack.enter_context(MetricsReceiver()) for name in SERVERS}
        servers = {
            name: stack.enter_context(serve(command, receivers[name], HERE, **SETTINGS))
            for name, command in SERVERS.items()
        }
        for server in servers.values():
            await server.started()
        output = {name: keep_output(server) for name, server in servers.items()}
        crowd = Crowd({name: server.port for name, server in servers.items()}, clients)
        try:
            for number in range(1, PARTS + 1):
                await crowd.read(minutes * 60 / PARTS)
                parts.append(await at_rest({name: each.port for name, each in servers.items()}))
                print(f"part {number} of {PARTS}: {crowd.streams.total():,} streams", flush=True)
                for name, numbers in parts[-1].items():
                    print(f"  {name:9}", ", ".join(f"{what} {n:,}" for what, n in numbers.items()))
        except RuntimeError as error:
            wrong.append(str(error))
            wrong += [f"{name} wrote: {line}" for name, each in output.items() for line in each]
        for server in servers.values():
            server.process.terminate()
            await asyncio.to_thread(server.process.wait)
        for name, receiver in receivers.items():
            counted = receiver.value("sse.server.connections")
            active = receiver.value("sse.server.active_connections")
            if (counted, active) != (crowd.streams[name], 0):
                wrong.append(
                    f"{name}: {counted} streams counted of {crowd.streams[name]}, {active} live"
                )
    print(dict(crowd.reads))
    for name, numbers in (parts or [{}])[-1].items():
        for what, slack in SLACK.items():
            before = parts[min(1, len(parts) - 1)][name][what]
            if numbers[what] - before > slack:
                wrong.append(f"{name}: {what} grew from {before:,} to {numbers[what]:,}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--clients", type=int, default=20, help="of each server")
    arguments: Any = parser.parse_args()
    wrong = asyncio.run(soak(arguments.minutes, arguments.clients))
    print("\n".join(wrong) or "every stream counted, nothing live, nothing has grown")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
