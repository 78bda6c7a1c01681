"""The Grafana dashboard: made by code, and what it has to show."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from alerting.dashboard import DASHBOARDS, QUERIES, dashboard


@pytest.mark.skipif(sys.version_info < (3, 11), reason="grafana-foundation-sdk needs Python 3.11")
def test_it_is_what_the_code_makes(tmp_path: Path) -> None:
    """The checked-in dashboard is up to date."""
    made = tmp_path / "dashboard.json"
    code = (
        "import pathlib, sys, dashboard\npathlib.Path(sys.argv[1]).write_text(dashboard.text())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(DASHBOARDS)}
    subprocess.run([sys.executable, "-c", code, str(made)], env=environment, check=True)
    assert made.read_text() == (DASHBOARDS / "dashboard.json").read_text()


def test_it_shows_what_it_has_to() -> None:
    """Live, churn, closes, first message, gaps, waits, stalls, backlog, sizes, memory, alerts."""
    expressions = " ".join(QUERIES.values())
    for what in (
        "sse_server_active_connections",
        "sse_server_connections_total",
        "sse_server_connection_duration_seconds_count",
        "sse_close_reason",
        "sse_server_connection_time_to_first_message_seconds_bucket",
        "sse_server_message_gap_seconds_bucket",
        "sse_server_send_duration_seconds_bucket",
        "sse_server_send_time_seconds_total",
        "sse_server_slow_sends_total",
        "sse_server_stalled_connections",
        "sse_server_backlog_size_bytes",
        "sse_server_message_size_bytes_bucket",
        "process_memory_usage_bytes",
        "deriv(",
        "ALERTS",
        "sse_alert",
    ):
        assert what in expressions, what


def test_a_maximum_is_never_added_up() -> None:
    """A metric that is a maximum is aggregated by max."""
    for expression in QUERIES.values():
        for match in re.finditer(r"(\w+)(?: by \([^)]*\))? \((\w+_max(?:_\w+)?)\{", expression):
            assert match[1] == "max", expression


def test_it_can_be_imported_as_it_is() -> None:
    """Every panel has its own number and place, and takes the data source that one chooses."""
    content = dashboard()
    panels = content["panels"]
    assert max(Counter(panel["id"] for panel in panels).values()) == 1
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + row)
            for column in range(place["w"])
            for row in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
    variables = {each["name"]: each["type"] for each in content["templating"]["list"]}
    assert variables == {
        "source": "datasource",
        "job": "query",
        "instance": "query",
        "span": "interval",
    }
    assert content["uid"]
    assert "id" not in content


def test_the_checked_in_picture_shows_the_dashboard() -> None:
    """The picture in the documentation is of the charts that there are."""
    root = ElementTree.parse(DASHBOARDS / "dashboard.svg").getroot()
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    charts = {panel["title"] for panel in dashboard()["panels"] if panel["type"] == "timeseries"}
    assert charts <= texts
