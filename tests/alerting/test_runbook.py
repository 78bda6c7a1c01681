"""The runbook: a section for every alert, with what is needed at night."""

import re
import shlex
import subprocess
from typing import Any, Final

import pytest
import yaml
from alerting.episode import Episode
from alerting.stack import COLLECTOR
from tools import tool

RUNBOOK: Final = (COLLECTOR / "runbook.md").read_text()
SECTIONS: Final = dict(re.findall(r"(?ms)^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK))
PARTS: Final = ("Meaning.", "Impact.", "Confirm.", "Do.", "Silence.")


def alerts() -> list[dict[str, Any]]:
    content = yaml.safe_load((COLLECTOR / "prometheus/alerts.yaml").read_text())
    rules: list[dict[str, Any]] = content["groups"][0]["rules"]
    return rules


NAMES: Final = [rule["alert"] for rule in alerts()]


def queries(name: str) -> list[str]:
    found: list[str] = re.findall(r"(?s)```promql\n(.*?)```", SECTIONS[name])
    return found


def anchors() -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", RUNBOOK)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_runbook_url_leads_to_a_heading() -> None:
    """Each alert's link names this file and a heading that it has."""
    for rule in alerts():
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (COLLECTOR.parent / file).read_text() == RUNBOOK
        assert anchor in anchors()


def test_every_link_inside_leads_to_a_heading() -> None:
    """No section sends its reader nowhere."""
    links = re.findall(r"\]\(#([^)]*)\)", RUNBOOK)
    assert links
    assert set(links) <= anchors()


def test_no_section_is_of_an_alert_that_is_not() -> None:
    """Sections and alerts are the same, in the same order."""
    assert list(SECTIONS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_section_has_all_its_parts(name: str) -> None:
    """Meaning, impact, how to confirm, what to do, how to silence, and the variable if any."""
    section = SECTIONS[name]
    assert tuple(re.findall(r"(?m)^\*\*(\w+\.)\*\*", section)) == PARTS
    assert queries(name)
    assert f"alertname={name}" in section
    for entry in yaml.safe_load((COLLECTOR / "thresholds.yaml").read_text()):
        if entry["alert"] == name and "variable" in entry:
            assert entry["variable"] in section


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", NAMES)
def test_what_it_asks_is_answered(name: str, episode: Episode) -> None:
    """Prometheus understands each query, and those of metrics that there are have an answer."""
    for query in queries(name):
        asked = re.sub(r'job="SERVICE"', 'job=~".+"', query)
        answer = episode.stack.query(asked, time=episode.height)
        assert answer or "server_shutdown" in query, query


@pytest.mark.timeout(400)
def test_its_silences_are_understood(episode: Episode) -> None:
    """Each command for a silence is one that amtool takes, and it silences that alert."""
    address = f"--alertmanager.url=http://127.0.0.1:{episode.stack.alertmanager}"
    for name in NAMES:
        (command,) = re.findall(r"`(amtool silence add [^`]*)`", SECTIONS[name])
        _, *arguments = shlex.split(command)
        ran = subprocess.run(
            [tool("amtool"), address, *arguments, "--author=test"], capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        listed = subprocess.run(
            [tool("amtool"), address, "silence", "query", f"alertname={name}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() in listed.stdout
