"""The Prometheus rules, evaluated by promtool over simulated processes."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from alerting.processes import (
    ACTIVE,
    AGE,
    BACKLOG,
    BACKLOG_MAX,
    FIRST_COUNT,
    IDLE,
    IO,
    MEMORY,
    MESSAGES,
    PER_CLIENT,
    RESUMED,
    SCRAPE,
    SEND_TIME,
    STALLED,
    STEP,
    Figure,
    Key,
    Process,
    always,
    born,
    each_second,
    ended,
    ended_soon,
    first_within,
    healthy,
    idle,
)
from helpers.tools import tool

COLLECTOR: Final = Path(__file__).resolve().parents[2] / "collector"
MINUTE: Final = 60
# When most of the cases are looked at: a leak has to last for twenty minutes.
END: Final = 26 * MINUTE
Firing = dict[str, int]


def render(folder: Path, **environment: object) -> None:
    """Renders the rules into the folder, with only these variables set."""
    shutil.copy(COLLECTOR / "prometheus/prometheus.yaml", folder)
    ran = rules(folder, **environment)
    assert ran.returncode == 0, ran.stderr


def rules(folder: Path, **environment: object) -> "subprocess.CompletedProcess[str]":
    """What rules.py makes of a folder's prometheus.yaml, and says."""
    kept = {name: value for name, value in os.environ.items() if name[:4] not in ("SSE_", "OTEL")}
    return subprocess.run(
        [sys.executable, str(COLLECTOR / "rules.py"), str(folder)],
        env={**kept, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
    )


def thresholds() -> dict[str, dict[str, Any]]:
    entries = yaml.safe_load((COLLECTOR / "thresholds.yaml").read_text())
    return {entry["alert"]: entry for entry in entries}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of rules for the SDK's export interval, and for the documented short one."""
    folders = {}
    for seconds in (60, 15):
        folders[seconds] = tmp_path_factory.mktemp(f"rules{seconds}")
        render(folders[seconds], OTEL_METRIC_EXPORT_INTERVAL=seconds * 1000)
    return folders


@dataclass
class Told:
    """Processes of one service, and what has to fire of it: at these seconds, and what has ever by
    the last of them. ``up`` is what the collector's own scrapes tell, where it is not always there.
    """

    processes: list[Process]
    expected: dict[float, Firing]
    ever: Firing | None = None
    export: int = 60
    up: str | None = None
    pushed: bool = False

    @property
    def last(self) -> float:
        return max(self.expected)

    def scraped(self, job: str) -> dict[str, str]:
        """The series of its processes, as those of a service of this name."""
        series: dict[str, str] = {}
        for process in self.processes:
            named = replace(process, job=job)
            series |= named.scraped(self.export, self.last, pushed=self.pushed)
        return series

    def checks(self, job: str) -> Iterator[dict[str, Any]]:
        """Of this service, and of what belongs to none."""
        alerts = f'ALERTS{{alertstate="firing", job=~"{job}|{OF_THE_COLLECTOR}|"}}'
        for at, firing in self.expected.items():
            yield _check(f"count by (alertname) ({alerts})", at, firing)
        if self.ever is not None:
            once = f"count by (alertname) (max_over_time({alerts}[{self.last:.0f}s]))"
            yield _check(once, self.last, self.ever)


OF_THE_COLLECTOR: Final = "otel-collector"
Judged = dict[str, str]


def judge(rules: Path, cases: dict[str, Told]) -> Judged:
    """What promtool finds wrong with each case, nothing where all is right.

    An evaluation for one service takes almost as long as one for many, so all are evaluated
    together, each a service of its own; but not those for which the collector is not always there.
    """
    jobs = {f"case-{number}": each for number, each in enumerate(cases.values(), 1)}
    together = {job: told for job, told in jobs.items() if told.up is None}
    alone = [{job: told} for job, told in jobs.items() if told.up is not None]
    groups = []
    for services in (together, *alone):
        last = max((told.last for told in services.values()), default=0)
        up = next((told.up for told in services.values()), None) or f"1x{int(last / STEP)}"
        series = {f'up{{job="{OF_THE_COLLECTOR}",instance="c"}}': up}
        for job, told in services.items():
            series |= told.scraped(job)
        checks = [check for job, told in services.items() for check in told.checks(job)]
        groups.append(_group(series, promql_expr_test=checks))
    said = _promtool_test(rules, groups)
    wrong = dict.fromkeys(jobs, "")
    for fault in re.split(r"(?m)^ *(?=expr: )", said)[1:]:
        (job,) = re.findall(r"case-\d+", fault.partition("\n")[0])
        wrong[job] += fault
    # It says nothing where it finds nothing wrong, and nothing but what is wrong with the cases.
    assert not said or any(wrong.values()), said
    return dict(zip(cases, wrong.values(), strict=True))


def fires(rules: Path, told: Told) -> None:
    """Fails unless this one fires as it has to."""
    assert judge(rules, {"it": told}) == {"it": ""}


def _check(expression: str, at: float, firing: Firing) -> dict[str, Any]:
    samples = [
        {"labels": f'{{alertname="{name}"}}', "value": count} for name, count in firing.items()
    ]
    return {"expr": expression, "eval_time": f"{at:.0f}s", "exp_samples": samples}


def _group(series: dict[str, str], **checks: Any) -> dict[str, Any]:
    told = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": f"{STEP * 1000:.0f}ms", "input_series": told, **checks}


def _promtool_test(rules: Path, groups: list[dict[str, Any]]) -> str:
    """What it finds wrong."""
    content = {
        "rule_files": ["recording.yaml", "alerts.yaml"],
        "evaluation_interval": f"{SCRAPE}s",
        "group_eval_order": ["sse-recording", "sse-alerts"],
        "tests": groups,
    }
    file = rules / "test.yaml"
    file.write_text(yaml.safe_dump(content, width=10_000))
    ran = subprocess.run(
        [tool("promtool"), "test", "rules", file],
        # It makes much garbage in a short life.
        env={**os.environ, "GOGC": "800"},
        capture_output=True,
        text=True,
    )
    said = ran.stdout + ran.stderr
    assert (ran.returncode == 0) is ("SUCCESS" in said), said
    return "" if ran.returncode == 0 else said


def changed(**figures: Figure) -> list[Process]:
    """A healthy process but for these figures, named as in ``processes``."""
    return [Process({**healthy(), **{_KEYS[name]: figure for name, figure in figures.items()}})]


_KEYS: Final[dict[str, Key]] = {
    "active": ACTIVE,
    "backlog": BACKLOG,
    "backlog_max": BACKLOG_MAX,
    "idle": IDLE,
    "io": IO,
    "memory": MEMORY,
    "messages": MESSAGES,
    "per_client": PER_CLIENT,
    "resumed": RESUMED,
    "send_time": SEND_TIME,
    "stalled": STALLED,
}


def errors(ratio: float, endings: float = 1000) -> list[Process]:
    """This share of the endings, all in the last export, is an error or a time-out."""
    at, bad = END - 4 * MINUTE, endings * ratio
    figures = {
        **healthy(),
        ended("completed"): always(0),
        ended("client_disconnect"): lambda age: endings - bad if age >= at else 0.0,
        ended("error"): born(at, bad * 0.75),
        ended("timeout"): born(at, bad * 0.25),
    }
    return [Process(figures)]


def late_first_messages(share: float) -> list[Process]:
    """This share of the first messages takes longer than the default threshold, 5 s."""
    in_time = each_second(0.2 * (1 - share))
    return [
        Process({**healthy(), first_within("1"): always(0), first_within("5"): in_time}),
    ]


def share_of_one(times_the_mean: float) -> list[Process]:
    """Of four processes, one has so many times the mean's connections."""
    crowded = 3 * 100 * times_the_mean / (4 - times_the_mean)
    sizes = {"a": crowded, "b": 100, "c": 100, "d": 100}
    return [Process(healthy(size), instance=name) for name, size in sizes.items()]


def cut(streams: float) -> list[Process]:
    """One of two processes goes, and with it so many live streams."""
    last = {ACTIVE: always(0), AGE: always(0)}
    if streams:
        last[ended("server_shutdown")] = always(streams)
    return [
        Process(healthy()),
        Process(healthy(), instance="b", end=END - 4 * MINUTE, last=last),
    ]


def silent_since(minutes: float) -> list[Process]:
    last = {ACTIVE: always(0), AGE: always(0)}
    return [Process(healthy(), end=END - minutes * MINUTE, last=last)]


def collector_down(seconds: int) -> str:
    """The collector's ``up`` until the end."""
    down = int(seconds / STEP)
    return f"1x{int(END / STEP) - down} 0x{down}"


# Each alert: what makes of a figure processes, and the figures just below and just above.
# The thresholds are the defaults; TOLERANCE is how near to them a rate is taken;
# the slope of a figure that climbs by steps, five of them, is less exact.
TOLERANCE: Final = 0.01
DEFAULT: Final = {name: entry.get("default", 0) for name, entry in thresholds().items()}
BREACHES: Final[dict[str, tuple[Any, float, float]]] = {}


def _breach(alert: str, make: Any, below: float | None = None, above: float | None = None) -> None:
    limit = DEFAULT[alert]
    low = limit * (1 - TOLERANCE) if below is None else below
    high = limit * (1 + TOLERANCE) if above is None else above
    BREACHES[alert] = (make, low, high)


_breach("SSEConnectionsHigh", lambda v: changed(active=always(v)), 10_000, 10_001)
_breach("SSEMemoryHigh", lambda v: changed(memory=always(v * 2**20)))
_breach(
    "SSEMessageRateLow",
    lambda v: changed(
        messages=each_second(v), send_time=each_second(v / 1000), io=each_second(500 * v)
    ),
    1.01,
    0.99,
)
_breach("SSEProcessingSlow", lambda v: changed(send_time=each_second(20 * v / 1000)))
_breach("SSEMemoryLeak", lambda v: changed(memory=lambda age: 100e6 + v * 2**20 * age))
_breach("SSEProcessingElevated", lambda v: changed(send_time=each_second(20 * v / 1000)))
_breach("SSEMessagesLarge", lambda v: changed(io=each_second(20 * v)))
_breach(
    "SSEMessageRateHigh",
    lambda v: changed(
        messages=each_second(v), send_time=each_second(v / 1000), io=each_second(500 * v)
    ),
)
_breach("SSEConnectionsStalled", lambda v: changed(stalled=always(v)), 100, 101)
_breach("SSEConnectionIdle", lambda v: changed(idle=always(v)))
_breach("SSEBacklogHigh", lambda v: changed(backlog_max=always(v)))
_breach("SSEConnectionsPerClient", lambda v: changed(per_client=always(v)), 100, 101)
_breach("SSEBacklogGrowing", lambda v: changed(backlog=each_second(v)), 95_000, 105_000)
_breach("SSEReconnectStorm", lambda v: changed(resumed=each_second(v * 5)))
_breach("SSEEndingErrors", errors)
_breach("SSEFirstMessageSlow", late_first_messages, 0.049, 0.051)
_breach("SSEInstanceUnbalanced", share_of_one)
_breach("SSEShutdownCutStreams", cut, 0, 1)
# Of what is absent, the minutes and seconds of silence: expiration, and what the rule waits.
_breach("SSETelemetryAbsent", silent_since, 6, 8)
_breach("SSECollectorAbsent", collector_down, 60, 80)

# A worse degree of the same is told too, and then explains the lesser one away.
COMPANIONS: Final = {"SSEProcessingSlow": {"SSEProcessingElevated": 1}}


def test_every_alert_has_both_cases() -> None:
    """No alert is without its case just below the threshold and just above."""
    assert list(BREACHES) == list(thresholds())
    made = yaml.safe_load((COLLECTOR / "prometheus/alerts.yaml").read_text())
    assert [rule["alert"] for rule in made["groups"][0]["rules"]] == list(BREACHES)
    for alert, (_, below, above) in BREACHES.items():
        assert below != above, alert


def told_of(alert: str, figure: float, firing: Firing, *, pushed: bool = False) -> Told:
    made = BREACHES[alert][0](figure)
    processes, up = (changed(), made) if isinstance(made, str) else (made, None)
    return Told(processes, {END: firing}, ever=firing, up=up, pushed=pushed)


@pytest.fixture(scope="module")
def above(rendered: dict[int, Path]) -> Judged:
    cases = {
        alert: told_of(alert, high, {alert: 1, **COMPANIONS.get(alert, {})})
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
        alert: told_of(alert, low, COMPANIONS.get(alert, {}))
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
        alert: told_of(alert, figure, {alert: 1, **COMPANIONS.get(alert, {})}, pushed=True)
        for alert, figure in figures.items()
    }
    return judge(rendered[60], cases)


@pytest.mark.parametrize("alert", BREACHES)
def test_fires_where_figures_are_written(alert: str, written: Judged) -> None:
    """The rules hold where the collector writes each export to Prometheus, too; a ratio of new
    endings is less exact there.
    """
    assert written[alert] == ""


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


def happening(alert: str, phase: int) -> Told:
    name, after = SUDDEN[alert]
    before = NORMAL[name]
    began = before(0) != before(1)
    happens = 5 * MINUTE + phase

    def figure(age: float) -> float | None:
        if age < happens:
            return before(age)
        grown = (before(happens) or 0) if began else 0
        return grown + (after(age - happens) or 0)

    process = Process({**healthy(), _KEYS[name]: figure}, start=0)
    at = happens + 60
    expected = {5 * MINUTE: {}, at + (-at) % SCRAPE: _with_companions(alert)}
    return Told([process], expected, export=15)


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
            what: Told(processes, {40 * MINUTE: {}}, ever={}, export=export, pushed=pushed)
            for what, processes in QUIET.items()
        }
        judged[how] = judge(rendered[export], cases)
    return judged


@pytest.mark.parametrize("how", EXPORTS)
@pytest.mark.parametrize("what", QUIET)
def test_silent(what: str, how: str, quiet: dict[str, Judged]) -> None:
    """Nothing fires at a start-up, on an idle service, through a deploy, or for the last words of
    a killed process, while the collector goes on showing them.
    """
    assert quiet[how][what] == ""


def test_a_counter_that_begins_anew_is_no_alert(rendered: dict[int, Path]) -> None:
    """A process that restarts under its old instance id only resets its counters."""

    def restarted(figure: Figure) -> Figure:
        return lambda age: figure(age if age < 1200 else age - 1199)

    figures = {each: restarted(figure) for each, figure in healthy().items()}
    fires(rendered[60], Told([Process(figures)], {40 * MINUTE: {}}, ever={}))


def test_a_deploy_that_cuts_streams_tells_just_that(rendered: dict[int, Path]) -> None:
    """Of a deploy that cuts live streams one information is told, and forgotten after minutes."""
    cut_off = {**DRAINED, ended("server_shutdown"): always(60)}
    del cut_off[ended("completed")]
    only = {"SSEShutdownCutStreams": 1}
    expected = {25 * MINUTE: only, 40 * MINUTE: {}}
    fires(rendered[60], Told(rolling(cut_off), expected, ever=only))


def test_short_lived_connections_are_a_storm_too(rendered: dict[int, Path]) -> None:
    """Connections that end at once and come back count, but not those that were completed."""
    for reason, firing in (
        ("client_disconnect", {"SSEReconnectStorm": 1}),
        ("completed", {}),
    ):
        figures = {**healthy(), ended_soon(reason): each_second(6), ended(reason): each_second(6)}
        fires(rendered[60], Told([Process(figures)], {30 * MINUTE: firing}, ever=firing))


def test_few_endings_are_no_ratio(rendered: dict[int, Path]) -> None:
    """An error among fewer than twenty endings is not an error ratio."""
    fires(rendered[60], Told(errors(1, endings=19), {END: {}}, ever={}))


def test_few_first_messages_are_no_quantile(rendered: dict[int, Path]) -> None:
    """Fewer than twenty first messages in five exports have no 95th percentile."""
    slow = each_second(19 / 300)
    buckets = {first_within(le): always(0) for le in ("1", "5")}
    more = {first_within(le): slow for le in ("10", "+Inf")}
    figures = {**healthy(), **buckets, **more, FIRST_COUNT: slow}
    fires(rendered[60], Told([Process(figures)], {END: {}}, ever={}))


def test_no_messages_at_all_is_a_low_rate(rendered: dict[int, Path]) -> None:
    """Open connections of a process that has never written a message have the rate 0."""
    figures = {name: figure for name, figure in healthy().items() if name != MESSAGES}
    firing = {"SSEMessageRateLow": 1}
    fires(rendered[60], Told([Process(figures)], {10 * MINUTE: firing}, ever=firing))


def test_the_worst_connection_is_a_maximum_not_a_sum(rendered: dict[int, Path]) -> None:
    """What is told as a maximum by two routes is not added up."""
    elsewhere = {"http_request_method": "GET", "http_route": "/other", "url_scheme": "http"}
    for name, value in ((IDLE, 3_000.0), (BACKLOG_MAX, 900_000.0)):
        twin = (name[0], tuple(elsewhere.items()))
        figures = {**healthy(), name: always(value), twin: always(value)}
        fires(rendered[60], Told([Process(figures)], {END: {}}, ever={}))


def test_an_alert_names_value_threshold_and_instance(rendered: dict[int, Path]) -> None:
    """What is sent says how much, of how much, where, and what to read."""
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
    assert _promtool_test(rendered[60], [_group(series, alert_rule_test=[check])]) == ""


def _alerts(folder: Path) -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load((folder / "alerts.yaml").read_text())["groups"]:
        yield from group["rules"]


def test_every_alert_tells_what_there_is_to_know() -> None:
    """Each alert has its severity, its texts, and the threshold's number and variable in them."""
    entries = thresholds()
    for rule in _alerts(COLLECTOR / "prometheus"):
        entry, told = entries[rule["alert"]], rule["annotations"]
        assert rule["labels"] == {"severity": entry["severity"]}
        assert told["summary"] == entry["says"]
        assert "$labels." in told["description"]
        assert told["runbook_url"].endswith(f"#{rule['alert'].lower()}")
        if "variable" in entry:
            assert told["threshold"] == str(entry["default"])
            assert f"{told['threshold']} ({entry['variable']})" in told["description"]
            assert "$value" in told["value"]
            assert told["value"] in told["description"]


def test_each_variable_changes_its_own_threshold(tmp_path: Path) -> None:
    """A threshold's environment variable is the one place to change it."""
    entries = [entry for entry in thresholds().values() if "variable" in entry]
    said = {entry["variable"]: 4711 + position for position, entry in enumerate(entries)}
    render(tmp_path, **said)
    told = {rule["alert"]: rule for rule in _alerts(tmp_path)}
    for entry in entries:
        rule = told[entry["alert"]]
        assert re.search(rf"[<>] {said[entry['variable']]}\b", rule["expr"]), rule
        assert rule["annotations"]["threshold"] == str(said[entry["variable"]])


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("SSE_MAX_STALLED", "many"),
        ("SSE_MAX_STALLED", "nan"),
        ("SSE_MAX_STALLED", "inf"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "15s"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("SSE_LEAK_WINDOW", "-600"),
    ],
)
def test_a_bad_number_is_an_error(variable: str, said: str, tmp_path: Path) -> None:
    """A variable that holds no number, none that can be compared with or no span of time, stops the
    rendering and is named.
    """
    shutil.copy(COLLECTOR / "prometheus/prometheus.yaml", tmp_path)
    ran = rules(tmp_path, **{variable: said})
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"{variable} is '{said}', and takes a number")
    assert not (tmp_path / "alerts.yaml").exists()


@pytest.mark.parametrize(
    ("interval", "confirm"),
    [("15s", "75s"), ("1m", "120s"), ("1m30s", "150s"), ("500ms", "60500ms"), (None, "120s")],
)
def test_the_scrape_interval_is_as_prometheus_takes_it(
    interval: str | None, confirm: str, tmp_path: Path
) -> None:
    """Minutes too, as most configurations say; Prometheus's own minute where none is given."""
    given = {} if interval is None else {"global": {"scrape_interval": interval}}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(given))
    ran = rules(tmp_path)
    assert ran.returncode == 0, ran.stderr
    (high,) = (rule for rule in _alerts(tmp_path) if rule["alert"] == "SSEConnectionsHigh")
    assert high["for"] == confirm


def test_a_scrape_interval_that_is_none_is_an_error(tmp_path: Path) -> None:
    """What Prometheus would refuse is told with the file that says it."""
    (tmp_path / "prometheus.yaml").write_text("global: {scrape_interval: often}")
    ran = rules(tmp_path)
    assert ran.returncode == 1
    said = f"{tmp_path / 'prometheus.yaml'}: the scrape_interval is 'often', and takes a duration"
    assert ran.stderr.startswith(said)


@pytest.mark.parametrize("name", ["recording.yaml", "alerts.yaml"])
def test_the_rules_are_up_to_date(name: str, tmp_path: Path) -> None:
    """The checked-in rules are what the thresholds and the template make with the defaults."""
    render(tmp_path)
    assert (tmp_path / name).read_text() == (COLLECTOR / "prometheus" / name).read_text()


def test_promtool_finds_no_fault() -> None:
    """The configuration and its rules pass promtool, lint included."""
    promtool = tool("promtool")
    config = COLLECTOR / "prometheus/prometheus.yaml"
    rules = [COLLECTOR / "prometheus" / name for name in ("recording.yaml", "alerts.yaml")]
    for check in (["config", config], ["rules", *rules]):
        ran = subprocess.run(
            [promtool, "check", check[0], "--lint=all", "--lint-fatal", *map(str, check[1:])],
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
