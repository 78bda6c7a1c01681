"""Thresholds inside the collector: ``sse.alert`` of a process, exactly while it breaches them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml
from collector.processes import CONFIGS, App, Collector, ReferenceServer, to
from collector.simulated import ERRORS, MEMORY, REJECTED, SimulatedProcess
from helpers.otlp import Receiver
from helpers.servers import refusing_port
from helpers.waiting import wait_until

from otel_sse import semconv as sse

MB: Final = 1024 * 1024
THRESHOLDS: Final = {
    each["alert"]: each for each in yaml.safe_load((CONFIGS / "thresholds.yaml").read_text())
}
# A process of two routes, with a minute of ordinary work behind it; sums are over the routes.
BEFORE: Final[dict[sse.Metric, Any]] = {
    sse.ACTIVE: {"/a": 10, "/b": 10},
    sse.CONNECTIONS: {"/a": 100, "/b": 100},
    sse.MESSAGES: {"/a": 1000, "/b": 1000},
    sse.IO: {"/a": 100_000, "/b": 100_000},
    sse.SEND_TIME: {"/a": 1.0, "/b": 1.0},
    sse.STALLED: {"/a": 0, "/b": 0},
    sse.IDLE_MAX: {"/a": 1.0, "/b": 1.0},
    sse.BACKLOG_MAX: {"/a": 0, "/b": 0},
    sse.PER_CLIENT_MAX: 2,
    MEMORY: 100 * MB,
}
# A minute later: 1,200 messages at 100 B and 1 ms each.
AFTER: Final[dict[sse.Metric, Any]] = {
    **BEFORE,
    sse.MESSAGES: {"/a": 1600, "/b": 1600},
    sse.IO: {"/a": 160_000, "/b": 160_000},
    sse.SEND_TIME: {"/a": 1.6, "/b": 1.6},
}
INFO: Final = "SSEProcessingElevated"
# Alert, what is exported instead just below and just above its threshold, the value above, and the
# other alerts that are then right, too.
CASES: Final[list[tuple[str, dict[sse.Metric, Any], dict[sse.Metric, Any], float, set[str]]]] = [
    (
        "SSEConnectionsHigh",
        {sse.ACTIVE: {"/a": 4000, "/b": 6000}},
        {sse.ACTIVE: {"/a": 4000, "/b": 6001}},
        10_001,
        set(),
    ),
    ("SSEMemoryHigh", {MEMORY: 1024 * MB}, {MEMORY: 1024 * MB + MB // 2}, 1024.5, set()),
    (
        "SSEMessageRateLow",
        {sse.MESSAGES: {"/a": 1030, "/b": 1030}, sse.SEND_TIME: 2.0, sse.IO: 200_000},
        {sse.MESSAGES: {"/a": 1030, "/b": 1029}, sse.SEND_TIME: 2.0, sse.IO: 200_000},
        59 / 60,
        set(),
    ),
    (
        "SSEProcessingSlow",
        {sse.SEND_TIME: {"/a": 1.0, "/b": 1.0 + 1200 * 0.499}},
        {sse.SEND_TIME: {"/a": 1.0, "/b": 1.0 + 1200 * 0.501}},
        501,
        {INFO},
    ),
    (
        INFO,
        {sse.SEND_TIME: {"/a": 1.0, "/b": 1.0 + 1200 * 0.099}},
        {sse.SEND_TIME: {"/a": 1.0, "/b": 1.0 + 1200 * 0.101}},
        101,
        set(),
    ),
    (
        "SSEMessagesLarge",
        {sse.IO: {"/a": 100_000, "/b": 100_000 + 1200 * 9_999}},
        {sse.IO: {"/a": 100_000, "/b": 100_000 + 1200 * 10_001}},
        10_001,
        set(),
    ),
    (
        "SSEMessageRateHigh",
        {sse.MESSAGES: {"/a": 1000, "/b": 7000}},
        {sse.MESSAGES: {"/a": 1001, "/b": 7000}},
        6001 / 60,
        set(),
    ),
    (
        "SSEConnectionsStalled",
        {sse.STALLED: {"/a": 50, "/b": 50}},
        {sse.STALLED: {"/a": 50, "/b": 51}},
        101,
        set(),
    ),
    # The largest of two routes, not their sum.
    (
        "SSEConnectionIdle",
        {sse.IDLE_MAX: {"/a": 3600.0, "/b": 3599.0}},
        {sse.IDLE_MAX: {"/a": 3600.5, "/b": 3599.0}},
        3600.5,
        set(),
    ),
    (
        "SSEBacklogHigh",
        {sse.BACKLOG_MAX: {"/a": 999_999, "/b": 1_000_000}},
        {sse.BACKLOG_MAX: {"/a": 999_999, "/b": 1_000_001}},
        1_000_001,
        set(),
    ),
    ("SSEConnectionsPerClient", {sse.PER_CLIENT_MAX: 100}, {sse.PER_CLIENT_MAX: 101}, 101, set()),
    # Series that are not there before: the first export of each counts whole.
    (
        "SSEDroppedMessages",
        {sse.DROPPED: {"/a": 30, "/b": 30}},
        {sse.DROPPED: {"/a": 30, "/b": 31}},
        61 / 60,
        set(),
    ),
    (
        "SSERejectedConnections",
        {REJECTED: {"memory": 0}},
        {REJECTED: {"memory": 1, "connections_per_client": 2}},
        3 / 60,
        set(),
    ),
    (
        "SSEBrokerErrors",
        {ERRORS: {"timeout": 3, "unknown": 3, "rate_limit": 1000}},
        {ERRORS: {"timeout": 3, "unknown": 4, "rate_limit": 1000}},
        7 / 60,
        set(),
    ),
]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector("thresholds.collector", "scrape") as collector:
        yield collector


@pytest.fixture
def process(collector: Collector) -> SimulatedProcess:
    return SimulatedProcess(collector.endpoint)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_silent_just_below_present_just_above_and_gone_at_the_next_export(
    case: tuple[str, Any, Any, float, set[str]], collector: Collector, process: SimulatedProcess
) -> None:
    """At exports 60 s apart a threshold is compared with the process's figure in its unit, and
    the series ends with the breach, not after the exporter's expiration.
    """
    alert, below, above, value, others = case
    below_too = {INFO} if alert == "SSEProcessingSlow" else set()
    process.export(BEFORE)
    assert collector.alerts(process.instance) == {}
    process.export({**AFTER, **below})
    assert set(collector.alerts(process.instance)) == below_too

    process = SimulatedProcess(collector.endpoint)
    process.export(BEFORE)
    process.export({**AFTER, **above})
    found = collector.alerts(process.instance)
    assert set(found) == {alert, *others}
    severity, threshold, measured = found[alert]
    assert severity == THRESHOLDS[alert]["severity"]
    assert threshold == str(THRESHOLDS[alert]["default"])
    assert measured == pytest.approx(value)

    # Counters go on from where they are, at the ordinary pace.
    last = {**AFTER, **above}
    level = {each: last[each] for each in _EVENTS if each in last}
    more = {each: _more(last[each], AFTER, each) for each in _COUNTED}
    process.export({**AFTER, **level, **more})
    assert collector.alerts(process.instance) == {}


_EVENTS: Final = (sse.DROPPED, REJECTED, ERRORS)
_COUNTED: Final = (sse.MESSAGES, sse.IO, sse.SEND_TIME)


def _more(value: Any, after: dict[sse.Metric, Any], metric: sse.Metric) -> Any:
    def total(figure: Any) -> Any:
        return sum(figure.values()) if isinstance(figure, dict) else figure

    return {"/a": total(value) + total(after[metric]) - total(BEFORE[metric]), "/b": 0}


def test_every_threshold_of_the_collector_has_its_case() -> None:
    """A threshold that is added to the collector is tested, or this fails."""
    assert {case[0] for case in CASES} == {
        name for name, each in THRESHOLDS.items() if "collector" in each
    }


def test_the_default_thresholds_are_those_that_are_documented() -> None:
    """The eight that a team begins with have the numbers and severities that they know."""
    assert {
        name: (THRESHOLDS[name]["severity"], THRESHOLDS[name]["default"])
        for name in (
            "SSEConnectionsHigh",
            "SSEMemoryHigh",
            "SSEMessageRateLow",
            "SSEProcessingSlow",
            "SSEMemoryLeak",
            "SSEProcessingElevated",
            "SSEMessagesLarge",
            "SSEMessageRateHigh",
        )
    } == {
        "SSEConnectionsHigh": ("critical", 10_000),
        "SSEMemoryHigh": ("warning", 1024),
        "SSEMessageRateLow": ("warning", 1),
        "SSEProcessingSlow": ("warning", 500),
        "SSEMemoryLeak": ("warning", 0.1),
        "SSEProcessingElevated": ("info", 100),
        "SSEMessagesLarge": ("info", 10_000),
        "SSEMessageRateHigh": ("info", 100),
    }


def test_a_mean_ends_with_the_messages(collector: Collector, process: SimulatedProcess) -> None:
    """Where no message is written any more there is no slow or large one either."""
    process.export(BEFORE)
    slow = {**AFTER, sse.SEND_TIME: {"/a": 1.0, "/b": 10_000.0}, sse.IO: 100_000_000}
    process.export(slow)
    assert set(collector.alerts(process.instance)) == {
        "SSEProcessingSlow",
        INFO,
        "SSEMessagesLarge",
    }
    process.export({**slow, sse.ACTIVE: {"/a": 0, "/b": 0}, sse.IO: 100_000_020})
    assert collector.alerts(process.instance) == {}


def test_alerts_are_of_a_process(collector: Collector) -> None:
    """Two processes with 6,000 connections each breach nothing; one with 10,001 does."""
    one, two = SimulatedProcess(collector.endpoint), SimulatedProcess(collector.endpoint)
    for each in (one, two):
        each.export({**BEFORE, sse.ACTIVE: {"/a": 6000}})
    assert collector.alerts(one.instance) == collector.alerts(two.instance) == {}
    one.export({**AFTER, sse.ACTIVE: {"/a": 10_001}})
    two.export({**AFTER, sse.ACTIVE: {"/a": 6000}})
    assert set(collector.alerts(one.instance)) == {"SSEConnectionsHigh"}
    assert collector.alerts(two.instance) == {}


def test_an_idle_service_is_silent(collector: Collector, process: SimulatedProcess) -> None:
    """No connection, no message, for hours: that is no low rate."""
    figures = {**BEFORE, sse.ACTIVE: {"/a": 0, "/b": 0}, sse.IDLE_MAX: 0.0}
    for _ in range(3):
        process.export(figures)
        assert collector.alerts(process.instance) == {}


def test_a_stream_that_has_just_begun_is_not_slow(
    collector: Collector, process: SimulatedProcess
) -> None:
    """The first client of a quiet service has had no minute yet; an export later it is silent, too,
    and only one that then gets nothing has a low rate.
    """
    quiet = {**BEFORE, sse.ACTIVE: {"/a": 0}}
    process.export(quiet)
    process.export(quiet)
    opened = {**BEFORE, sse.ACTIVE: {"/a": 1}, sse.CONNECTIONS: {"/a": 101, "/b": 100}}
    process.export(opened)
    assert collector.alerts(process.instance) == {}
    process.export(opened)
    assert collector.alerts(process.instance) == {"SSEMessageRateLow": ("warning", "1", 0)}


def test_a_process_that_never_wrote_a_message_has_a_rate(
    collector: Collector, process: SimulatedProcess
) -> None:
    """There is no series of messages before the first one: with streams open that is a rate of
    zero, and the first message is not lost in it.
    """
    mute = {metric: value for metric, value in BEFORE.items() if metric is not sse.MESSAGES}
    process.export(mute)
    process.export(mute)
    assert collector.alerts(process.instance) == {"SSEMessageRateLow": ("warning", "1", 0)}
    process.export({**mute, sse.MESSAGES: {"/a": 6001}})
    alerts = collector.alerts(process.instance)
    assert {name: value for name, (*_, value) in alerts.items()} == {
        "SSEMessageRateHigh": pytest.approx(6001 / 60)
    }


def test_exports_in_quick_succession_are_no_rate(
    collector: Collector, process: SimulatedProcess
) -> None:
    """A process that receives SIGTERM exports several times at once: between two of them no message
    is no low rate, two are no high one, and what was breached before is not held on to.
    """
    process.export(BEFORE)
    process.export(AFTER)
    process.export(AFTER, seconds=0.01)
    assert collector.alerts(process.instance) == {}
    process.export({**AFTER, sse.MESSAGES: {"/a": 1602, "/b": 1600}}, seconds=0.01)
    assert collector.alerts(process.instance) == {}

    slow = {**AFTER, sse.SEND_TIME: {"/a": 10_000.0, "/b": 1.6}}
    process.export({**slow, sse.MESSAGES: {"/a": 2200, "/b": 2200}})
    assert set(collector.alerts(process.instance)) == {"SSEProcessingSlow", INFO}
    process.export({**slow, sse.MESSAGES: {"/a": 2201, "/b": 2200}}, seconds=0.01)
    assert collector.alerts(process.instance) == {}


def test_a_new_series_is_no_burst(collector: Collector, process: SimulatedProcess) -> None:
    """An event type that is seen for the first time counts as what came in the interval."""
    process.export(BEFORE)
    process.export({**AFTER, sse.MESSAGES: {"/a": 1000, "/b": 1000, "/new": 5000}})
    assert collector.alerts(process.instance) == {}


def test_a_collector_that_starts_late_takes_no_total_for_a_rate(process: SimulatedProcess) -> None:
    """After a restart of the collector a process's long history is not what it did just now."""
    with Collector("thresholds.collector", "scrape") as collector:
        late = SimulatedProcess(collector.endpoint)
        late.export({**BEFORE, sse.MESSAGES: {"/a": 10**9}, sse.SEND_TIME: 10.0**9})
        assert collector.alerts(late.instance) == {}


def test_a_breach_does_not_flap_and_a_dead_process_goes(collector: Collector) -> None:
    """Between two exports the series stays; after ``metric_expiration`` without any it goes."""
    process = SimulatedProcess(collector.endpoint)
    process.export({**BEFORE, MEMORY: 2048 * MB})
    assert set(collector.alerts(process.instance)) == {"SSEMemoryHigh"}
    config = yaml.safe_load((CONFIGS / "scrape.yaml").read_text())
    expiration = config["exporters"]["prometheus"]["metric_expiration"]
    assert expiration == "${env:SSE_METRIC_EXPIRATION:-5m}"
    with Collector("thresholds.collector", "scrape", SSE_METRIC_EXPIRATION="1s") as short:
        killed = SimulatedProcess(short.endpoint)
        killed.export({**BEFORE, MEMORY: 2048 * MB})
        assert set(short.alerts(killed.instance)) == {"SSEMemoryHigh"}
        wait_until(lambda: short.alerts(killed.instance) == {})
    assert set(collector.alerts(process.instance)) == {"SSEMemoryHigh"}


def test_each_threshold_is_its_variables(process: SimulatedProcess) -> None:
    """The environment of the collector changes every number, and the alert bears it."""
    variables = {
        each["variable"]: "99999999" if each["variable"].startswith("SSE_MIN") else "0.0000001"
        for each in THRESHOLDS.values()
        if "collector" in each
    }
    with Collector("thresholds.collector", "scrape", **variables) as collector:
        process = SimulatedProcess(collector.endpoint)
        process.export(BEFORE)
        level = dict.fromkeys((sse.STALLED, sse.BACKLOG_MAX, *_EVENTS), 1)
        process.export({**AFTER, **level})
        thresholds = {
            name: threshold
            for name, (_, threshold, _) in collector.alerts(process.instance).items()
        }
    assert thresholds == {
        each["alert"]: variables[each["variable"]]
        for each in THRESHOLDS.values()
        if "collector" in each
    }


def test_a_real_application_crosses_every_threshold() -> None:
    """What the instrumentation and the system metrics export has the names, types and units that
    the thresholds expect; when the clients are gone only the memory is left.
    """
    low = {
        "SSE_MAX_CONNECTIONS": "3",
        "SSE_MAX_MEMORY_MB": "10",
        "SSE_MIN_MESSAGE_RATE": "1000000",
        "SSE_MAX_PROCESSING_MS": "0.0001",
        "SSE_INFO_PROCESSING_MS": "0.00001",
        "SSE_INFO_MESSAGE_SIZE": "10",
        "SSE_INFO_MESSAGE_RATE": "5",
        "SSE_MAX_STALLED": "0",
        "SSE_MAX_IDLE_SECONDS": "0.5",
        "SSE_MAX_BACKLOG_BYTES": "1000",
        "SSE_MAX_PER_CLIENT": "3",
    }
    wanted = {
        name
        for name, each in THRESHOLDS.items()
        if each.get("collector", "").startswith(("sse.server.", "process."))
    }
    with Collector("thresholds.collector", "scrape", **low) as collector:
        # The default protocol of opentelemetry-instrument.
        options = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_PYTHON_SSE_STALL_SECONDS": "0.5"}
        named = {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=real"}
        # Less than a second between two exports is no rate.
        named["OTEL_METRIC_EXPORT_INTERVAL"] = "1000"
        with App(f"http://127.0.0.1:{collector.ports['grpc']}", **options, **named) as app:
            wait_until(lambda: set(collector.alerts("real")) == {"SSEMemoryHigh"})
            paths = ("/ticker", "/silent", "/bursts", "/lossy")
            clients = [app.open(path) for path in paths]
            wait_until(lambda: set(collector.alerts("real")) == wanted)
            memory = collector.alerts("real")["SSEMemoryHigh"][2]
            assert 20 < memory < 500
            assert collector.alerts("real")["SSEConnectionsHigh"][2] == 4
            for client in clients:
                client.close()
            wait_until(lambda: set(collector.alerts("real")) == {"SSEMemoryHigh"})
        # Statements that fail are logged and passed over.
        assert [line for line in collector.log.splitlines() if "\twarn\t" in line] == []
        assert [line for line in collector.log.splitlines() if "\terror\t" in line] == []


def test_the_reference_servers_refusals_and_errors_breach() -> None:
    """A client that the real server refuses, and a broker that it cannot reach, are alerts within
    two exports, each alone; and they end when no more happens.
    """
    with Collector("thresholds.collector", "scrape") as collector:
        end = collector.endpoint
        with ReferenceServer(end, "refusing", max_connections_per_client=1) as server:
            wait_until(lambda: collector.scraped(_ALWAYS, instance="refusing"))
            with socket.create_connection(("127.0.0.1", server.port)) as first:
                first.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert first.recv(15) == b"HTTP/1.1 200 OK"
                assert server.request() == 503
                found = wait_until(lambda: collector.alerts("refusing"))
            assert set(found) == {"SSERejectedConnections"}
            wait_until(lambda: collector.alerts("refusing") == {})
        nothing_there = f"redis://127.0.0.1:{refusing_port()}/0"
        with ReferenceServer(end, "alone", redis_url=nothing_there):
            found = wait_until(lambda: collector.alerts("alone"))
            assert set(found) == {"SSEBrokerErrors"}


# There is no process with streams that does not export it.
_ALWAYS: Final = "sse_server_connections_per_client_max"


def test_what_breaches_is_on_the_collectors_log_and_nothing_else(collector: Collector) -> None:
    """base.yaml alone writes the alerts to the collector's log."""
    process = SimulatedProcess(collector.endpoint)
    process.export(BEFORE)
    assert process.instance not in collector.log
    process.export({**AFTER, sse.ACTIVE: {"/a": 10_001}})
    lines = [line for line in collector.log.splitlines() if "sse.alert{" in line]
    assert any("alert=SSEConnectionsHigh" in line and line.endswith(" 10001") for line in lines)
    assert not any("SSEMemoryLeak" in line or "sse.server" in line for line in lines)


def test_the_alerts_make_one_metric_without_a_unit(
    collector: Collector, process: SimulatedProcess
) -> None:
    """Figures of several units and types are one gauge with the three attributes that
    docs/semconv/ gives `sse.alert`, beside the resource's.
    """
    process.export({**BEFORE, MEMORY: 2048 * MB, sse.ACTIVE: {"/a": 10_001}, sse.STALLED: 101})
    samples = collector.scraped("sse_alert", instance=process.instance)
    assert len(samples) == 3
    for labels, _ in samples:
        assert set(labels) == {"alert", "severity", "threshold", "job", "instance"}
        assert labels["job"] == "shop"


def test_an_alert_bears_the_process_as_it_named_itself() -> None:
    """Over OTLP, too: the resource is the process's own, with nothing added on the way."""
    with Receiver() as receiver:
        breached = ("service::pipelines::metrics/test::processors: [filter/breached]",)
        settings = (*to(receiver.endpoint, "metrics"), *breached)
        with Collector("thresholds.collector", settings=settings) as collector:
            process = SimulatedProcess(collector.endpoint)
            process.export(BEFORE)
            process.export({**AFTER, sse.ACTIVE: {"/a": 10_001}})
        (point,) = receiver.points("sse.alert")
        assert point.value == 10_001
        assert point.unit == ""
        assert point.attributes == {
            "alert": "SSEConnectionsHigh",
            "severity": "critical",
            "threshold": "10000",
        }
        wanted = {"service.name": "shop", "service.instance.id": process.instance}
        assert wanted.items() <= point.resource.items()
        assert not [name for name in point.resource if name.startswith("sse.")]


def test_the_rendered_files_are_up_to_date(tmp_path: Any) -> None:
    """What is checked in is what render.py makes of thresholds.yaml with no variable set."""
    made = (
        "thresholds.collector.yaml",
        "prometheus/alerts.yaml",
        "prometheus/recording.yaml",
        "prometheus/slo.yaml",
    )
    copy = tmp_path / "collector"
    subprocess.run(["cp", "-r", str(CONFIGS), str(copy)], check=True)
    for name in made:
        (copy / name).unlink()
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("SSE_", "OTEL_"))
    }
    subprocess.run([sys.executable, str(copy / "render.py")], check=True, env=env)
    for name in made:
        assert (copy / name).read_text() == (CONFIGS / name).read_text(), f"{name}: run render.py"
