"""The runbook: a section for every alert, with what is needed at night."""

import re

import pytest
from alerting.runbook import NAMES, PARTS, RUNBOOK, SECTIONS, alerts, entries, queries
from alerting.stack import COLLECTOR


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
    for entry in entries():
        if entry["alert"] == name and "variable" in entry:
            assert entry["variable"] in section
