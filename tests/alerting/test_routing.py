"""Where Alertmanager sends what: its configuration, checked and evaluated by amtool."""

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from alerting.runbook import entries
from helpers.tools import tool

COLLECTOR: Final = Path(__file__).resolve().parents[2] / "collector"
CONFIG: Final = COLLECTOR / "alertmanager/alertmanager.yaml"
SEVERITIES: Final = {entry["alert"]: entry["severity"] for entry in entries()}
RECEIVERS: Final = {"critical": "log,critical", "warning": "log,warning", "info": "log"}


def amtool(*arguments: str) -> str:
    ran = subprocess.run([tool("amtool"), *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def config() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    return content


def test_amtool_finds_no_fault() -> None:
    """The configuration and its templates pass amtool."""
    output = amtool("check-config", str(CONFIG))
    assert "1 templates" in output
    assert "3 receivers" in output


@pytest.mark.parametrize("alert", SEVERITIES)
def test_severity_routes(alert: str) -> None:
    """Every alert is logged; critical ones and warnings go to their receivers as well."""
    severity = SEVERITIES[alert]
    labels = (f"alertname={alert}", f"severity={severity}", "job=shop", "instance=a")
    found = amtool("config", "routes", "test", f"--config.file={CONFIG}", *labels)
    assert found.strip() == RECEIVERS[severity]


def test_an_unknown_severity_is_logged() -> None:
    """What bears no severity that is known here is not lost."""
    found = amtool("config", "routes", "test", f"--config.file={CONFIG}", "alertname=Another")
    assert found.strip() == "log"


def test_an_alert_without_a_value_shows_none(tmp_path: Path) -> None:
    """A collector that is away has no value and no threshold, and no line is left half empty."""
    alert = {
        "status": "firing",
        "labels": {"alertname": "SSECollectorAbsent"},
        "annotations": {"summary": "The collector cannot be scraped."},
        "startsAt": "2026-01-01T00:00:00Z",
    }
    data = tmp_path / "alerts.json"
    data.write_text(json.dumps({"status": "firing", "alerts": [alert]}))
    for name, expected in (
        ("sse.text", "Value: none, threshold: none"),
        ("sse.html", "<td>Value</td><td><b>none</b></td>"),
    ):
        shown = f"--template.text={{{{ template {json.dumps(name)} . }}}}"
        glob = f"--template.glob={CONFIG.parent / 'sse.tmpl'}"
        assert expected in amtool("template", "render", glob, shown, f"--template.data={data}")


def test_the_cooldown_is_five_minutes() -> None:
    """No receiver gets two notifications of one alert of a service within five minutes."""
    route = config()["route"]
    assert route["group_by"] == ["alertname", "job"]
    assert route["group_interval"] == "5m"
    for child in route["routes"]:
        assert not {"group_by", "group_interval"} & child.keys()


def test_inhibition_names_alerts_that_exist() -> None:
    """Each inhibition rule names alerts that exist, and inhibits none more severe than its source,
    and all but the collector's absence inhibit only alerts of the same job or instance.
    """
    grave = ("critical", "warning", "info")
    for rule in config()["inhibit_rules"]:
        (source,) = _names(rule["source_matchers"])
        for name in _names(rule["target_matchers"]):
            assert grave.index(SEVERITIES[source]) <= grave.index(SEVERITIES[name])
        assert ("equal" in rule) is (source != "SSECollectorAbsent")


def _names(matchers: list[str]) -> list[str]:
    (matcher,) = matchers
    names = matcher.split('"')[1].split("|")
    assert set(names) <= SEVERITIES.keys()
    return names


def test_no_secret_stands_in_the_configuration() -> None:
    """Passwords and secret addresses are read from files."""
    for receiver in config()["receivers"]:
        for hook in receiver.get("webhook_configs", ()):
            authorization = hook.get("http_config", {}).get("authorization", {})
            assert "credentials" not in authorization
    assert "slack_api_url" not in config()["global"]
    assert "smtp_auth_password" not in config()["global"]
