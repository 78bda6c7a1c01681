"""End to end with real processes: a server misbehaves, each receiver is notified once, and the
dashboard and the runbook show it. All test one episode, so all are in this file.
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
    for sent in (mails, slacks, webhooks):
        assert len(sent) == 1, sent
        assert sent[0].time - episode.began < 60
    assert len(logged) == 1, logged


@pytest.mark.parametrize("alert", CROSSED)
def test_is_held_back_in_the_cooldown(alert: str, episode: Episode) -> None:
    """The resolved notification, too, waits for the end of the cooldown, and comes once."""
    (first,), (over,) = episode.mails(alert, "firing"), episode.mails(alert, "resolved")
    assert over.time - first.time >= COOLDOWN - 1
    for sent in (episode.slacks, episode.webhooks, episode.logged):
        assert len(sent(alert, "resolved")) == 1


@pytest.mark.parametrize("alert", CROSSED)
def test_names_value_threshold_and_runbook(alert: str, episode: Episode) -> None:
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
    sent = webhook.content["alerts"][0]
    assert sent["annotations"]["threshold"] == threshold
    assert sent["labels"]["instance"] == logged["instance"]
    assert webhook.authorization == "Bearer open"
    (mail,), (slack,) = episode.mails(alert, "firing"), episode.slacks(alert, "firing")
    texts = [mail.text(), mail.text("html"), slack.content["attachments"][0]["text"]]
    for text in texts:
        for what in (
            sent["annotations"]["value"],
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
    """What is severity info is in the history, and is sent to no other receiver."""
    assert "SSEMessagesLarge" in {each["alert"] for each in episode.history}
    subjects = [mail.message["Subject"] for mail in episode.stack.mailbox.mails]
    assert not [subject for subject in subjects if "SSEMessagesLarge" in subject]
    assert not [post for post in episode.stack.posts.posts if "SSEMessagesLarge" in str(post)]


def test_an_inhibited_alert_is_not_sent(episode: Episode) -> None:
    """While SSEProcessingSlow fires, SSEProcessingElevated of the same process is not sent."""
    assert episode.logged("SSEProcessingSlow", "firing")
    sent = [each["job"] for each in episode.history if each["alert"] == "SSEProcessingElevated"]
    assert "slow" not in sent
    assert ("SSEProcessingElevated", "slow") in episode.outside


def test_the_history_returns_the_last(episode: Episode) -> None:
    """The history returns the last N alerts, and keeps them in a file too."""
    everything = episode.stack.last_alerts()
    assert episode.stack.last_alerts(2) == everything[-2:]
    lines = (episode.stack.folder / "alerts.jsonl").read_text().splitlines()
    assert len(lines) >= len(everything) >= 2 * len(CROSSED)


def test_collector_and_prometheus_agree(episode: Episode) -> None:
    """Every threshold that the collector watches is crossed by some service, and Prometheus
    fires for the same services and thresholds, with about the same values; and for none at the end.
    """
    assert {alert for alert, _ in episode.inside} == BOTH
    assert episode.agrees(), (episode.inside, episode.outside)
    assert episode.after == ({}, {})


def test_a_budget_burns_in_the_real_prometheus(episode: Episode) -> None:
    """Every third stream of the busy service ends by an error: of its objective for closes the fast
    alert fires, with windows of seconds instead of minutes, and for no objective that is met.
    """
    fired = 'ALERTS{alertname="SSEBudgetBurnFast", alertstate="firing", job="busy"}'
    found = episode.answer(f"count by (slo) ({fired})")
    assert [each["metric"]["slo"] for each in found] == ["closes"]
    (burn,) = episode.answer('job_slo:sse_error_budget_burn:1h{job="busy", slo="closes"}')
    assert 25 < float(burn["value"][1]) < 40
    assert episode.answer('job_slo:sse_error_budget_burn:5m{job="busy", slo="first_message"}')


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
def test_each_query_of_the_runbook_is_answered(name: str, episode: Episode) -> None:
    """Prometheus understands each query, and those of metrics that there are have an answer."""
    for query in runbook.queries(name):
        expression = re.sub(r'job="SERVICE"', 'job=~".+"', query)
        assert episode.answer(expression) or "server_shutdown" in query, query


def test_the_runbook_finds_the_process_of_an_instance(episode: Episode) -> None:
    """Host and process, of one that was started as the runbook describes."""
    (query,) = runbook.WHICH
    (logged,) = episode.logged("SSEConnectionsHigh", "firing")
    expression = query.replace("SERVICE", logged["job"]).replace("INSTANCE", logged["instance"])
    (found,) = episode.stack.query(expression, time=episode.height)
    assert found["metric"]["host_name"] == socket.gethostname()
    assert int(found["metric"]["process_pid"]) > 0


def test_the_runbook_shows_for_how_long_a_service_has_exported_nothing(episode: Episode) -> None:
    """One that is scraped now exported some seconds ago, not at the moment of the query."""
    expression = re.sub(r'job="SERVICE"', 'job=~".+"', runbook.queries("SSETelemetryAbsent")[0])
    found = episode.stack.query(expression, time=episode.height)
    assert found
    assert all(0 <= float(each["value"][1]) < 60 for each in found), found
    later = episode.stack.query(expression, time=episode.height + 3000)
    assert all(1200 < float(each["value"][1]) < 3600 for each in later), later


def test_the_silences_of_the_runbook_are_understood(episode: Episode) -> None:
    """Each command for a silence is one that amtool takes, with the address given as the runbook
    describes, and it silences that alert.
    """
    (option,) = re.findall(r"`(--alertmanager\.url=http://localhost:)9093`", runbook.RUNBOOK)
    address = f"{option}{episode.stack.alertmanager}"
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
        wait_until(lambda: _dropped(stack) > 0, what="Prometheus to drop notifications")
        assert stack.last_alerts() == []
        stack.start_alertmanager()
        sent = wait_until(stack.last_alerts, what="the alert in the history")
        assert (sent[0]["alert"], sent[0]["status"]) == ("SSECollectorAbsent", "firing")
        wait_until(lambda: stack.mailbox.mails, what="the mail")


def _dropped(stack: Stack) -> float:
    lines = get(f"http://127.0.0.1:{stack.prometheus}/metrics").splitlines()
    found = [line for line in lines if line.startswith("prometheus_notifications_dropped_total")]
    return float(found[0].split()[-1])
