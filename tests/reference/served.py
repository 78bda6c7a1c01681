"""The reference server in this loop, or in processes of its own, and what the tests need beside."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import redis.asyncio
from aiohttp import web
from helpers.backend import Backend
from helpers.processes import INSTRUMENT
from helpers.raw_client import RawClient
from helpers.servers import free_port, serve_aiohttp
from helpers.tools import tool
from helpers.waiting import until
from server.app import LIMITS, build
from server.broker import Id, Message
from server.client import Event, events
from server.meters import Meters
from server.settings import Settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# Quick to come back, and no batch waits longer than it has to.
QUICK = Settings(retry_seconds=0.05, batch_seconds=0.01)


class StreamRecorder:
    """Stands for ``otel_sse.current()``, and keeps what is reported to it."""

    def __init__(self) -> None:
        self.drops: list[tuple[int, str]] = []
        self.reasons: list[str] = []

    def record_dropped(self, n: int = 1, reason: str = "unknown") -> None:
        self.drops.append((n, reason))

    def set_close_reason(self, reason: str) -> None:
        self.reasons.append(reason)


def message(number: int, data: str = "x", topic: str = "a") -> Message:
    return Message(Id(1, number), topic, "message", data)


def count(backend: Backend, name: str, **attributes: str) -> float:
    """The sum of a counter of the server's own that has these attributes."""
    data = backend.reader.get_metrics_data()
    return sum(
        point.value  # type: ignore[union-attr]
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        if scope.scope.name == "server"
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        if attributes.items() <= dict(point.attributes or {}).items()
    )


class Site:
    """A server and an HTTP client of it."""

    def __init__(self, url: str, http: httpx.AsyncClient, app: web.Application | None) -> None:
        self.url = url
        self.http = http
        # The application, where it runs in this process.
        self.app: Any = app

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def publish(self, data: str, topic: str = "a", **more: Any) -> str:
        answer = await self.http.post(
            f"{self.url}/publish", json={"topic": topic, "data": data, **more}
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def events(self, query: str = "", last_event_id: str = "") -> AsyncIterator[Event]:
        return events(self.http, f"{self.url}/events{query}", last_event_id=last_event_id)

    async def status_of(self, path: str) -> int:
        """The status code of a GET; 0 where no server answers."""
        with contextlib.suppress(httpx.TransportError):
            return (await self.http.get(f"{self.url}{path}")).status_code
        return 0

    async def ready(self) -> bool:
        """Whether a new client would be served, and its broker can be reached."""
        with contextlib.suppress(httpx.TransportError):
            answer = await self.http.get(f"{self.url}/readyz")
            return answer.status_code == 200 and answer.json()["broker"] == "ok"
        return False


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """As many connections as it takes."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=20) as http:
        yield http


@contextlib.asynccontextmanager
async def serving(
    settings: Settings = QUICK, backend: Backend | None = None
) -> AsyncIterator[Site]:
    """The application in this loop."""
    app = build(settings, Meters((backend or Backend()).meter_provider))
    async with serve_aiohttp(app, handler_cancellation=True) as port:
        url = f"http://127.0.0.1:{port}"
        async with client() as http:
            yield Site(url, http, app)


class Process:
    """A program and its log; the end of the block kills it."""

    def __init__(self, *command: str, cwd: Path | None = None, **env: str) -> None:
        self._command = command
        self._cwd = cwd
        self._env = {**os.environ, **env}
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115

    def __enter__(self) -> "Process":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)
        self._log.close()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=self._env,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit status."""
        self.process.send_signal(number)
        return self.process.wait(20)

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()


class Worker(Process):
    """``python -m server`` on a port of its own, with these settings."""

    def __init__(self, *, otel: dict[str, str] | None = None, **settings: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        around = () if otel is None else (str(INSTRUMENT),)
        given = {"port": self.port, **settings}
        env = {f"SSE_SERVER_{name.upper()}": str(value) for name, value in given.items()}
        super().__init__(
            *around, sys.executable, "-m", "server", cwd=EXAMPLES, **env, **(otel or {})
        )


class RedisServer(Process):
    """A Redis that keeps its data in a folder, and so over its own restart."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        super().__init__(
            tool("redis-server"),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
            *options,
        )

    async def answers(self) -> None:
        """Waits until it takes commands."""
        async with redis.asyncio.Redis.from_url(self.url) as client:

            async def ping() -> bool:
                with contextlib.suppress(redis.exceptions.RedisError, OSError):
                    return bool(await client.ping())
                return False

            await eventually(ping)


async def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Waits for a condition that is asked by ``await``, and gives what it gave."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (result := await condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.05)
    return result


@contextlib.contextmanager
def running(*processes: Process) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for each in processes:
            stack.enter_context(each)
        yield


@contextlib.asynccontextmanager
async def visiting(url: str) -> AsyncIterator[Site]:
    """The server that listens there, once it is ready."""
    async with client() as http:
        site = Site(url, http, None)
        await eventually(site.ready, 60)
        yield site


def live(site: Site) -> int:
    return len(site.app[LIMITS].outlets)


async def open_stream(site: Site, query: str = "", *headers: str) -> RawClient:
    """A client that has been given its place."""
    client = await RawClient.get(site.port, f"/events{query}", *headers)
    await asyncio.wait_for(client.until(b"\n\n\r\n"), 10)
    await asyncio.wait_for(client.until(b"\n\n\r\n"), 10)
    return client


async def head_of(site: Site, path: str = "/events", *headers: str, method: str = "GET") -> bytes:
    client = await RawClient.get(site.port, path, *headers, method=method)
    head = await asyncio.wait_for(client.until(b"\r\n\r\n"), 10)
    await client.close()
    return head


async def stuck_client(site: Site) -> RawClient:
    """A client that has connected and reads nothing, with no room in its socket."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", site.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1)
    writer.write(b"GET /events?topic=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
    before = live(site)
    await until(lambda: live(site) > before)
    await asyncio.sleep(0.05)
    # asyncio reads ahead by itself.
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return RawClient(reader, writer)


async def flood(site: Site, times: int) -> None:
    for number in range(times):
        await site.publish(f"{number} {'x' * 60_000}")
