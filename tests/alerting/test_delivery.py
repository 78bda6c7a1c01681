"""End to end with real processes: a server misbehaves, people are told of it, once, and find it
on the dashboard and in the runbook. All ask about one episode, so all are in this file.
"""

import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from alerting import dashboard, runbook
from alerting.episode import BOTH, CROSSED, THRESHOLDS, VARIABLES, Episode, played
from alerting.stack import COOLDOWN, Stack, get
from helpers.tools import tool
from helpers.waiting import wait_until

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Episode]:
    with played(tmp_path_factory.mktemp("episode")) as played_once:
        yield played_once


@pytest.mark.parametrize("alert", CROSSED)
def test_arrives_once_within_a_minute(alert: str, episode: Episode) -> None:
    """Each alert arrives by mail, Slack, webhook and in the log, once, within 60 s."""
    mails, slacks = episode.mails(alert, "firing"), episode.slacks(alert, "firing")
    webhooks, logged = episode.webhooks(alert, "firing"), episode.logged(alert, "firing")
    for told in (mails, slacks, webhooks):
        assert len(told) == 1, told
        assert told[0].time - episode.began < 60
    assert len(logged) == 1, logged


@pytest.mark.parametrize("alert", CROSSED)
def test_is_held_back_in_the_cooldown(alert: str, episode: Episode) -> None:
    """That all is over, too, is told no sooner than the cooldown has passed, and once."""
    (first,), (over,) = episode.mails(alert, "firing"), episode.mails(alert, "resolved")
    assert over.time - first.time >= COOLDOWN - 1
    for told in (episode.slacks, episode.webhooks, episode.logged):
        assert len(told(alert, "resolved")) == 1


@pytest.mark.parametrize("alert", CROSSED)
def test_says_what_there_is_to_know(alert: str, episode: Episode) -> None:
    """Mail, Slack, webhook and log name the value, the threshold, the instance and the runbook."""
    threshold = THRESHOLDS[VARIABLES[alert]]
    (logged,) = episode.logged(alert, "firing")
    service, severity = CROSSED[alert]
    assert (logged["job"], logged["severity"]) == (service, severity)
    assert logged["threshold"] == threshold
    value = float(logged["value"])
    low = alert == "SSEMessageRateLow"
    assert value < float(threshold) if low else value > float(threshold)
    (webhook,) = episode.webhooks(alert, "firing")
    told = webhook.content["alerts"][0]
    assert told["annotations"]["threshold"] == threshold
    assert told["labels"]["instance"] == logged["instance"]
    assert webhook.authorization == "Bearer open"
    (mail,), (slack,) = episode.mails(alert, "firing"), episode.slacks(alert, "firing")
    texts = [mail.text(), mail.text("html"), slack.content["attachments"][0]["text"]]
    for text in texts:
        for what in (
            told["annotations"]["value"],
            threshold,
            logged["instance"],
            f"collector/runbook.md#{alert.lower()}",
        ):
            assert what in text


def test_severity_decides_where_it_goes(episode: Episode) -> None:
    """Critical alerts go to those on call and call the channel, warnings to the team."""
    (critical,) = episode.mails("SSEConnectionsHigh", "firing")
    (warning,) = episode.mails("SSEMemoryLeak", "firing")
    assert critical.message["To"] == "oncall@example.com"
    assert warning.message["To"] == "team@example.com"
    (loud,) = episode.slacks("SSEConnectionsHigh", "firing")
    (quiet,) = episode.slacks("SSEMemoryLeak", "firing")
    assert loud.content["channel"] == "#oncall"
    assert "<!channel>" in loud.content["attachments"][0]["text"]
    assert quiet.content["channel"] == "#streams"
    assert "<!channel>" not in quiet.content["attachments"][0]["text"]


def test_information_is_only_logged(episode: Episode) -> None:
    """What is severity info is in the history, and nobody is disturbed."""
    assert "SSEMessagesLarge" in {each["alert"] for each in episode.history}
    subjects = [mail.message["Subject"] for mail in episode.stack.mailbox.mails]
    assert not [subject for subject in subjects if "SSEMessagesLarge" in subject]
    assert not [post for post in episode.stack.posts.posts if "SSEMessagesLarge" in str(post)]


def test_what_is_explained_is_not_told(episode: Episode) -> None:
    """While sends are slow, that they are noticeable is no news."""
    assert episode.logged("SSEProcessingSlow", "firing")
    told = [each["job"] for each in episode.history if each["alert"] == "SSEProcessingElevated"]
    assert "slow" not in told
    assert ("SSEProcessingElevated", "slow") in episode.outside


def test_the_history_tells_the_last(episode: Episode) -> None:
    """The history can be asked for the last so many, and keeps them in a file too."""
    everything = episode.stack.last_alerts()
    assert episode.stack.last_alerts(2) == everything[-2:]
    lines = (episode.stack.folder / "alerts.jsonl").read_text().splitlines()
    assert len(lines) >= len(everything) >= 2 * len(CROSSED)


def test_collector_and_prometheus_agree(episode: Episode) -> None:
    """Every threshold that the collector watches is crossed by some service, and Prometheus tells
    of the same services and thresholds, and about the same values; and nothing when it is over.
    """
    assert {alert for alert, _ in episode.inside} == BOTH
    assert episode.agrees(), (episode.inside, episode.outside)
    assert episode.after == ({}, {})


@pytest.mark.parametrize("query", dashboard.QUERIES)
def test_each_query_of_the_dashboard_returns_data(query: str, episode: Episode) -> None:
    """With the variables filled in as Grafana does, each query has an answer that is a number."""
    expression = dashboard.QUERIES[query].replace("$span", "30s")
    expression = re.sub(r"\$(job|instance)", ".*", expression)
    assert "$" not in expression
    answer = episode.answer(expression)
    assert answer, expression
    values = [float(each["value"][1]) for each in answer]
    assert any(value == value for value in values), (expression, values)


def test_the_picture_of_the_dashboard_is_drawn_from_real_data(
    episode: Episode, tmp_path: Path
) -> None:
    """The script for the picture draws each chart of the dashboard with lines of its own."""
    picture = tmp_path / "dashboard.svg"
    subprocess.run(
        [
            sys.executable,
            str(dashboard.DASHBOARDS / "picture.py"),
            f"http://127.0.0.1:{episode.stack.prometheus}",
            str(picture),
            *("--minutes", "2", "--span", "30s", "--end", str(episode.height)),
        ],
        check=True,
    )
    root = ElementTree.parse(picture).getroot()
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    charts = [panel for panel in dashboard.dashboard()["panels"] if panel["type"] == "timeseries"]
    assert {panel["title"] for panel in charts} <= texts
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) >= len(charts)
    assert picture.stat().st_size < 300_000


@pytest.mark.parametrize("name", runbook.NAMES)
def test_what_the_runbook_asks_is_answered(name: str, episode: Episode) -> None:
    """Prometheus understands each query, and those of metrics that there are have an answer."""
    for query in runbook.queries(name):
        asked = re.sub(r'job="SERVICE"', 'job=~".+"', query)
        assert episode.answer(asked) or "server_shutdown" in query, query


def test_the_runbook_tells_which_process_an_instance_is(episode: Episode) -> None:
    """Host and process, of one that was started as the runbook says."""
    (query,) = runbook.WHICH
    (logged,) = episode.logged("SSEConnectionsHigh", "firing")
    asked = query.replace("SERVICE", logged["job"]).replace("INSTANCE", logged["instance"])
    (found,) = episode.stack.query(asked, time=episode.height)
    assert found["metric"]["host_name"] == socket.gethostname()
    assert int(found["metric"]["process_pid"]) > 0


def test_the_runbook_tells_how_long_a_service_has_been_silent(episode: Episode) -> None:
    """One that is scraped now was heard some seconds ago, not at the moment of the question."""
    asked = re.sub(r'job="SERVICE"', 'job=~".+"', runbook.queries("SSETelemetryAbsent")[0])
    found = episode.stack.query(asked, time=episode.height)
    assert found
    assert all(0 <= float(each["value"][1]) < 60 for each in found), found
    later = episode.stack.query(asked, time=episode.height + 3000)
    assert all(1200 < float(each["value"][1]) < 3600 for each in later), later


def test_the_silences_of_the_runbook_are_understood(episode: Episode) -> None:
    """Each command for a silence is one that amtool takes, with the address as the runbook says to
    give it, and it silences that alert.
    """
    (said,) = re.findall(r"`(--alertmanager\.url=http://localhost:)9093`", runbook.RUNBOOK)
    address = f"{said}{episode.stack.alertmanager}"
    for name in runbook.NAMES:
        (command,) = re.findall(r"`(amtool silence add [^`]*)`", runbook.SECTIONS[name])
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


def test_an_unreachable_alertmanager_is_tried_again(tmp_path: Path) -> None:
    """An alert that fires while Alertmanager is away arrives when it has come back."""
    with Stack(tmp_path) as stack:
        stack.start_history()
        stack.start_prometheus()
        firing = 'ALERTS{alertname="SSECollectorAbsent",alertstate="firing"}'
        wait_until(lambda: stack.query(firing), what="the alert")
        wait_until(lambda: _dropped(stack) > 0, what="Prometheus to find nobody")
        assert stack.last_alerts() == []
        stack.start_alertmanager()
        told = wait_until(stack.last_alerts, what="the alert in the history")
        assert (told[0]["alert"], told[0]["status"]) == ("SSECollectorAbsent", "firing")
        wait_until(lambda: stack.mailbox.mails, what="the mail")


def _dropped(stack: Stack) -> float:
    lines = get(f"http://127.0.0.1:{stack.prometheus}/metrics").splitlines()
    told = [line for line in lines if line.startswith("prometheus_notifications_dropped_total")]
    return float(told[0].split()[-1])
