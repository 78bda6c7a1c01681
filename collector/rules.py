"""Renders the Prometheus rules: recording.yaml, alerts.yaml and slo.yaml in prometheus/.

The numbers come from thresholds.yaml and objectives.yaml, each overridden by its environment
variable. The windows follow two intervals: that of the applications' exports,
OTEL_METRIC_EXPORT_INTERVAL (milliseconds, as the SDK reads it), and that of the scrapes, in the
prometheus.yaml beside which the rules go. SSE_LEAK_WINDOW (seconds) is how long memory has to grow,
SSE_SLO_WINDOW (seconds) the shortest window of the error budgets, SSE_SLO_FIRST_MESSAGE_SECONDS
when a first message is late, SSE_RUNBOOK_URL where the team reads runbook.md.

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
    "slo": "{{ $labels.job }}, objective {{ $labels.slo }}",
    "scrape": "Collector {{ $labels.instance }}",
}
# The windows of the error budgets, as multiples of the shortest; named as with the default, 5 min.
_BUDGET_WINDOWS: Final = {"30m": 6, "1h": 12, "6h": 72, "3d": 864}
# The bounds of the time to the first message that its histogram has, in seconds.
FIRST_MESSAGE_BOUNDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0, 120.0, 300.0),
)
# Fewer events in a window are no share.
_MIN_EVENTS: Final = 20
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


def slo(content: dict[str, Any], folder: Path = PROMETHEUS) -> dict[str, Any]:
    """The objectives' recording rules and alerts, as the content of a rule file for that folder."""
    known = windows(folder)
    bound = f"{_first_message_bound():.15g}"
    # Prometheus 3 writes the bound 5 as 5.0.
    pattern = bound.replace(".", r"\\.") if "." in bound else rf"{bound}(\\.0)?"
    template = (PROMETHEUS / "slo.template.yaml").read_text()
    text = Template(template).substitute(known, in_time=pattern)
    groups: list[dict[str, Any]] = yaml.safe_load(text)["groups"]
    budgets = {each["slo"]: _budget(each, content["alerts"]) for each in content["objectives"]}
    for each in content["objectives"]:
        for kind in ("events", "bad"):
            name = "sse_slo_events" if kind == "events" else "sse_slo_bad_events"
            expression = Template(each[kind]).substitute(known)
            groups[0]["rules"].append(
                {
                    "record": f"job_slo:{name}:increase",
                    "expr": expression,
                    "labels": {"slo": each["slo"]},
                }
            )
    burn: list[dict[str, Any]] = [
        {
            "record": "slo:sse_error_budget:ratio",
            "expr": f"vector({budget})",
            "labels": {"slo": name},
        }
        for name, budget in budgets.items()
    ]
    burn.append(_burn("5m", "job_slo:sse_slo_{}events:increase"))
    shortest = _positive("SSE_SLO_WINDOW", 300)
    for name, multiple in _BUDGET_WINDOWS.items():
        span = f"[{_span(multiple * shortest)}:{known['slo']}]"
        burn.append(_burn(name, f"sum_over_time(job_slo:sse_slo_{{}}events:increase{span})"))
    groups.append({"name": "sse-slo-burn", "rules": burn})
    alerts = [_alert(each, known) for each in content["alerts"]]
    return {"groups": [*groups, {"name": "sse-slo-alerts", "rules": alerts}]}


def _burn(window: str, counted: str) -> dict[str, str]:
    least = f" >= {_MIN_EVENTS}" if window != "5m" else " > 0"
    return {
        "record": f"job_slo:sse_error_budget_burn:{window}",
        "expr": f"{counted.format('bad_')} / ({counted.format('')}{least})"
        " / on (slo) group_left slo:sse_error_budget:ratio",
    }


def _budget(objective: dict[str, Any], alerts: list[dict[str, Any]]) -> str:
    """The share that may be bad.

    Raises:
        SystemExit: there is none, or one so large that an alert on it could never fire.
    """
    budget = 1 - number(objective)
    fastest = max(number(each) for each in alerts)
    if not 0 < budget * fastest < 1:
        raise SystemExit(
            f"{objective['variable']} is {number(objective):.15g}, and takes a share"
            f" above {1 - 1 / fastest:.4f} and below 1"
        )
    return f"{budget:.12g}"


def _first_message_bound() -> float:
    bound = _from_environment("SSE_SLO_FIRST_MESSAGE_SECONDS", 5)
    if bound not in FIRST_MESSAGE_BOUNDS:
        takes = ", ".join(f"{each:g}" for each in FIRST_MESSAGE_BOUNDS)
        raise SystemExit(f"SSE_SLO_FIRST_MESSAGE_SECONDS is {bound:g}, and takes one of {takes}")
    return bound


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
        "slo": math.ceil(_positive("SSE_SLO_WINDOW", 300) / export) * export + scrape,
    }
    spans = {name: _span(span) for name, span in seconds.items()}
    return {**spans, "window_seconds": f"{seconds['window']:.15g}"}


def _span(seconds: float) -> str:
    """As Prometheus takes it, exact to the millisecond."""
    whole = seconds == int(seconds)
    return f"{seconds:.0f}s" if whole else f"{seconds * 1000:.0f}ms"


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
    """Writes the rule files."""
    thresholds = yaml.safe_load((HERE / "thresholds.yaml").read_text())
    objectives = yaml.safe_load((HERE / "objectives.yaml").read_text())
    made = {
        "recording.yaml": text(recording(folder), "recording.template.yaml"),
        "alerts.yaml": text(rules(thresholds, folder), "../thresholds.yaml"),
        "slo.yaml": text(slo(objectives, folder), "../objectives.yaml and slo.template.yaml"),
    }
    for name, content in made.items():
        (folder / name).write_text(content)


if __name__ == "__main__":
    render(*map(Path, sys.argv[1:]))
