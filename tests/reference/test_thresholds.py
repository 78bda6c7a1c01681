"""The process's own alerts: each as collector/thresholds.yaml has it, and how they are reported."""

import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.backend import Backend
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from reference.watching import sample
from server import thresholds
from server.figures import Clients, Metric, Reading, Sample, Window
from server.memory import Memory
from server.meters import Meters
from server.settings import CLIENT_BUFFER_BYTES, Settings
from server.thresholds import (
    COOLDOWN,
    SETTLED,
    Threshold,
    Watch,
    load,
    main,
    measure,
    own_limits,
    utc,
)

CALM = Memory().leak()
LEAKING = {**CALM, "leaking": True, "rate_mb_per_second": 0.25}
OPEN = {"sse__server__connections": 9, "sse__server__active_connections": 9}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults, whatever the machine has set."""
    for name in [each for each in os.environ if each.startswith("SSE_")]:
        monkeypatch.delenv(name)


def window(seconds: float, before: dict[str, float], after: dict[str, float]) -> Window:
    """Two readings so far apart, whose figures are these."""
    found = Window()
    found.add(sample(0, **{**OPEN, **before}))
    found.add(sample(seconds, **{**OPEN, **after}))
    return found


def minute(**gained: float) -> Window:
    """A minute in which the figures came from 0."""
    return window(60, dict.fromkeys(gained, 0.0), gained)


def active(found: Window, leak: dict[str, Any] = CALM) -> dict[str, float]:
    """The alerts of the list that these figures give, with their values."""
    reported: list[dict[str, Any]] = []
    watch = Watch(load() or [], reported.append)
    watch.judge(found, leak, 0.0, 1000.0)
    return {each["alert"]: each["value"] for each in watch.active(0.0)}


# An alert, the figures that are just at its threshold, those just beyond, and the value. The
# numbers are worked out by hand: 6,000 messages in a minute are 100 a second; 600 messages that
# waited 300 s waited 0.5 s each.
BUSY = {"sse__server__messages": 600.0, "sse__server__io": 600.0, "sse__server__send__time": 0.0}
EDGES = [
    (
        "SSEConnectionsHigh",
        {"sse__server__active_connections": 10_000.0},
        {"sse__server__active_connections": 10_001.0},
        10_001,
    ),
    (
        "SSEMemoryHigh",
        {"process__memory__usage": 1024.0 * 1_048_576},
        {"process__memory__usage": 1025.0 * 1_048_576},
        1025,
    ),
    ("SSEMessageRateLow", {"sse__server__messages": 60.0}, {"sse__server__messages": 54.0}, 0.9),
    (
        "SSEProcessingSlow",
        {"sse__server__send__time": 300.0},
        {"sse__server__send__time": 300.6},
        501,
    ),
    (
        "SSEProcessingElevated",
        {"sse__server__send__time": 60.0},
        {"sse__server__send__time": 60.6},
        101,
    ),
    (
        "SSEMessagesLarge",
        {"sse__server__io": 6_000_000.0},
        {"sse__server__io": 6_000_600.0},
        10_001,
    ),
    (
        "SSEMessageRateHigh",
        {"sse__server__messages": 6000.0},
        {"sse__server__messages": 6060.0},
        101,
    ),
    (
        "SSEConnectionsStalled",
        {"sse__server__stalled_connections": 100.0},
        {"sse__server__stalled_connections": 101.0},
        101,
    ),
    (
        "SSEConnectionIdle",
        {"sse__server__connection__idle__max": 3600.0},
        {"sse__server__connection__idle__max": 3601.0},
        3601,
    ),
    (
        "SSEBacklogHigh",
        {"sse__server__backlog__max": 1_000_000.0},
        {"sse__server__backlog__max": 1_000_001.0},
        1_000_001,
    ),
    (
        "SSEConnectionsPerClient",
        {"sse__server__connections_per_client__max": 100.0},
        {"sse__server__connections_per_client__max": 101.0},
        101,
    ),
]

# Errors of other classes than a refused client's.
BROKER_ERRORS = "server__errors without (('class', 'rate_limit'),)"
FAILURES = [
    (
        "SSEDroppedMessages",
        {"sse__server__dropped_messages": 60.0},
        {"sse__server__dropped_messages": 66.0},
        1.1,
    ),
    (
        "SSERejectedConnections",
        {"server__rejected_connections": 0.0},
        {"server__rejected_connections": 6.0},
        0.1,
    ),
    ("SSEBrokerErrors", {BROKER_ERRORS: 6.0}, {BROKER_ERRORS: 12.0}, 0.2),
]
_LISTED = {entry["alert"] for entry in yaml.safe_load(thresholds.DEFAULT.read_text())}
EDGES += [each for each in FAILURES if each[0] in _LISTED]


@pytest.mark.parametrize(("alert", "at", "beyond", "value"), EDGES, ids=[each[0] for each in EDGES])
def test_each_alert_at_its_edge(
    alert: str, at: dict[str, float], beyond: dict[str, float], value: float
) -> None:
    """At the threshold it is silent, just beyond it fires with the value in the list's unit."""
    assert alert not in active(minute(**{**BUSY, **at}))
    assert active(minute(**{**BUSY, **beyond}))[alert] == pytest.approx(value, rel=1e-5)


def test_every_alert_that_the_collector_measures_is_judged() -> None:
    """None of the list's is forgotten here; the leak is the one besides them."""
    assert {each.alert for each in load() or []} == {each[0] for each in EDGES} | {"SSEMemoryLeak"}


OWN = Settings(
    max_connections=50, max_connections_per_client=10, idle_seconds=60, memory_limit_mb=200
)
# At the limits of the server itself: what it may reach before it refuses, closes or drops.
AT_ITS_LIMITS = {
    "SSEConnectionsHigh": {"sse__server__active_connections": 50.0},
    "SSEConnectionsPerClient": {"sse__server__connections_per_client__max": 10.0},
    "SSEConnectionIdle": {"sse__server__connection__idle__max": 60.0},
    "SSEMemoryHigh": {"process__memory__usage": 200.0 * 1_048_576},
    "SSEBacklogHigh": {"sse__server__backlog__max": float(CLIENT_BUFFER_BYTES)},
}


@pytest.mark.parametrize("alert", AT_ITS_LIMITS)
@pytest.mark.parametrize("settings", [OWN, Settings()], ids=["own", "default"])
def test_each_alert_can_fire_before_the_servers_own_limit(alert: str, settings: Settings) -> None:
    """A threshold at or above a limit of the server's own is never crossed: by the list alone each
    of these is, and by the server's limits none.
    """
    scale = {
        "SSEConnectionsHigh": settings.max_connections / 50,
        "SSEConnectionsPerClient": settings.max_connections_per_client / 10,
        "SSEConnectionIdle": settings.idle_seconds / 60,
        "SSEMemoryHigh": settings.memory_limit_mb / 200,
    }.get(alert, 1.0)
    figures = {name: value * scale for name, value in AT_ITS_LIMITS[alert].items()}
    assert alert not in active(minute(**BUSY, **figures))
    judged = Watch(load("", own_limits(settings)) or [], lambda _: None)
    judged.judge(minute(**BUSY, **figures), CALM, 0.0, 1000.0)
    fired = {each["alert"]: each for each in judged.active(0.0)}
    assert fired[alert]["threshold"] <= 0.8 * fired[alert]["value"] * 1.0001
    # Well below there is no alarm.
    half = {name: value / 2 for name, value in figures.items()}
    judged.judge(minute(**BUSY, **half), CALM, 1.0, 1001.0)
    assert alert not in {each["alert"] for each in judged.active(1.0)}


def test_a_variable_wins_over_the_servers_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold that is set by its variable is that one; a list that is stricter stays so."""
    monkeypatch.setenv("SSE_MAX_CONNECTIONS", "60")
    limits = {each.alert: each.limit for each in load("", own_limits(OWN)) or []}
    assert (limits["SSEConnectionsHigh"], limits["SSEConnectionsPerClient"]) == (60, 8)
    wide = replace(OWN, max_connections_per_client=100_000)
    limits = {each.alert: each.limit for each in load("", own_limits(wide)) or []}
    assert limits["SSEConnectionsPerClient"] == 100


def test_the_variables_for_the_collector(capsys: pytest.CaptureFixture[str]) -> None:
    """The same numbers are printed for the collector and for Prometheus's rules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSE_SERVER_MAX_CONNECTIONS", "500")
        patch.setenv("SSE_SERVER_MEMORY_LIMIT_MB", "0")
        main()
    printed = dict(
        line.removeprefix("export ").split("=") for line in capsys.readouterr().out.splitlines()
    )
    assert printed["SSE_MAX_CONNECTIONS"] == "400"
    assert printed["SSE_MAX_IDLE_SECONDS"] == "1440"
    assert "SSE_MAX_MEMORY_MB" not in printed
    variables = {entry["variable"] for entry in _entries() if "variable" in entry}
    assert printed.keys() <= variables


def _entries() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(thresholds.DEFAULT.read_text())
    return found


@pytest.mark.parametrize(
    ("messages", "writes", "clients", "advised"),
    [
        # 200 messages a second, in writes of one each, five a second to each of 40 clients.
        (12_000.0, 12_000.0, 40.0, True),
        # The same in batches of ten.
        (12_000.0, 1_200.0, 40.0, False),
        # One message a second to each of 200 clients: nothing to put together.
        (12_000.0, 12_000.0, 200.0, False),
    ],
)
def test_batching_is_advised_where_it_would_help(
    messages: float, writes: float, clients: float, advised: bool
) -> None:
    """Many messages are no reason to batch where they are sent in batches already, or where each
    client gets hardly one a second.
    """
    gained = {"sse__server__messages": messages, "server__writes": writes}
    found = window(
        60, dict.fromkeys(gained, 0.0), {**gained, "sse__server__active_connections": clients}
    )
    assert ("SSEMessageRateHigh" in active(found)) is advised


def test_what_is_not_recorded_is_named() -> None:
    """A threshold that could not be judged is not one that is met."""
    watch = Watch(load() or [], lambda _: None)
    watch.judge(minute(**BUSY), CALM, 0.0, 1000.0)
    assert "SSEMemoryHigh" in watch.unjudged
    watch.judge(minute(**BUSY, process__memory__usage=1.0), CALM, 1.0, 1001.0)
    assert "SSEMemoryHigh" not in watch.unjudged


def test_the_leak_is_the_memorys() -> None:
    """It is judged by memory.py, by the list's number."""
    assert active(minute(**BUSY), LEAKING) == {"SSEMemoryLeak": 0.25}
    assert active(minute(**BUSY)) == {}
    assert Watch(load() or [], lambda _: None).leak_limit == 0.1


def test_the_variables_are_the_collectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold is changed by the variable that changes it in the collector."""
    monkeypatch.setenv("SSE_MAX_CONNECTIONS", "8")
    monkeypatch.setenv("SSE_MAX_MEMORY_GROWTH_MB", "0.7")
    assert active(minute(**BUSY))["SSEConnectionsHigh"] == 9
    assert Watch(load() or [], lambda _: None).leak_limit == 0.7


def test_a_rate_needs_some_seconds() -> None:
    """Rates and means are not judged before the readings span ten seconds."""
    many = {"sse__server__messages": 100_000.0}
    assert active(window(SETTLED - 1, {"sse__server__messages": 0.0}, many)) == {}
    assert "SSEMessageRateHigh" in active(window(SETTLED, {"sse__server__messages": 0.0}, many))


def test_low_is_judged_where_a_connection_was_open_all_the_time() -> None:
    """Neither the first client of a quiet service nor a service without clients is slow."""
    no_client = {"sse__server__connections": 0.0, "sse__server__active_connections": 0.0}
    first = {"sse__server__connections": 1.0, "sse__server__active_connections": 1.0}
    silent = {"sse__server__messages": 0.0}
    assert active(window(60, {**no_client, **silent}, {**first, **silent})) == {}
    assert active(window(60, {**no_client, **silent}, {**no_client, **silent})) == {}
    assert active(window(60, {**first, **silent}, {**first, **silent})) == {
        "SSEMessageRateLow": 0.0
    }


def test_a_mean_over_nothing_is_zero() -> None:
    """As in the collector: no message, no processing time."""
    terms = ("sse.server.send.time", "/", "sse.server.messages", "*", "1000")
    nothing = {"sse__server__send__time": 0.0, "sse__server__messages": 0.0}
    assert measure(terms, window(60, nothing, nothing)) == 0.0


def test_what_is_not_recorded_is_not_judged() -> None:
    """Without system metrics there is no alert of memory, and no error."""
    assert measure(("process.memory.usage", "/", "1048576"), minute(**BUSY)) is None


def test_the_window_is_a_minute() -> None:
    """A rate is that of the last minute, whatever was before."""
    found = Window(60)
    for second in range(200):
        found.add(sample(second, sse__server__messages=10.0 * max(0, second - 100)))
    assert found.span == 60
    assert found.rate("sse.server.messages") == 10


def test_a_counter_that_begins_begins_at_zero() -> None:
    """The first messages of a process count, though no metric was recorded before them."""
    found = Window()
    found.add(sample(0))
    found.add(sample(10, sse__server__messages=50))
    assert found.rate("sse.server.messages") == 5


# --- how they are reported --------------------------------------------------------------------

HIGH = minute(**BUSY, sse__server__backlog__max=2e6)
CALM_WINDOW = minute(**BUSY, sse__server__backlog__max=0.0)


@pytest.fixture
def reported() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def watch(reported: list[dict[str, Any]]) -> Watch:
    return Watch(load() or [], reported.append)


def test_an_episode_is_reported_at_its_ends(
    watch: Watch, reported: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """To the log and to the history: once when it begins, once when it ends."""
    caplog.set_level(logging.INFO, "server.alerts")
    for now in range(1000, 1010):
        watch.judge(HIGH, CALM, now, now)
    watch.judge(CALM_WINDOW, CALM, 1010, 1010)
    first, second = reported
    assert first == {
        "time": "1970-01-01T00:16:40Z",
        "status": "firing",
        "source": "process",
        "alert": "SSEBacklogHigh",
        "severity": "warning",
        "value": 2_000_000.0,
        "threshold": 1_000_000.0,
        "unit": "By",
        "summary": "A client has fallen behind; what it has not taken yet fills the server's "
        "memory.",
    }
    assert (second["status"], second["time"]) == ("resolved", "1970-01-01T00:16:50Z")
    # The value that ended it, not the last that breached.
    assert second["value"] == 0.0
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "SSEBacklogHigh firing (warning): 2e+06" in caplog.text


def test_the_cooldown(watch: Watch, reported: list[dict[str, Any]]) -> None:
    """What flaps is reported once in five minutes, and is active whenever it is breached."""
    for now in range(1000, 1000 + int(COOLDOWN)):
        watch.judge(HIGH if now % 2 else CALM_WINDOW, CALM, now, now)
        assert len(watch.active(now)) == now % 2
    assert [each["status"] for each in reported] == ["firing", "resolved"]
    (alert,) = watch.active(1299)
    assert (alert["since"], alert["cooldown_left_seconds"]) == ("1970-01-01T00:21:39Z", 2.0)
    watch.judge(HIGH, CALM, 1302, 1302)
    assert [each["status"] for each in reported] == ["firing", "resolved", "firing"]


def test_what_lasts_is_reported_after_each_cooldown(
    watch: Watch, reported: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """An alert that lasts for an hour is one alert, repeated each five minutes; its end is once."""
    for now in range(1000, 4600, 50):
        watch.judge(HIGH, CALM, now, now)
        (alert,) = watch.active(now)
        assert alert["since"] == "1970-01-01T00:16:40Z"
        assert alert["cooldown_left_seconds"] == COOLDOWN - (now - 1000) % COOLDOWN
    watch.judge(CALM_WINDOW, CALM, 4600, 4600)
    assert [each["status"] for each in reported] == [*["firing"] * 12, "resolved"]
    assert [each["time"] for each in reported[:2]] == [
        "1970-01-01T00:16:40Z",
        "1970-01-01T00:21:40Z",
    ]
    assert caplog.text.count("SSEBacklogHigh firing") == 12


@pytest.mark.parametrize("step", [-7200, 7200])
def test_a_clock_that_is_set(step: int, watch: Watch, reported: list[dict[str, Any]]) -> None:
    """The cooldown is five minutes, however the clock is set meanwhile; times are the clock's."""
    watch.judge(HIGH, CALM, 50, 10_000)
    watch.judge(CALM_WINDOW, CALM, 51, 10_001)
    watch.judge(HIGH, CALM, 60, 10_010 + step)
    assert len(reported) == 2
    assert watch.active(60)[0]["cooldown_left_seconds"] == 290
    watch.judge(HIGH, CALM, 350, 10_300 + step)
    assert [each["status"] for each in reported] == ["firing", "resolved", "firing"]
    assert reported[2]["time"] == utc(10_300 + step)


def test_the_worst_is_first(watch: Watch) -> None:
    """Critical before warning before info."""
    bad = minute(
        sse__server__messages=60.0,
        sse__server__io=1e7,
        sse__server__backlog__max=2e6,
        sse__server__active_connections=20_000.0,
    )
    watch.judge(bad, CALM, 1000, 1000)
    alerts = watch.active(1000)
    assert [each["severity"] for each in alerts] == ["critical", "warning", "info"]
    assert all(each["recommendation"] for each in alerts)


def test_every_alert_has_advice() -> None:
    """Each has what to do, and not only what is."""
    assert [each.alert for each in load() or [] if each.advice == each.summary] == []


# --- what may be wrong ------------------------------------------------------------------------


def test_without_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was copied without it has no thresholds, which is no error."""
    monkeypatch.setattr(thresholds, "DEFAULT", tmp_path / "none.yaml")
    assert load() is None


def entry(**changed: str) -> str:
    fields = {
        "alert": "A",
        "severity": "info",
        "variable": "SSE_A",
        "default": "1",
        "unit": "s",
        "says": "So.",
        "collector": "sse.a",
        **changed,
    }
    return "- " + "\n  ".join(f"{name}: {value}" for name, value in fields.items())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (entry(collector="'sse.a +  sse.b'"), "A: not understood: sse.a"),
        (entry(collector="'sse.a *'"), "A: not understood: sse.a *"),
        (entry(severity="bad"), "A: the severity is 'bad'"),
        (entry(default="much"), "SSE_A is 'much', and takes a number"),
        ("alerts: 1", "is no list of thresholds"),
        ("- [", "is no list of thresholds"),
        ("- alert: A\n  collector: sse.a", "is no list of thresholds: KeyError('variable')"),
    ],
)
def test_a_bad_list(text: str, wanted: str, tmp_path: Path) -> None:
    """The server does not start with it, and the error has the reason."""
    file = tmp_path / "thresholds.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(wanted)):
        load(str(file))


@pytest.mark.parametrize("wanted", ["many", "nan", "inf"])
def test_a_bad_variable(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, with its value; so is one that nothing would ever breach."""
    monkeypatch.setenv("SSE_MAX_CONNECTIONS", wanted)
    with pytest.raises(ValueError, match=f"SSE_MAX_CONNECTIONS is '{wanted}', and takes a number"):
        load()


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    """One that was asked for has to be there."""
    with pytest.raises(ValueError, match=r"SSE_SERVER_THRESHOLDS names .*none\.yaml"):
        load(str(tmp_path / "none.yaml"))


def test_a_part_of_a_metric(tmp_path: Path, backend: Backend) -> None:
    """Errors of a class that has a threshold of its own are not counted twice."""
    file = tmp_path / "thresholds.yaml"
    file.write_text(entry(collector="server.errors", without="{class: rate_limit}"))
    watch = Watch(load(str(file)) or [], lambda _: None)
    reader = InMemoryMetricReader()
    backend.meter_provider.add_metric_reader(reader)
    meters = Meters(backend.meter_provider)
    found = Window()
    for at, kind in ((0.0, "unknown"), (10.0, "rate_limit"), (20.0, "timeout")):
        meters.errors.add(100, {"class": kind, "pattern": "repeated"})
        data = reader.get_metrics_data()
        metrics = {
            metric.name: Metric(scope.scope.name, "", True, list(metric.data.data_points))
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        found.add(Sample.of(Reading(at, 0.0, metrics, {}, Clients()), watch.parts))
        watch.judge(found, CALM, at, at)
        (value,) = [each["value"] for each in watch.active(at)] or [0.0]
        # 100 more in 20 seconds, of those that count.
        assert value == (5.0 if at == 20 else 0.0)


def test_a_threshold_of_ones_own(tmp_path: Path) -> None:
    """The list may hold any metric of the process."""
    file = tmp_path / "thresholds.yaml"
    file.write_text(entry(collector="server.queue.length * 2"))
    assert load(str(file)) == [
        Threshold("A", "info", 1.0, False, "s", "So.", ("server.queue.length", "*", "2"))
    ]
