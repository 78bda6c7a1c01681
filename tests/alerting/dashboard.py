"""The Grafana dashboard as it is checked in."""

import json
from collections.abc import Iterator
from typing import Any, Final

from alerting.stack import COLLECTOR

DASHBOARDS: Final = COLLECTOR / "dashboards"


def dashboard() -> Any:
    return json.loads((DASHBOARDS / "dashboard.json").read_text())


def queries() -> Iterator[tuple[str, str]]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']} {target['refId']}", target["expr"]


QUERIES: Final = dict(queries())
