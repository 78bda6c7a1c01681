"""The rule files: what rules.py makes of the thresholds, and what promtool finds wrong with it."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from alerting.promtool import COLLECTOR, render, rules, thresholds
from helpers.tools import tool


def _alerts(folder: Path) -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load((folder / "alerts.yaml").read_text())["groups"]:
        yield from group["rules"]


def test_every_alert_has_severity_texts_and_threshold() -> None:
    """Each alert has its severity, its texts, and the threshold's number and variable in them."""
    entries = thresholds()
    for rule in _alerts(COLLECTOR / "prometheus"):
        entry, texts = entries[rule["alert"]], rule["annotations"]
        assert rule["labels"] == {"severity": entry["severity"]}
        assert texts["summary"] == entry["says"]
        assert "$labels." in texts["description"]
        assert texts["runbook_url"].endswith(f"#{rule['alert'].lower()}")
        if "variable" in entry:
            assert texts["threshold"] == str(entry["default"])
            assert f"{texts['threshold']} ({entry['variable']})" in texts["description"]
            assert "$value" in texts["value"]
            assert texts["value"] in texts["description"]


def test_each_variable_changes_its_own_threshold(tmp_path: Path) -> None:
    """A threshold's environment variable is the one place to change it."""
    entries = [entry for entry in thresholds().values() if "variable" in entry]
    values = {entry["variable"]: 4711 + position for position, entry in enumerate(entries)}
    render(tmp_path, **values)
    made = {rule["alert"]: rule for rule in _alerts(tmp_path)}
    for entry in entries:
        rule = made[entry["alert"]]
        assert re.search(rf"[<>] {values[entry['variable']]}\b", rule["expr"]), rule
        assert rule["annotations"]["threshold"] == str(values[entry["variable"]])


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SSE_MAX_STALLED", "many"),
        ("SSE_MAX_STALLED", "nan"),
        ("SSE_MAX_STALLED", "inf"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "15s"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("SSE_LEAK_WINDOW", "-600"),
    ],
)
def test_a_bad_number_is_an_error(variable: str, value: str, tmp_path: Path) -> None:
    """A variable that holds no number, none that can be compared with or no span of time, stops the
    rendering and is named.
    """
    shutil.copy(COLLECTOR / "prometheus/prometheus.yaml", tmp_path)
    ran = rules(tmp_path, **{variable: value})
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"{variable} is '{value}', and takes a number")
    assert not (tmp_path / "alerts.yaml").exists()


@pytest.mark.parametrize(
    ("interval", "confirm"),
    [("15s", "75s"), ("1m", "120s"), ("1m30s", "150s"), ("500ms", "60500ms"), (None, "120s")],
)
def test_the_scrape_interval_is_as_prometheus_takes_it(
    interval: str | None, confirm: str, tmp_path: Path
) -> None:
    """Minutes too, as most configurations have; Prometheus's own minute where none is given."""
    given = {} if interval is None else {"global": {"scrape_interval": interval}}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(given))
    ran = rules(tmp_path)
    assert ran.returncode == 0, ran.stderr
    (high,) = (rule for rule in _alerts(tmp_path) if rule["alert"] == "SSEConnectionsHigh")
    assert high["for"] == confirm


def test_a_scrape_interval_that_is_none_is_an_error(tmp_path: Path) -> None:
    """What Prometheus would refuse is an error that names the file."""
    (tmp_path / "prometheus.yaml").write_text("global: {scrape_interval: often}")
    ran = rules(tmp_path)
    assert ran.returncode == 1
    expected = (
        f"{tmp_path / 'prometheus.yaml'}: the scrape_interval is 'often', and takes a duration"
    )
    assert ran.stderr.startswith(expected)


@pytest.mark.parametrize("name", ["recording.yaml", "alerts.yaml"])
def test_the_rules_are_up_to_date(name: str, tmp_path: Path) -> None:
    """The checked-in rules are what the thresholds and the template make with the defaults."""
    render(tmp_path)
    assert (tmp_path / name).read_text() == (COLLECTOR / "prometheus" / name).read_text()


def test_promtool_finds_no_fault() -> None:
    """The configuration and its rules pass promtool, lint included."""
    promtool = tool("promtool")
    config = COLLECTOR / "prometheus/prometheus.yaml"
    rules = [
        COLLECTOR / "prometheus" / name for name in ("recording.yaml", "alerts.yaml", "slo.yaml")
    ]
    for check in (["config", config], ["rules", *rules]):
        ran = subprocess.run(
            [promtool, "check", check[0], "--lint=all", "--lint-fatal", *map(str, check[1:])],
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
