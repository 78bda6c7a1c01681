"""The runbook as it is checked in, by its alerts."""

import re
from typing import Any, Final

import yaml
from alerting.stack import COLLECTOR

RUNBOOK: Final = (COLLECTOR / "runbook.md").read_text()
SECTIONS: Final = dict(re.findall(r"(?ms)^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK))
WHICH: Final = re.findall(r"(?s)```promql\n(.*?)```", RUNBOOK.partition("\n## ")[0])
PARTS: Final = ("Meaning.", "Impact.", "Confirm.", "Do.", "Silence.")


def alerts() -> list[dict[str, Any]]:
    """The alerts of the thresholds, and those of the objectives."""
    return [
        rule
        for name in ("alerts.yaml", "slo.yaml")
        for group in yaml.safe_load((COLLECTOR / "prometheus" / name).read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]


def entries() -> list[dict[str, Any]]:
    """What the alerts are made of."""
    thresholds: list[dict[str, Any]] = yaml.safe_load((COLLECTOR / "thresholds.yaml").read_text())
    objectives = yaml.safe_load((COLLECTOR / "objectives.yaml").read_text())
    return [*thresholds, *objectives["alerts"]]


NAMES: Final = [rule["alert"] for rule in alerts()]


def queries(name: str) -> list[str]:
    found: list[str] = re.findall(r"(?s)```promql\n(.*?)```", SECTIONS[name])
    return found
