"""The Prometheus rules, evaluated by promtool over simulated processes."""

import re
from pathlib import Path
from typing import Final

import pytest
import yaml
from alerting.breaches import BREACHES, COMPANIONS, END, KEYS, MINUTE, changed, errors, scenario_of
from alerting.processes import (
    ACTIVE,
    AGE,
    BACKLOG,
    BACKLOG_MAX,
    FIRST_COUNT,
    IDLE,
    MEMORY,
    MESSAGES,
    RESUMED,
    SCRAPE,
    Figure,
    Key,
    Process,
    always,
    each_second,
    ended,
    ended_soon,
    first_within,
    healthy,
    idle,
)
from alerting.promtool import (
    COLLECTOR,
    Firing,
    Judged,
    Scenario,
    fires,
    group,
    judge,
    promtool_test,
    render,
    thresholds,
)
from server.settings import Settings


def test_every_alert_has_both_cases() -> None:
    """No alert is without its case just below the threshold and just above."""
    assert list(BREACHES) == list(thresholds())
    made = yaml.safe_load((COLLECTOR / "prometheus/alerts.yaml").read_text())
    assert [rule["alert"] for rule in made["groups"][0]["rules"]] == list(BREACHES)
    for alert, (_, below, above) in BREACHES.items():
        assert below != above, alert


@pytest.fixture(scope="module")
def above(rendered: dict[int, Path]) -> Judged:
    cases = {
        alert: scenario_of(alert, high, {alert: 1, **COMPANIONS.get(alert, {})})
        for alert, (_, _, high) in BREACHES.items()
    }
    return judge(rendered[60], cases)


@pytest.mark.parametrize("alert", BREACHES)
def test_fires_just_above_its_threshold_alone(alert: str, above: Judged) -> None:
    """Just above its threshold an alert fires, and none that has no reason to."""
    assert above[alert] == ""


@pytest.fixture(scope="module")
def below(rendered: dict[int, Path]) -> Judged:
    cases = {
        alert: scenario_of(alert, low, COMPANIONS.get(alert, {}))
        for alert, (_, low, _) in BREACHES.items()
    }
    return judge(rendered[60], cases)


@pytest.mark.parametrize("alert", BREACHES)
def test_silent_just_below_its_threshold(alert: str, below: Judged) -> None:
    """Just below its threshold an alert does not fire once in all the time."""
    assert below[alert] == ""


@pytest.fixture(scope="module")
def written(rendered: dict[int, Path]) -> Judged:
    figures = {alert: high for alert, (_, _, high) in BREACHES.items()}
    figures["SSEEndingErrors"] = 0.07
    cases = {
        alert: scenario_of(alert, figure, {alert: 1, **COMPANIONS.get(alert, {})}, pushed=True)
        for alert, figure in figures.items()
    }
    return judge(rendered[60], cases)


@pytest.mark.parametrize("alert", BREACHES)
def test_fires_where_figures_are_written(alert: str, written: Judged) -> None:
    """The rules hold where the collector writes each export to Prometheus, too; a ratio of new
    closes is less exact there.
    """
    assert written[alert] == ""


def test_the_reference_servers_alerts_can_fire(tmp_path: Path) -> None:
    """With the thresholds that README.md gives for the reference server each alert about one of its
    limits fires while the limit is reached, which it never exceeds; at half of it none does.
    """
    (line,) = re.findall(
        r"(?m)^export (SSE_MAX_CONNECTIONS=\d+ SSE_MAX_PER_.*)$",
        (COLLECTOR / "README.md").read_text(),
    )
    render(tmp_path, **dict(each.split("=") for each in line.split()))
    limits = Settings()
    reached = {
        "SSEConnectionsHigh": ("active", limits.max_connections),
        "SSEConnectionsPerClient": ("per_client", limits.max_connections_per_client),
        "SSEConnectionIdle": ("idle", limits.idle_seconds),
        "SSEMemoryHigh": ("memory", limits.memory_limit_mb * 2**20),
    }
    cases = {}
    for alert, (name, limit) in reached.items():
        for share, firing in ((1, {alert: 1}), (0.5, {})):
            processes = changed(**{name: always(share * limit)})
            cases[f"{alert} {share}"] = Scenario(processes, {10 * MINUTE: firing}, ever=firing)
    assert judge(tmp_path, cases) == dict.fromkeys(cases, "")


# What a fast alert measures, before it happens: detected within a minute at a 15 s export.
NORMAL: Final[dict[str, Figure]] = {
    "active": always(50),
    "memory": always(100e6),
    "messages": each_second(20),
    "send_time": each_second(0.02),
    "io": each_second(10_000),
    "stalled": always(0),
    "idle": always(3),
    "backlog_max": always(1_000),
    "per_client": always(5),
}
SUDDEN: Final[dict[str, tuple[str, Figure]]] = {
    "SSEConnectionsHigh": ("active", always(10_001)),
    "SSEMemoryHigh": ("memory", always(1025 * 2**20)),
    "SSEMessageRateLow": ("messages", always(0)),
    "SSEProcessingSlow": ("send_time", each_second(20 * 2.0)),
    "SSEProcessingElevated": ("send_time", each_second(20 * 0.4)),
    "SSEMessagesLarge": ("io", each_second(20 * 40_000)),
    "SSEMessageRateHigh": ("messages", each_second(400)),
    "SSEConnectionsStalled": ("stalled", always(101)),
    "SSEConnectionIdle": ("idle", always(3601)),
    "SSEBacklogHigh": ("backlog_max", always(1_000_001)),
    "SSEConnectionsPerClient": ("per_client", always(101)),
}


# Seconds after an export at which it happens.
PHASES: Final = (1, 8, 14)


def happening(alert: str, phase: int) -> Scenario:
    name, after = SUDDEN[alert]
    before = NORMAL[name]
    began = before(0) != before(1)
    happens = 5 * MINUTE + phase

    def figure(age: float) -> float | None:
        if age < happens:
            return before(age)
        grown = (before(happens) or 0) if began else 0
        return grown + (after(age - happens) or 0)

    process = Process({**healthy(), KEYS[name]: figure}, start=0)
    at = happens + 60
    expected = {5 * MINUTE: {}, at + (-at) % SCRAPE: _with_companions(alert)}
    return Scenario([process], expected, export=15)


@pytest.fixture(scope="module")
def sudden(rendered: dict[int, Path]) -> Judged:
    cases = {f"{each} {phase}": happening(each, phase) for each in SUDDEN for phase in PHASES}
    return judge(rendered[15], cases)


@pytest.mark.parametrize("alert", SUDDEN)
def test_detects_within_a_minute(alert: str, sudden: Judged) -> None:
    """With an export every 15 s, what happens suddenly is firing a minute later, whenever
    between two exports it happens.
    """
    assert [sudden[f"{alert} {phase}"] for phase in PHASES] == ["", "", ""]


def _with_companions(alert: str) -> Firing:
    return {alert: 1, **(COMPANIONS.get(alert, {}) if alert == "SSEProcessingSlow" else {})}


def rolling(gone: dict[Key, Figure] | None) -> list[Process]:
    """Three processes of 60 connections are replaced one after another: new first, then the old
    one goes, and its clients come back to a new one and are resumed there.
    """
    processes = []
    for position, name in enumerate("abc"):
        replaced = 20 * MINUTE + position * 3 * MINUTE + 7
        processes.append(Process(healthy(60), instance=name, end=replaced, last=gone))
        came_back = {
            **healthy(60),
            ACTIVE: lambda age: 60.0 if age >= 30 else 0.0,
            RESUMED: lambda age: 60 + 0.02 * age,
            MESSAGES: lambda age: 600 + 20 * age,
            BACKLOG: lambda age: 2e6 if age < 90 else 5e3,
        }
        processes.append(Process(came_back, instance=f"new-{name}", start=replaced - 30))
    return processes


def at_once(instance: str) -> list[Process]:
    """All clients of one process come back to its successor within seconds."""
    drained = {ACTIVE: always(0), AGE: always(0), ended("client_disconnect"): always(200)}
    successor = {**healthy(60), RESUMED: lambda age: 60 + 0.02 * age}
    return [
        Process(healthy(60), end=20 * MINUTE, last=drained),
        Process(successor, instance=instance, start=20 * MINUTE + 20),
    ]


DRAINED: Final[dict[Key, Figure]] = {
    ACTIVE: always(0),
    AGE: always(0),
    IDLE: always(0),
    ended("completed"): lambda age: 0.1 * age + 60,
}
QUIET: Final = {
    "start-up": [Process(healthy())],
    "start-up of a crowd": [
        Process(
            {
                **healthy(5_000),
                MEMORY: lambda age: 80e6 + 500e6 * min(age / 240, 1),
                BACKLOG: lambda age: 30e6 if age < 100 else 1e4,
            }
        )
    ],
    "idle from the start": [Process(idle())],
    "idle after connections": [
        Process(
            {
                **healthy(),
                ACTIVE: lambda age: 50.0 if age < 600 else 0.0,
                AGE: lambda age: age if age < 600 else 0.0,
                MESSAGES: lambda age: 20 * min(age, 600),
            }
        )
    ],
    "deploy, drained": rolling(DRAINED),
    "deploy, killed": rolling(None),
    "deploy, all at once": at_once("b"),
    "deploy, the same instance id": [
        at_once("a")[1],
        Process(healthy(60), instance="z", end=20 * MINUTE, last=DRAINED),
    ],
    "slow killed process": [
        Process(healthy()),
        Process({**healthy(), MESSAGES: each_second(1.2)}, instance="b", end=20 * MINUTE),
    ],
}


EXPORTS: Final = {"60s": (60, False), "15s": (15, False), "60s-written": (60, True)}


@pytest.fixture(scope="module")
def quiet(rendered: dict[int, Path]) -> dict[str, Judged]:
    judged = {}
    for how, (export, pushed) in EXPORTS.items():
        cases = {
            what: Scenario(processes, {40 * MINUTE: {}}, ever={}, export=export, pushed=pushed)
            for what, processes in QUIET.items()
        }
        judged[how] = judge(rendered[export], cases)
    return judged


@pytest.mark.parametrize("how", EXPORTS)
@pytest.mark.parametrize("what", QUIET)
def test_silent(what: str, how: str, quiet: dict[str, Judged]) -> None:
    """Nothing fires at a start-up, on an idle service, through a deploy, or for the last export of
    a killed process, while the collector goes on showing it.
    """
    assert quiet[how][what] == ""


def test_a_counter_that_begins_anew_is_no_alert(rendered: dict[int, Path]) -> None:
    """A process that restarts under its old instance id only resets its counters."""

    def restarted(figure: Figure) -> Figure:
        return lambda age: figure(age if age < 1200 else age - 1199)

    figures = {each: restarted(figure) for each, figure in healthy().items()}
    fires(rendered[60], Scenario([Process(figures)], {40 * MINUTE: {}}, ever={}))


def test_a_deploy_that_cuts_streams_fires_just_that(rendered: dict[int, Path]) -> None:
    """A deploy that cuts live streams fires one alert of severity info, for some minutes."""
    cut_off = {**DRAINED, ended("server_shutdown"): always(60)}
    del cut_off[ended("completed")]
    only = {"SSEShutdownCutStreams": 1}
    expected = {25 * MINUTE: only, 40 * MINUTE: {}}
    fires(rendered[60], Scenario(rolling(cut_off), expected, ever=only))


def test_short_lived_connections_are_a_storm_too(rendered: dict[int, Path]) -> None:
    """Connections that end at once and come back count, but not those that were completed."""
    for reason, firing in (
        ("client_disconnect", {"SSEReconnectStorm": 1}),
        ("completed", {}),
    ):
        figures = {**healthy(), ended_soon(reason): each_second(6), ended(reason): each_second(6)}
        fires(rendered[60], Scenario([Process(figures)], {30 * MINUTE: firing}, ever=firing))


def test_few_closes_are_no_ratio(rendered: dict[int, Path]) -> None:
    """An error among fewer than twenty closes is not an error ratio."""
    fires(rendered[60], Scenario(errors(1, closes=19), {END: {}}, ever={}))


def test_few_first_messages_are_no_quantile(rendered: dict[int, Path]) -> None:
    """Fewer than twenty first messages in five exports have no 95th percentile."""
    slow = each_second(19 / 300)
    buckets = {first_within(le): always(0) for le in ("1", "5")}
    more = {first_within(le): slow for le in ("10", "+Inf")}
    figures = {**healthy(), **buckets, **more, FIRST_COUNT: slow}
    fires(rendered[60], Scenario([Process(figures)], {END: {}}, ever={}))


def test_no_messages_at_all_is_a_low_rate(rendered: dict[int, Path]) -> None:
    """Open connections of a process that has never written a message have the rate 0."""
    figures = {name: figure for name, figure in healthy().items() if name != MESSAGES}
    firing = {"SSEMessageRateLow": 1}
    fires(rendered[60], Scenario([Process(figures)], {10 * MINUTE: firing}, ever=firing))


def test_the_worst_connection_is_a_maximum_not_a_sum(rendered: dict[int, Path]) -> None:
    """A maximum of two routes is not added up."""
    elsewhere = {"http_request_method": "GET", "http_route": "/other", "url_scheme": "http"}
    for name, value in ((IDLE, 3_000.0), (BACKLOG_MAX, 900_000.0)):
        twin = (name[0], tuple(elsewhere.items()))
        figures = {**healthy(), name: always(value), twin: always(value)}
        fires(rendered[60], Scenario([Process(figures)], {END: {}}, ever={}))


def test_an_alert_names_value_threshold_and_instance(rendered: dict[int, Path]) -> None:
    """A notification has the value, the threshold, the instance and the runbook's section."""
    series = Process({**healthy(), ACTIVE: always(10_001)}).scraped(60, 600)
    entry = thresholds()["SSEConnectionsHigh"]
    expected = {
        "exp_labels": {"severity": "critical", "job": "shop", "instance": "a"},
        "exp_annotations": {
            "summary": entry["says"],
            "description": "Instance a of shop: 10001 open connections. "
            "The threshold is 10000 (SSE_MAX_CONNECTIONS).",
            "value": "10001",
            "threshold": "10000",
            "runbook_url": "collector/runbook.md#sseconnectionshigh",
        },
    }
    check = {"eval_time": "600s", "alertname": "SSEConnectionsHigh", "exp_alerts": [expected]}
    assert promtool_test(rendered[60], [group(series, alert_rule_test=[check])]) == ""
