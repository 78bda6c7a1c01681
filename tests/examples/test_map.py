"""What examples/README.md and compose/README.md lead to."""

import re
from pathlib import Path

import pytest
import yaml
from examples.commands import EXAMPLES, SMALL

from otel_sse import semconv

README = EXAMPLES / "README.md"
TUTORIAL = (
    "connection monitor",
    "memory monitor",
    "throughput monitor",
    "combined",
    "status page",
    "dashboard",
    "load balancing",
    "batching",
    "compression",
    "thresholds",
    "cooldown",
    "history",
    "email, Slack, log, webhook",
    "production",
    "client-side monitor",
    "resource manager",
    "error handler",
    "optimisation: architecture",
    "optimisation: protocol",
    "optimisation: system",
    "optimisation: network",
)


@pytest.mark.parametrize("page", [README, EXAMPLES / "compose/README.md"], ids=["map", "compose"])
def test_every_link_leads_somewhere(page: Path) -> None:
    """Each file and folder that is linked is there."""
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert links
    assert [each for each in links if not (page.parent / each).exists()] == []


def test_each_part_of_the_tutorial_has_a_place() -> None:
    """A row for each, with a link in its second column."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", README.read_text(), re.MULTILINE)
    for part in TUTORIAL:
        places = [place for name, place in rows if part in name]
        assert places, part
        assert all("](" in place for place in places), part


def test_each_small_example_has_a_row() -> None:
    linked = re.findall(r"\(small/(\w+\.py)\)", README.read_text())
    assert {each.name for each in SMALL.glob("*.py")} == set(linked)


def test_every_metric_and_alert_it_names_exists() -> None:
    """Names are those of semconv.py; one that begins with a dot goes on from the one before."""
    names = {each.name for each in vars(semconv).values() if isinstance(each, semconv.Metric)}
    names |= {each.name for each in semconv.CLIENT_METRICS.values()}
    found, side = [], ""
    for begun, rest in re.findall(r"`(sse\.(?:server|client))?(\.[a-z_.]+)`", README.read_text()):
        side = begun or side
        found.append(side + rest)
    assert len(found) > 15
    assert [each for each in found if each not in names] == []

    alerts = set(re.findall(r"`(SSE[A-Z]\w+)`", README.read_text())) - {"SSEMiddleware"}
    listed = yaml.safe_load((EXAMPLES.parent / "collector/thresholds.yaml").read_text())
    assert alerts
    assert alerts <= {each["alert"] for each in listed}
