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
    content = yaml.safe_load((COLLECTOR / "prometheus/alerts.yaml").read_text())
    rules: list[dict[str, Any]] = content["groups"][0]["rules"]
    return rules


NAMES: Final = [rule["alert"] for rule in alerts()]


def queries(name: str) -> list[str]:
    found: list[str] = re.findall(r"(?s)```promql\n(.*?)```", SECTIONS[name])
    return found
