"""What the tests of the status page share: the served application, and the figures they give it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from zlib import crc32

import pytest
from aiohttp import ClientSession, web
from helpers.backend import Backend
from helpers.servers import serve_aiohttp
from opentelemetry import metrics
from reference.apps.watched import application
from server import sampler
from server.figures import Sample

COUNTERS = frozenset(
    {
        "server.errors without (('class', 'rate_limit'),)",
        "server.rejected_connections",
        "server.writes",
        "sse.server.dropped_messages",
        "sse.server.connections",
        "sse.server.io",
        "sse.server.messages",
        "sse.server.send.time",
    }
)


def sample(at: float, **figures: float) -> Sample:
    """A reading's figures; in a name two underscores stand for a dot."""
    named = {name.replace("__", "."): value for name, value in figures.items()}
    return Sample(at, named, COUNTERS & named.keys())


class Watched:
    """The application on a port, with a client."""

    def __init__(self, port: int, client: ClientSession) -> None:
        self.port = port
        self.client = client

    async def get(self, path: str) -> Any:
        async with self.client.get(path) as response:
            return await response.json()

    async def post(self, body: Any, **headers: str) -> tuple[int, Any]:
        """Posts to /alerts; returns the status and the body."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post("/alerts", data=data, headers=headers) as response:
            return response.status, await response.json()

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
        """Yields the events of /status/events."""
        async with self.client.get("/status/events") as response:
            assert response.status == 200, await response.text()
            yield _events(response)


async def _events(response: Any) -> AsyncIterator[tuple[str, Any]]:
    fields: dict[str, str] = {}
    async for line in response.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields["event"], json.loads(fields["data"])
            fields = {}


@asynccontextmanager
async def watched(
    monkeypatch: pytest.MonkeyPatch, backend: Backend | None, app: web.Application | None = None
) -> AsyncIterator[Watched]:
    """Serves it with its provider of metrics (None: there is none), read every 50 ms."""
    provider = backend.meter_provider if backend else metrics.NoOpMeterProvider()
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    monkeypatch.setattr(sampler, "EVERY", 0.05)
    async with (
        serve_aiohttp(app or application()) as port,
        ClientSession(f"http://127.0.0.1:{port}", read_bufsize=2**20) as client,
    ):
        yield Watched(port, client)


def notification(status: str, *names: str, severity: str = "critical") -> dict[str, Any]:
    """As Alertmanager sends it."""
    over = status == "resolved"
    return {
        "version": "4",
        "groupKey": '{}:{job="shop"}',
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "log",
        "groupLabels": {"job": "shop"},
        "commonLabels": {"job": "shop"},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "alerts": [
            {
                "status": status,
                "labels": {
                    "alertname": name,
                    "severity": severity,
                    "job": "shop",
                    "instance": "a:1",
                },
                "annotations": {"value": "21", "threshold": "20", "summary": "Too much."},
                "startsAt": "2030-01-01T00:00:00Z",
                "endsAt": "2030-01-01T00:05:00Z" if over else "0001-01-01T00:00:00Z",
                "generatorURL": "http://prometheus:9090/graph",
                "fingerprint": f"{crc32(name.encode()):08x}",
            }
            for name in names
        ],
    }
