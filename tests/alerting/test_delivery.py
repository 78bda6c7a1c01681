"""End to end with real processes: a server misbehaves, and people are told of it, once."""

from pathlib import Path

import pytest
from alerting.episode import BOTH, CROSSED, THRESHOLDS, VARIABLES, Episode
from alerting.stack import COOLDOWN, Stack, get, until

pytestmark = pytest.mark.timeout(400)


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


def test_an_unreachable_alertmanager_is_tried_again(tmp_path: Path) -> None:
    """An alert that fires while Alertmanager is away arrives when it has come back."""
    with Stack(tmp_path) as stack:
        stack.start_history()
        stack.start_prometheus()
        firing = 'ALERTS{alertname="SSECollectorAbsent",alertstate="firing"}'
        until(lambda: stack.query(firing), 60, "the alert")
        until(lambda: _dropped(stack) > 0, 60, "Prometheus to find nobody")
        assert stack.last_alerts() == []
        stack.start_alertmanager()
        told = until(stack.last_alerts, 60, "the alert in the history")
        assert (told[0]["alert"], told[0]["status"]) == ("SSECollectorAbsent", "firing")
        until(lambda: stack.mailbox.mails, 60, "the mail")


def _dropped(stack: Stack) -> float:
    lines = get(f"http://127.0.0.1:{stack.prometheus}/metrics").splitlines()
    told = [line for line in lines if line.startswith("prometheus_notifications_dropped_total")]
    return float(told[0].split()[-1])
