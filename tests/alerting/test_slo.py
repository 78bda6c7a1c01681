"""Error budgets and their burn-rate alerts, evaluated by promtool over hours and days.

An export and a scrape a minute, an evaluation every five, since promtool takes long: what is tested
here are ratios and windows; ``test_rules.py`` has the real intervals.
"""

import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from alerting.promtool import COLLECTOR, render, rules
from helpers.tools import tool

from otel_sse import semconv

MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
STEP: Final = MINUTE
LABELS: Final = 'job="shop",instance="a",http_request_method="GET",http_route="/events"'
DURATION: Final = "sse_server_connection_duration_seconds_count"
FIRST: Final = "sse_server_connection_time_to_first_message_seconds"
CONTENT: Final = yaml.safe_load((COLLECTOR / "objectives.yaml").read_text())
ALERTS: Final = [each["alert"] for each in CONTENT["alerts"]]
OBJECTIVES: Final = [each["slo"] for each in CONTENT["objectives"]]
# The burn that each alert allows.
BURN: Final = {each["alert"]: each["default"] for each in CONTENT["alerts"]}
BUDGET: Final = 0.01


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slo")
    render(folder)
    return folder


def counter(per_minute: float, minutes: float) -> str:
    return f"0+{per_minute:.12g}x{minutes:.0f}"


def service(slo: str, share: float, seconds: float, *, streams: float = 40) -> dict[str, str]:
    """A process in which this share of the objective's events is bad, 100 events a minute."""
    steps = seconds / STEP
    bad, good = 100 * share, 100 * (1 - share)
    closes = (bad, good) if slo == "closes" else (0, 100)
    in_time = good if slo == "first_message" else 100
    stalled = streams * share if slo == "stalls" else 0
    return {
        f"sse_server_connections_per_client_max{{{LABELS}}}": f"1x{steps:.0f}",
        f'{DURATION}{{{LABELS},sse_close_reason="error"}}': counter(closes[0], steps),
        f'{DURATION}{{{LABELS},sse_close_reason="client_disconnect"}}': counter(closes[1], steps),
        f"{FIRST}_count{{{LABELS}}}": counter(100, steps),
        f'{FIRST}_bucket{{{LABELS},le="5"}}': counter(in_time, steps),
        f'{FIRST}_bucket{{{LABELS},le="+Inf"}}': counter(100, steps),
        f"sse_server_active_connections{{{LABELS}}}": f"{streams:g}x{steps:.0f}",
        f"sse_server_stalled_connections{{{LABELS}}}": f"{stalled:g}x{steps:.0f}",
    }


def judged(
    rendered: Path,
    series: dict[str, str],
    expected: dict[float, dict[str, list[str]]],
    evaluation: int = 5 * MINUTE,
) -> str:
    """What promtool finds wrong; ``expected``: at these seconds the alerts, to their objectives."""
    checks = [
        {
            "expr": 'count by (alertname, slo) (ALERTS{alertstate="firing"})',
            "eval_time": f"{at:.0f}s",
            "exp_samples": [
                {"labels": f'{{alertname="{alert}",slo="{slo}"}}', "value": 1}
                for alert, slos in firing.items()
                for slo in slos
            ],
        }
        for at, firing in expected.items()
    ]
    content = {
        "rule_files": ["slo.yaml"],
        "evaluation_interval": f"{evaluation}s",
        "group_eval_order": ["sse-slo-events", "sse-slo-burn", "sse-slo-alerts"],
        "tests": [
            {
                "interval": f"{STEP}s",
                "input_series": [{"series": name, "values": text} for name, text in series.items()],
                "promql_expr_test": checks,
            }
        ],
    }
    file = rendered / "slo-test.yaml"
    file.write_text(yaml.safe_dump(content, width=10_000))
    ran = subprocess.run(
        [tool("promtool"), "test", "rules", str(file)], capture_output=True, text=True
    )
    output = ran.stdout + ran.stderr
    assert (ran.returncode == 0) is ("SUCCESS" in output), output
    return "" if ran.returncode == 0 else output


@pytest.mark.parametrize("slo", OBJECTIVES)
@pytest.mark.parametrize("alert", ["SSEBudgetBurnFast", "SSEBudgetBurn"])
def test_fires_above_its_burn_for_the_objective_alone(alert: str, slo: str, rendered: Path) -> None:
    """A little above an alert's burn it fires for that objective, with the slower alerts, and below
    it only those fire.
    """
    slower = ALERTS[ALERTS.index(alert) + 1 :]
    at = 7 * HOUR
    for factor, firing in ((1.05, [alert, *slower]), (0.95, slower)):
        series = service(slo, BURN[alert] * BUDGET * factor, at)
        expected = {at: {each: [slo] for each in firing}}
        assert judged(rendered, series, expected) == ""


def test_the_slow_burn_needs_both_windows(rendered: Path) -> None:
    """A burn just above 1 is a warning, one just below is nothing; nor is one that its long window
    still averages away, after good hours.
    """
    for factor, firing in ((1.05, {"SSEBudgetBurnSlow": ["closes"]}), (0.95, {})):
        series = service("closes", BUDGET * factor, 7 * HOUR)
        assert judged(rendered, series, {7 * HOUR: firing}) == ""
    good, bad = 8 * 60, 6 * 60
    series = service("closes", 0, (good + bad) * MINUTE)
    series[f'{DURATION}{{{LABELS},sse_close_reason="error"}}'] = f"0x{good} 0+1.5x{bad}"
    assert judged(rendered, series, {(good + bad) * MINUTE: {}}) == ""


def test_a_complete_outage_is_found_within_minutes_and_ends_soon(rendered: Path) -> None:
    """After seven good hours every close is an error: the fast alert fires in 15 minutes, and is
    over ten minutes after the fault, though its long window still holds it.
    """
    good, bad, rest = 7 * 60, 30, 30
    minutes = good + bad + rest
    series = service("closes", 0, minutes * MINUTE)
    error = f'{DURATION}{{{LABELS},sse_close_reason="error"}}'
    fine = f'{DURATION}{{{LABELS},sse_close_reason="client_disconnect"}}'
    series[error] = f"0x{good} 0+100x{bad} {100 * bad}x{rest}"
    series[fine] = f"0+100x{good} {100 * good}x{bad} {100 * good}+100x{rest}"
    begun, over = good * MINUTE, (good + bad) * MINUTE
    everything = {each: ["closes"] for each in ALERTS}
    expected: dict[float, dict[str, list[str]]] = {
        begun: {},
        begun + 15 * MINUTE: {"SSEBudgetBurnFast": ["closes"], "SSEBudgetBurnSlow": ["closes"]},
        over: everything,
        over + 10 * MINUTE: {each: ["closes"] for each in ALERTS[1:]},
    }
    assert judged(rendered, series, expected, evaluation=MINUTE) == ""


def test_few_events_are_no_share(rendered: Path) -> None:
    """Nineteen closes, all of them errors, are no burn; nor are nineteen stalled streams."""
    series = service("closes", 0, 2 * HOUR, streams=19)
    error = f'{DURATION}{{{LABELS},sse_close_reason="error"}}'
    fine = f'{DURATION}{{{LABELS},sse_close_reason="client_disconnect"}}'
    series[error] = counter(19 / 120, 120)
    series[fine] = "0x120"
    series[f"sse_server_stalled_connections{{{LABELS}}}"] = "19x120"
    assert judged(rendered, series, {HOUR: {}, 2 * HOUR: {}}) == ""


def test_the_first_bad_event_of_a_series_counts(rendered: Path) -> None:
    """A series of errors that begins with a hundred of them counts them all."""
    series = service("closes", 0, 2 * HOUR)
    series[f'{DURATION}{{{LABELS},sse_close_reason="error"}}'] = "_x100 3000x20"
    expected: dict[float, dict[str, list[str]]] = {
        100 * MINUTE: {},
        103 * MINUTE: {each: ["closes"] for each in ALERTS},
    }
    assert judged(rendered, series, expected, evaluation=MINUTE) == ""


def test_streams_that_a_shutdown_cuts_are_bad(rendered: Path) -> None:
    """An error, a time-out and a shutdown's cut use the budget; a completed stream does not."""
    for reason, firing in (
        ("timeout", True),
        ("server_shutdown", True),
        ("completed", False),
        ("unknown", False),
    ):
        series = service("closes", 0, 2 * HOUR)
        series[f'{DURATION}{{{LABELS},sse_close_reason="{reason}"}}'] = counter(50, 120)
        expected = {each: ["closes"] for each in ALERTS} if firing else {}
        assert judged(rendered, series, {2 * HOUR: expected}) == "", reason


def _rules(folder: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((folder / "slo.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_rules_are_up_to_date(rendered: Path) -> None:
    """The checked-in rules are what the objectives and the template make with the defaults."""
    assert (rendered / "slo.yaml").read_text() == (COLLECTOR / "prometheus/slo.yaml").read_text(), (
        "run render.py"
    )


def test_the_variables_change_objectives_burns_bound_and_windows(tmp_path: Path) -> None:
    """Each number of the error budgets has its environment variable."""
    render(
        tmp_path,
        SSE_SLO_FIRST_MESSAGE=0.95,
        SSE_SLO_CLOSES=0.98,
        SSE_SLO_STALLS=0.97,
        SSE_MAX_BURN_FAST=10,
        SSE_MAX_BURN=5,
        SSE_MAX_BURN_SLOW=2,
        SSE_SLO_FIRST_MESSAGE_SECONDS=2.5,
        SSE_SLO_WINDOW=60,
    )
    made = _rules(tmp_path)
    budgets = {
        rule["labels"]["slo"]: rule["expr"]
        for rule in made
        if rule.get("record") == "slo:sse_error_budget:ratio"
    }
    assert budgets == {
        "first_message": "vector(0.05)",
        "closes": "vector(0.02)",
        "stalls": "vector(0.03)",
    }
    limits = {rule["alert"]: rule["annotations"]["threshold"] for rule in made if "alert" in rule}
    assert list(limits.values()) == ["10", "5", "2"]
    everything = " ".join(rule["expr"] for rule in made)
    assert r'le=~"2\\.5"' in everything
    for window in ("[360s:65s]", "[720s:65s]", "[4320s:65s]", "[51840s:65s]"):
        assert window in everything


@pytest.mark.parametrize(
    ("variable", "value", "takes"),
    [
        # 14.4 times 0.07 is more than all: such an alert could never fire.
        ("SSE_SLO_CLOSES", "0.93", "a share above 0.9306 and below 1"),
        ("SSE_SLO_CLOSES", "1", "a share above 0.9306 and below 1"),
        ("SSE_SLO_FIRST_MESSAGE_SECONDS", "4", "one of 0.005, 0.01"),
        ("SSE_SLO_WINDOW", "0", "a number above 0"),
    ],
)
def test_an_objective_that_cannot_be_judged_is_an_error(
    variable: str, value: str, takes: str, tmp_path: Path
) -> None:
    """An objective without a budget, or with one that no fault can burn fast enough, and a bound
    that the histogram does not have stop the rendering.
    """
    (tmp_path / "prometheus.yaml").write_text("global: {scrape_interval: 5s}")
    ran = rules(tmp_path, **{variable: value})
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"{variable} is ")
    assert takes in ran.stderr


def test_the_bounds_are_the_histograms() -> None:
    """rules.py, which needs no otel_sse, has the bounds that otel_sse advises."""
    source = (COLLECTOR / "rules.py").read_text()
    found: dict[str, Any] = {}
    start = source.index("FIRST_MESSAGE_BOUNDS")
    exec(source[start : source.index("\n)\n", start) + 3].replace(": Final", ""), found)
    assert found["FIRST_MESSAGE_BOUNDS"] == semconv.FIRST_MESSAGE.buckets
