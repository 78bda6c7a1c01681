"""Renders the Prometheus rules, prometheus/recording.yaml and prometheus/alerts.yaml.

The numbers come from thresholds.yaml, each overridden by its environment variable. The windows
follow two intervals: that of the applications' exports, OTEL_METRIC_EXPORT_INTERVAL (milliseconds,
as the SDK reads it), and that of the scrapes, in the prometheus.yaml beside which the rules go.
SSE_LEAK_WINDOW (seconds) is how long memory has to grow, SSE_RUNBOOK_URL where the team reads
runbook.md.

    OTEL_METRIC_EXPORT_INTERVAL=15000 python collector/rules.py [FOLDER]
"""

import os
import sys
from pathlib import Path
from string import Template
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).resolve().parent
PROMETHEUS: Final = HERE / "prometheus"
SEVERITIES: Final = ("critical", "warning", "info")
# What an alert is one of, to the labels that its text names.
_WHO: Final = {
    "instance": "Instance {{ $labels.instance }} of {{ $labels.job }}",
    "job": "{{ $labels.job }}",
    "route": "{{ $labels.job }}, route {{ $labels.http_route }}",
    "scrape": "Collector {{ $labels.instance }}",
}
_HEADER: Final = "# Made by rules.py: change {} and render it anew.\n"


def rules(thresholds: list[dict[str, Any]], folder: Path = PROMETHEUS) -> dict[str, Any]:
    """The alerts of the thresholds, as the content of a rule file for that folder."""
    known = windows(folder)
    made = [_alert(each, known) for each in thresholds]
    return {"groups": [{"name": "sse-alerts", "rules": made}]}


def recording(folder: Path = PROMETHEUS) -> dict[str, Any]:
    """The recording rules that the alerts are made of."""
    template = (PROMETHEUS / "recording.template.yaml").read_text()
    content: dict[str, Any] = yaml.safe_load(Template(template).substitute(windows(folder)))
    return content


def number(threshold: dict[str, Any]) -> float:
    """The threshold in force: of the environment, else the default."""
    return _from_environment(threshold["variable"], threshold["default"])


def windows(folder: Path = PROMETHEUS) -> dict[str, str]:
    """The spans of time in the rules; recording.template.yaml says what each is for."""
    export = _from_environment("OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000
    config = yaml.safe_load((folder / "prometheus.yaml").read_text())
    scrape = float(config["global"]["scrape_interval"].removesuffix("s"))
    seconds = {
        "brief": 2 * scrape,
        "confirm": export + scrape,
        "window": 2 * export + scrape,
        "long": 5 * export + scrape,
        "leak": _from_environment("SSE_LEAK_WINDOW", 600),
    }
    return {
        name: f"{span:.0f}s" if span == int(span) else f"{span * 1000:.0f}ms"
        for name, span in seconds.items()
    }


def _alert(threshold: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
    name, template = threshold["alert"], threshold["prometheus"]
    if "variable" in threshold:
        known = {**known, "threshold": f"{number(threshold):.15g}"}
    rule = {"alert": name, "expr": Template(template["expr"]).substitute(known)}
    if "for" in template:
        rule["for"] = Template(template["for"]).substitute(known)
    who = _WHO[template.get("per", "instance")]
    told, annotations = f"{who}.", {}
    if "measure" in template:
        value = f'{{{{ printf "{template["format"]}" $value }}}}'
        annotations["value"] = value
        told = f"{who}: {value} {template['measure']}."
    if "threshold" in known:
        annotations["threshold"] = known["threshold"]
        told += f" The threshold is {known['threshold']} ({threshold['variable']})."
    runbook = os.environ.get("SSE_RUNBOOK_URL", "collector/runbook.md")
    return {
        **rule,
        "labels": {"severity": threshold["severity"]},
        "annotations": {
            "summary": threshold["says"],
            "description": told,
            **annotations,
            "runbook_url": f"{runbook}#{name.lower()}",
        },
    }


def _from_environment(variable: str, default: float) -> float:
    said = os.environ.get(variable, "")
    try:
        return float(said or default)
    except ValueError:
        raise SystemExit(f"{variable} is {said!r}, and takes a number") from None


def text(content: dict[str, Any], source: str) -> str:
    """A rule file."""
    return _HEADER.format(source) + yaml.safe_dump(content, sort_keys=False, width=100)


def render(folder: Path = PROMETHEUS) -> None:
    """Writes both rule files."""
    thresholds = yaml.safe_load((HERE / "thresholds.yaml").read_text())
    made = {
        "recording.yaml": text(recording(folder), "recording.template.yaml"),
        "alerts.yaml": text(rules(thresholds, folder), "../thresholds.yaml"),
    }
    for name, content in made.items():
        (folder / name).write_text(content)


if __name__ == "__main__":
    render(*map(Path, sys.argv[1:]))
