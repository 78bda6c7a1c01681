"""The reference server with 10,000 clients: ``python benchmarks/load.py [CLIENTS]``.

``examples/server`` is a process under ``opentelemetry-instrument`` that exports to a real OTLP
receiver, the clients (crowd.py) are another, and this one publishes, reads /status and the
dashboard's stream, and asks /healthz all the time, whose longest answer is how late the server's
loop is, and more, since all share the processors. A twentieth of the clients disconnects and comes
back, a hundred stop reading, a fifth of these permanently. It prints what it finds; the exit status
is not 0 if anything is not as it has to be.
"""

import asyncio
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import Any

import aiohttp
import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from helpers.otlp import Receiver  # noqa: E402
from helpers.processes import CONTRIB, INSTRUMENT  # noqa: E402
from helpers.servers import free_port  # noqa: E402
from helpers.waiting import until  # noqa: E402

EXAMPLES = HERE.parent / "examples"
SETTINGS = {
    # Messages alike would become too small to stop anybody.
    "SSE_SERVER_COMPRESS_FROM": "0",
    "OTEL_PYTHON_SSE_EXCLUDED_URLS": "/status/events",
    "OTEL_PYTHON_SYSTEM_METRICS_EXCLUDED_METRICS": "system.*",
    # What may be installed here beside, for other tests.
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": CONTRIB,
}
TICKS, TICK = 30, 300
BURSTS, BURST = 3, 20
# More than the kernel and a queue take for a client that does not read.
HEAVIES, HEAVY = 1500, 10_000
STOPPED, PERMANENTLY = 80, 20


class DeferredReceiver(Receiver):
    """Reads what came when it is asked to, at the end: it shares the processors with the rest."""

    def __init__(self) -> None:
        super().__init__()
        self._came: list[tuple[str, Message, bytes]] = []

    def take(self, path: str, headers: Message, body: bytes) -> bytes:
        self._came.append((path, headers, body))
        return b""

    def read(self) -> None:
        for came in self._came:
            super().take(*came)


class CrowdProcess:
    """The process of the clients; its verbs are those of crowd.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, *command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return json.loads(await self._process.stdout.readline())

    async def has(self, topic: str, messages: int) -> dict[str, Any]:
        """The counts of a topic once N messages have arrived or are reported as dropped."""
        while True:
            counts: dict[str, Any] = await self.ask("counts", topic)
            if counts["messages"] + counts["dropped"] >= messages:
                return counts
            await asyncio.sleep(0.1)


class ReferenceServer:
    """The server, as its publishers and operators see it."""

    def __init__(self, process: asyncio.subprocess.Process, http: aiohttp.ClientSession) -> None:
        self.process = process
        self._http = http
        self._seen = psutil.Process(process.pid)
        self.published = {"tick": 0, "heavy": 0}
        # Seconds: of /healthz since they were printed last, and of /status.
        self._answers: list[float] = []
        self.statuses: list[float] = []
        self.status: dict[str, Any] = {}
        self.status_bytes = self.dashboard_bytes = 0

    async def well(self) -> None:
        while True:
            with suppress(aiohttp.ClientConnectionError):
                async with self._http.get("/healthz"):
                    return
            await asyncio.sleep(0.1)

    @property
    def memory(self) -> int:
        return int(self._seen.memory_info().rss)

    @property
    def cpu(self) -> float:
        times = self._seen.cpu_times()
        return float(times.user + times.system)

    async def publish(self, topic: str, size: int) -> None:
        data = f"{self.published[topic]} {time.monotonic_ns()} ".ljust(size, "x")
        body = {"topic": topic, "type": topic, "data": data}
        async with self._http.post("/publish", json=body) as answer:
            answer.raise_for_status()
        self.published[topic] += 1

    async def probe(self) -> None:
        """Asks for its health until cancelled."""
        while True:
            began = time.monotonic()
            async with self._http.get("/healthz") as answer:
                await answer.read()
            self._answers.append(time.monotonic() - began)
            await asyncio.sleep(0.01)

    def late(self) -> str:
        answers, self._answers = sorted(self._answers), []
        return f"/healthz {_ms(answers[len(answers) // 2])}, at worst {_ms(answers[-1])}"

    async def poll_status(self) -> None:
        """Reads /status every other second until cancelled."""
        while True:
            began = time.monotonic()
            async with self._http.get("/status") as answer:
                body = await answer.read()
            self.statuses.append(time.monotonic() - began)
            self.status, self.status_bytes = json.loads(body), len(body)
            await asyncio.sleep(2)

    async def active(self, connections: int) -> None:
        """Waits until /status has so many."""
        await until(lambda: self.status["connections"]["active"] == connections)

    async def show(self) -> None:
        """Reads the dashboard's stream until cancelled."""
        async with self._http.get("/status/events") as answer:
            async for chunk in answer.content.iter_any():
                self.dashboard_bytes += len(chunk)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


class Checks:
    """What has to be."""

    def __init__(self) -> None:
        self.failed = 0

    def same(self, what: str, found: object, wanted: object) -> None:
        self.failed += found != wanted
        print(f"{'ok  ' if found == wanted else 'FAIL'} {what}: {found}, of {wanted}", flush=True)


def report(text: str) -> None:
    print(f"     {text}", flush=True)


async def run(server: ReferenceServer, crowd: CrowdProcess, clients: int, checks: Checks) -> None:
    """All that is done before the stop."""
    returning = clients // 20
    steady = clients - returning - STOPPED - PERMANENTLY
    readers = steady + returning
    before, began = server.memory, time.monotonic()
    for group, topic, count in (
        ("steady", "tick", steady),
        ("returning", "tick", returning),
        ("stopped", "heavy", STOPPED),
        ("permanently", "heavy", PERMANENTLY),
    ):
        await crowd.ask("open", group, topic, count)
    report(f"{clients} connections in {time.monotonic() - began:.1f} s; {server.late()}")
    await asyncio.sleep(5)
    report(f"memory: {(server.memory - before) / clients / 1024:.1f} KiB for each; {server.late()}")

    cpu, began = server.cpu, time.monotonic()
    for _ in range(TICKS):
        await server.publish("tick", TICK)
        await asyncio.sleep(1)
    late = (await crowd.has("tick", TICKS * readers))["late"]
    share = (server.cpu - cpu) / (time.monotonic() - began)
    report(
        f"one message a second: the last of {readers} has it after {_ms(sorted(late)[TICKS // 2])},"
        f" at worst {_ms(max(late))}; {server.late()}; {share:.0%} of a processor"
    )

    for group in ("stopped", "permanently"):
        await crowd.ask("pause", group)
    for _ in range(HEAVIES):
        await server.publish("heavy", HEAVY)
    report(
        f"{STOPPED + PERMANENTLY} do not read {HEAVIES} messages of {HEAVY} bytes; {server.late()}"
    )
    await crowd.ask("go_on", "stopped")
    await crowd.has("heavy", HEAVIES * STOPPED)

    for _ in range(BURSTS):
        # What is written to a disconnected client, before the server notices, counts as written.
        await server.active(clients)
        await crowd.ask("disconnect", "returning")
        await server.active(clients - returning)
        for _ in range(3):
            await server.publish("tick", TICK)
        first, cpu = server.published["tick"], server.cpu
        coming = asyncio.create_task(crowd.ask("come", "returning"))
        for _ in range(BURST):
            await server.publish("tick", TICK)
        await coming
        late = (await crowd.has("tick", server.published["tick"] * readers))["late"][first:]
        each = (server.cpu - cpu) / BURST / readers
        report(
            f"a burst of {BURST}, {returning} coming back meanwhile: the last has one after"
            f" {_ms(max(late))} at worst; {server.late()}; {each * 1e6:.0f} us of CPU each"
        )
    await asyncio.sleep(10)
    report(f"memory: {(server.memory - before) / clients / 1024:.1f} KiB for each")
    took = sorted(server.statuses)
    report(
        f"/status: {server.status_bytes} bytes in {_ms(took[len(took) // 2])}, at worst"
        f" {_ms(took[-1])}; a reading takes {server.status['reading_ms']:.0f} ms of CPU"
    )
    report(f"the dashboard's stream: {server.dashboard_bytes} bytes")

    ticks, heavies = await crowd.ask("counts", "tick"), await crowd.ask("counts", "heavy")
    connections, messages = server.status["connections"], server.status["messages"]
    checks.same("/status, active", connections["active"], clients)
    checks.same("/status, total", connections["total"], clients + BURSTS * returning)
    checks.same("/status, resumed", connections["resumed"], BURSTS * returning)
    checks.same("/status, messages", messages["total_by_type"]["tick"], ticks["messages"])
    checks.same("received", set(ticks["receipts"]), {readers})
    checks.same("twice, missing or out of order", ticks["wrong"] + heavies["wrong"], 0)


async def stop(server: ReferenceServer, crowd: CrowdProcess, clients: int, checks: Checks) -> None:
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    status = await server.process.wait()
    took = time.monotonic() - began
    await asyncio.sleep(0.5)
    last = 0.0
    for group, count in (
        ("steady", clients - clients // 20 - STOPPED - PERMANENTLY),
        ("returning", clients // 20),
        ("stopped", STOPPED),
    ):
        ended, at = await crowd.ask("ended", group)
        checks.same(f"{group}, ended in order", ended, count)
        last = max(last, at)
    report(
        f"the stop: the last stream ended after {last - began:.1f} s, the process after {took:.1f}"
    )
    checks.same("exit status", status, 0)


async def compare(
    server: ReferenceServer,
    crowd: CrowdProcess,
    clients: int,
    receiver: DeferredReceiver,
    checks: Checks,
) -> None:
    """What the receiver has at last, and what the clients have."""
    receiver.read()
    ticks, heavies = await crowd.ask("counts", "tick"), await crowd.ask("counts", "heavy")
    opened = clients + BURSTS * (clients // 20)
    written = receiver.value("sse.server.messages", sse__event__type="tick")
    checks.same("OTLP, messages", written, ticks["messages"])
    written = receiver.value("sse.server.messages", sse__event__type="heavy")
    dropped = receiver.value("sse.server.dropped_messages")
    report(
        f"OTLP, heavy: {written:.0f} written, {dropped:.0f} dropped; {heavies['dropped']} reported"
    )
    checks.same("together", written + dropped, server.published["heavy"] * (STOPPED + PERMANENTLY))
    checks.same("OTLP, active", receiver.value("sse.server.active_connections"), 0)
    checks.same("OTLP, connections", receiver.value("sse.server.connections"), opened)
    checks.same("OTLP, ended", receiver.value("sse.server.connection.duration"), opened)
    checks.same("OTLP, closed", len(receiver.records("sse.connection.closed")), opened)
    finals = [
        span for span in receiver.spans("SSE /events") if span.attributes.get("sse.segment.final")
    ]
    checks.same("OTLP, last spans", len(finals), opened)


async def main(clients: int) -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < clients + 500:
        sys.exit(f"{clients} clients take as many files: `ulimit -Hn` is {most}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port, checks = free_port(), Checks()
    with DeferredReceiver() as receiver:
        own = {
            "SSE_SERVER_PORT": str(port),
            "SSE_SERVER_MAX_CONNECTIONS": str(clients),
            "SSE_SERVER_MAX_CONNECTIONS_PER_CLIENT": str(clients),
        }
        env = {**os.environ, **SETTINGS, **receiver.environment, **own}
        process = await asyncio.create_subprocess_exec(
            *(str(INSTRUMENT), sys.executable, "-m", "server"), cwd=EXAMPLES, env=env
        )
        reading = await asyncio.create_subprocess_exec(
            *(sys.executable, str(HERE / "crowd.py"), str(port)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        crowd = CrowdProcess(reading)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
                server = ReferenceServer(process, http)
                await server.well()
                watching = [
                    asyncio.create_task(each)
                    for each in (server.probe(), server.poll_status(), server.show())
                ]
                await run(server, crowd, clients, checks)
                for task in watching:
                    task.cancel()
                await asyncio.wait(watching)
                await stop(server, crowd, clients, checks)
            await compare(server, crowd, clients, receiver, checks)
        finally:
            for each in (process, reading):
                if each.returncode is None:
                    each.kill()
                    await each.wait()
    return checks.failed


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)))
