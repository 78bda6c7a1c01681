"""Renders the Prometheus rules, prometheus/recording.yaml and prometheus/alerts.yaml.

The numbers come from thresholds.yaml, each overridden by its environment variable. The windows
follow two intervals: that of the applications' exports, OTEL_METRIC_EXPORT_INTERVAL (milliseconds,
as the SDK reads it), and that of the scrapes, in the prometheus.yaml beside which the rules go.
SSE_LEAK_WINDOW (seconds) is how long memory has to grow, SSE_RUNBOOK_URL where the team reads
runbook.md.

    OTEL_METRIC_EXPORT_INTERVAL=15000 python collector/rules.py [FOLDER]
"""

import contextlib
import math
import os
import re
import sys
from pathlib import Path
from string import Template
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).resolve().parent
PROMETHEUS: Final = HERE / "prometheus"
SEVERITIES: Final = ("critical", "warning", "info")
# What an alert is about, to the labels that its text names.
_SUBJECTS: Final = {
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
    """The spans of time in the rules; recording.template.yaml explains each."""
    export = _positive("OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000
    scrape = _scrape_interval(folder / "prometheus.yaml")
    seconds = {
        "brief": 2 * scrape,
        "confirm": export + scrape,
        "window": 2 * export + scrape,
        "long": 5 * export + scrape,
        "leak": _positive("SSE_LEAK_WINDOW", 600),
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
    subject = _SUBJECTS[template.get("per", "instance")]
    description, annotations = f"{subject}.", {}
    if "measure" in template:
        value = f'{{{{ printf "{template["format"]}" $value }}}}'
        annotations["value"] = value
        description = f"{subject}: {value} {template['measure']}."
    if "threshold" in known:
        annotations["threshold"] = known["threshold"]
        description += f" The threshold is {known['threshold']} ({threshold['variable']})."
    runbook = os.environ.get("SSE_RUNBOOK_URL", "collector/runbook.md")
    return {
        **rule,
        "labels": {"severity": threshold["severity"]},
        "annotations": {
            "summary": threshold["says"],
            "description": description,
            **annotations,
            "runbook_url": f"{runbook}#{name.lower()}",
        },
    }


def _scrape_interval(file: Path) -> float:
    """In seconds; a minute where none is given, as Prometheus has it."""
    config = yaml.safe_load(file.read_text())
    interval = str(config.get("global", {}).get("scrape_interval", "1m"))
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", interval)
    given = [int(each or 0) for each in parts.groups()] if parts else [0] * 4
    seconds = sum(unit * each for unit, each in zip((3600, 60, 1, 0.001), given, strict=True))
    if not seconds:
        raise SystemExit(
            f"{file}: the scrape_interval is {interval!r}, and takes a duration: 15s, 1m"
        )
    return seconds


def _from_environment(variable: str, default: float) -> float:
    value = os.environ.get(variable, "")
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(value or default)):
            return number
    raise SystemExit(f"{variable} is {value!r}, and takes a number")


def _positive(variable: str, default: float) -> float:
    value = _from_environment(variable, default)
    if value <= 0:
        raise SystemExit(f"{variable} is {os.environ[variable]!r}, and takes a number above 0")
    return value


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
