"""The one state of health, on the real server: nothing that was not judged is healthy."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.waiting import until
from opentelemetry import metrics
from reference.served import (
    QUICK,
    RedisServer,
    Site,
    eventually,
    flood,
    head_of,
    live,
    open_stream,
    serving,
    stuck_client,
)
from reference.watching import notification
from server import sampler, thresholds
from server.app import LIMITS, STREAMS
from server.health import (
    DEGRADED,
    HEALTHY,
    NO_DATA,
    NOT_JUDGED,
    REFUSING,
    STATES,
    Condition,
    Health,
)
from server.recent import SECONDS, Recent
from server.settings import MIB, Settings

On = Callable[..., None]


@contextlib.asynccontextmanager
async def watched(
    monkeypatch: pytest.MonkeyPatch,
    backend: Backend | None,
    settings: Settings = QUICK,
) -> AsyncIterator[Site]:
    """The reference server, whose figures are read every 50 ms, and judged at once; None: it was
    started without OpenTelemetry.
    """
    provider = backend.meter_provider if backend else metrics.NoOpMeterProvider()
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    monkeypatch.setattr(sampler, "EVERY", 0.05)
    for module in (sampler, thresholds):
        monkeypatch.setattr(module, "SETTLED", 0.0)
    # A busy machine's own figures are not what is tested.
    monkeypatch.setenv("SSE_MIN_MESSAGE_RATE", "-1")
    async with serving(settings, backend) as site:
        yield site


async def health(site: Site) -> dict[str, Any]:
    answer = await site.http.get(f"{site.url}/status")
    found: dict[str, Any] = answer.json()["health"]
    assert found["state"] in STATES
    assert found["reason"].endswith(".")
    assert found["since"].endswith("Z")
    return found


async def becomes(site: Site, state: str, reason: str = "") -> dict[str, Any]:
    """The health once it is that."""

    async def found() -> dict[str, Any]:
        now = await health(site)
        return now if now["state"] == state and reason in now["reason"] else {}

    result: dict[str, Any] = await eventually(found)
    return result


async def test_a_server_that_serves_is_healthy(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """Every threshold was judged, but for those whose metric is not recorded, which are named; it
    stays so since the same time.
    """
    instrument()
    async with watched(monkeypatch, backend) as site:
        client = await open_stream(site)
        first = await becomes(site, HEALTHY)
        assert "thresholds are met" in first["reason"]
        # The tests' provider records no system metrics.
        assert "Not judged, since it is not recorded: SSEMemoryHigh" in first["reason"]
        await asyncio.sleep(1.1)
        assert (await health(site))["since"] == first["since"]
        await client.close()


async def test_no_client_is_let_in(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """Memory is above its limit, or all connections are taken: it is refusing, at once and also
    where it was started without OpenTelemetry.
    """
    instrument()
    for given in (backend, None):
        async with watched(monkeypatch, given, replace(QUICK, max_connections=2)) as site:
            limits = site.app[LIMITS]
            limits.short = True
            await becomes(site, REFUSING, "Memory is above its limit of 1,024 MB")
            limits.short = False
            clients = [await open_stream(site) for _ in range(2)]
            await becomes(site, REFUSING, "All 2 connections are taken")
            for each in clients:
                await each.close()
            await until(lambda: live(site) == 0)
            assert (await health(site))["state"] != REFUSING


async def test_seventy_of_a_hundred_are_refused(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """By the limit for an address: it is refusing, with how many and why, for the minute after."""
    instrument()
    async with watched(monkeypatch, backend, replace(QUICK, max_connections_per_client=3)) as site:
        clients = [await open_stream(site) for _ in range(3)]
        for _ in range(7):
            assert b" 503 " in await head_of(site)
        found = await becomes(site, REFUSING)
        assert found["reason"].startswith("7 clients were refused in the last minute")
        assert "address" in found["reason"]

        async def counted() -> bool:
            status = (await site.http.get(f"{site.url}/status")).json()
            failures = status["failures"]
            return (failures["refused_total"], failures["refused_by_reason"]) == (
                7,
                {"connections_per_client": 7},
            )

        await eventually(counted)
        for each in clients:
            await each.close()


async def test_a_stopping_server_refuses(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """While it drains no client is let in."""
    instrument()
    async with watched(monkeypatch, backend, replace(QUICK, drain_seconds=1.0)) as site:
        draining = asyncio.create_task(site.app[STREAMS].drain())
        await becomes(site, REFUSING, "stopping")
        await draining


async def test_a_redis_that_is_away(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On, tmp_path: Path
) -> None:
    """Nothing is published, so it is degraded, though every figure is within its threshold; and
    for a minute after, since messages were refused.
    """
    instrument()
    with RedisServer(tmp_path) as store:
        await store.answers()
        async with watched(monkeypatch, backend, replace(QUICK, redis_url=store.url)) as site:
            await eventually(site.ready)
            await becomes(site, HEALTHY)
            store.end()
            await becomes(site, DEGRADED, "Redis cannot be reached")
            body = {"topic": "a", "data": "x"}
            assert (await site.http.post(f"{site.url}/publish", json=body)).status_code == 503
            store.start()
            await eventually(site.ready)
            found = await becomes(site, DEGRADED, "1 messages could not be published")
            assert "connection_refused (1)" in found["reason"]


async def test_an_alert_degrades(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """One of the process's own, and one of Alertmanager's, each with its name and summary, for as
    long as it fires. An insight is no fault.
    """
    monkeypatch.setenv("SSE_MAX_PER_CLIENT", "1")
    monkeypatch.setenv("SSE_INFO_MESSAGE_SIZE", "1")
    instrument()
    async with watched(monkeypatch, backend) as site:
        first = await open_stream(site)
        await site.publish("x" * 500)
        await becomes(site, HEALTHY)
        second = await open_stream(site)
        await becomes(site, DEGRADED, "SSEConnectionsPerClient: One client address holds")
        await second.close()
        await becomes(site, HEALTHY)
        for status, state in (("firing", DEGRADED), ("resolved", HEALTHY)):
            await site.http.post(f"{site.url}/alerts", json=notification(status, "SSEStorm"))
            await becomes(site, state)
        await first.close()


async def test_a_slow_client_is_seen(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """A client that does not read is in the list, first, and breaches the threshold that is below
    what the kernel and the server hold for it at most.
    """
    instrument()
    settings = replace(QUICK, compress_from=0, queue_bytes=MIB)
    async with watched(monkeypatch, backend, settings) as site:
        stuck = await stuck_client(site)
        quick = await open_stream(site)
        await flood(site, 60)
        await becomes(site, DEGRADED, "SSEBacklogHigh")
        first = (await site.http.get(f"{site.url}/status")).json()["connections"]["list"][0]
        assert first["backlog_bytes"] > 0.8 * thresholds.CLIENT_BUFFER_BYTES
        await quick.close()
        stuck.reset()
        await until(lambda: live(site) == 0)


async def test_without_thresholds_nothing_is_healthy(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On, tmp_path: Path
) -> None:
    """No list, a list that is empty, and a list of which nothing is recorded: not judged."""
    instrument()
    empty, other = tmp_path / "empty.yaml", tmp_path / "other.yaml"
    empty.write_text("[]")
    other.write_text(
        "- {alert: A, severity: warning, variable: SSE_A, default: 1, unit: s, says: So.,"
        " collector: sse.server.nothing}"
    )
    monkeypatch.setattr(thresholds, "DEFAULT", tmp_path / "none.yaml")
    for file in ("", str(empty), str(other)):
        async with watched(monkeypatch, backend, replace(QUICK, thresholds=file)) as site:
            client = await open_stream(site)
            found = await becomes(site, NOT_JUDGED)
            assert "threshold" in found["reason"]
            await client.close()


async def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """/status is an error, and yet has the state: not judged, with how to start it."""
    async with watched(monkeypatch, None) as site:
        answer = await site.http.get(f"{site.url}/status")
        assert answer.status_code == 503
        found = await health(site)
        assert found["state"] == NOT_JUDGED
        assert "opentelemetry-instrument" in found["reason"]


async def test_without_figures(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, instrument: On
) -> None:
    """No streams recorded, too early, and metrics that cannot be read: no data."""
    async with watched(monkeypatch, backend) as site:
        await becomes(site, NO_DATA, "No streams are recorded here")
    instrument()
    async with watched(monkeypatch, backend) as site:
        monkeypatch.setattr(sampler, "SETTLED", 3600.0)
        client = await open_stream(site)
        await becomes(site, NO_DATA, "Rates are judged")
        monkeypatch.setattr(sampler, "SETTLED", 0.0)
        await becomes(site, HEALTHY)

        def broken(_: object) -> None:
            raise OSError("no")

        monkeypatch.setattr(sampler.Reader, "read", broken)
        await becomes(site, NO_DATA, "cannot be read")
        await client.close()


# --- its parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "observed", "state"),
    [
        ((), (HEALTHY,), HEALTHY),
        ((DEGRADED,), (HEALTHY,), DEGRADED),
        ((DEGRADED, REFUSING), (DEGRADED,), REFUSING),
        ((), (NO_DATA, DEGRADED), DEGRADED),
        ((), (NOT_JUDGED, NO_DATA), NO_DATA),
        ((REFUSING,), (NOT_JUDGED,), REFUSING),
    ],
)
def test_what_is_known_to_be_wrong_comes_first(
    known: tuple[str, ...], observed: tuple[str, ...], state: str
) -> None:
    """Before what is not known, and that before health."""
    judged = Health(lambda: [Condition(each, f"{each}.") for each in known])
    found = judged.judge([Condition(each, f"{each}.") for each in observed], 1.0)
    assert found["state"] == state
    assert state in found["reason"]


def test_since_is_when_the_state_began() -> None:
    """Another reason of the same state is not another state."""
    judged = Health()
    states = [(DEGRADED, "a."), (DEGRADED, "b."), (HEALTHY, "c."), (DEGRADED, "a.")]
    found = [judged.judge([Condition(*each)], at) for at, each in enumerate(states)]
    assert [each["since"] for each in found] == [0, 0, 2, 3]
    many = judged.judge([Condition(DEGRADED, f"{n}.") for n in range(9)], 9.0)
    assert many["reason"] == "0. 1. 2. And 6 more."


def test_a_minute_of_counts() -> None:
    """Counts are of the last minute, and take a slot for a second however many there are."""
    now = time.monotonic()
    recent = Recent(lambda: now)
    for _ in range(10_000):
        recent.add("a")
    recent.add("b")
    assert recent.counts() == {"a": 10_000, "b": 1}
    assert len(recent._slots) == 1
    now += SECONDS - 1
    recent.add("b")
    assert recent.counts() == {"a": 10_000, "b": 2}
    now += 1
    assert recent.counts() == {"b": 1}
    now += SECONDS
    assert recent.counts() == {}
