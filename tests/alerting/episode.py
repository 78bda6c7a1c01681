"""Servers misbehave, alerts fire and resolve: run once, examined by many tests."""

import itertools
import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from alerting.sinks import Mail
from alerting.stack import COLLECTOR, Client, Stack, get, post, started
from helpers.waiting import wait_until

# The thresholds of this run, and which service crosses them.
THRESHOLDS: Final = {
    "SSE_MAX_CONNECTIONS": "5",
    "SSE_MAX_MEMORY_MB": "150",
    "SSE_MIN_MESSAGE_RATE": "1",
    "SSE_MAX_PROCESSING_MS": "60",
    "SSE_MAX_MEMORY_GROWTH_MB": "0.5",
    "SSE_MAX_PER_CLIENT": "5",
    "SSE_MAX_IDLE_SECONDS": "3",
    "SSE_MAX_STALLED": "5",
    "SSE_INFO_PROCESSING_MS": "30",
}
CROSSED: Final = {
    "SSEConnectionsHigh": ("crowd", "critical"),
    "SSEMessageRateLow": ("crowd", "warning"),
    "SSEProcessingSlow": ("slow", "warning"),
    "SSEMemoryHigh": ("leaky", "warning"),
    "SSEMemoryLeak": ("leaky", "warning"),
}
_ENTRIES: Final = yaml.safe_load((COLLECTOR / "thresholds.yaml").read_text())
VARIABLES: Final = {entry["alert"]: entry["variable"] for entry in _ENTRIES if "variable" in entry}
# The alerts that the collector makes too.
BOTH: Final = {entry["alert"] for entry in _ENTRIES if "collector" in entry}
# Alert and service, to the value.
Breaches = dict[tuple[str, str], float]


@dataclass
class Episode:
    """What arrived from the beginning of the misbehaviour until all of it was over.

    ``inside`` is what the collector reported as breached at its height, ``outside`` what Prometheus
    reported. ``after`` is what both reported at the end.
    """

    began: float
    stack: Stack
    height: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    inside: Breaches = field(default_factory=dict)
    outside: Breaches = field(default_factory=dict)
    after: tuple[Breaches, Breaches] | None = None

    def agrees(self) -> bool:
        """Whether both report the same breaches with like values; their rates span other times."""
        return self.inside.keys() == self.outside.keys() and all(
            math.isclose(value, self.outside[breach], rel_tol=0.3, abs_tol=0.5)
            for breach, value in self.inside.items()
        )

    def answer(self, query: str) -> list[dict[str, Any]]:
        """What Prometheus last answered to a query, in the half minute before the height: where an
        export is late, a rate of the last two has no value for a moment.
        """
        return self.stack.query(f"last_over_time((\n{query}\n)[30s:1s])", time=self.height)

    def mails(self, alert: str, status: str) -> list[Mail]:
        prefix = "[RESOLVED]" if status == "resolved" else f"[{CROSSED[alert][1].upper()}]"
        subject = f"{prefix} {alert} of {CROSSED[alert][0]}"
        return [each for each in self.stack.mailbox.mails if each.message["Subject"] == subject]

    def webhooks(self, alert: str, status: str) -> list[Any]:
        return [
            post
            for post in self.stack.posts.to(f"/{CROSSED[alert][1]}")
            if post.content["groupLabels"] == {"alertname": alert, "job": CROSSED[alert][0]}
            and post.content["status"] == status
        ]

    def slacks(self, alert: str, status: str) -> list[Any]:
        prefix = "[RESOLVED]" if status == "resolved" else f"[{CROSSED[alert][1].upper()}]"
        return [
            post
            for post in self.stack.posts.to("/slack")
            if post.content["attachments"][0]["title"] == f"{prefix} {alert} of {CROSSED[alert][0]}"
        ]

    def logged(self, alert: str, status: str) -> list[dict[str, Any]]:
        wanted = (alert, CROSSED[alert][0], status)
        return [
            each for each in self.history if (each["alert"], each["job"], each["status"]) == wanted
        ]


def _read(port: int, path: str, pause: float, stopped: threading.Event) -> None:
    client = Client(port, path)
    while not stopped.wait(pause):
        client.read(200_000 if path == "/large" else 1)
    client.close()


def _come_and_go(port: int, stopped: threading.Event) -> None:
    for path in itertools.cycle(["/ticker?count=3", "/ticker?count=9", "/broken"]):
        client = Client(port, path, "Connection: close", "Last-Event-ID: 1")
        client.read(100_000)
        client.close()
        if stopped.wait(0.5):
            return


def _inside(stack: Stack) -> Breaches:
    """What the collector reports as breached now."""
    alerts = stack.query("sse_alert")
    return {
        (each["metric"]["alert"], each["metric"]["job"]): float(each["value"][1]) for each in alerts
    }


def _outside(stack: Stack) -> Breaches:
    """The alerts that fire in Prometheus now, of those that the collector makes too."""
    alerts = get(f"http://127.0.0.1:{stack.prometheus}/api/v1/alerts")["data"]["alerts"]
    return {
        (each["labels"]["alertname"], each["labels"]["job"]): float(each["value"])
        for each in alerts
        if each["labels"]["alertname"] in BOTH and each["state"] == "firing"
    }


@contextmanager
def played(folder: Path) -> Iterator[Episode]:
    """Four servers misbehave, each in its way, until all alerts have come, and then stop."""
    with started(folder, **THRESHOLDS) as stack, ExitStack() as ends:
        services = ("crowd", "slow", "leaky", "busy")
        ports = {service: stack.start_application(service) for service in services}
        metric = 'sse_server_connections_per_client_max{job="%s"}'
        for service in ports:
            wait_until(
                lambda query=metric % service: stack.query(query), what=f"metrics of {service}"
            )
        episode = Episode(time.time(), stack)
        stopped = threading.Event()
        clients = [Client(ports["crowd"], "/silent") for _ in range(6)]
        post(ports["leaky"], "/leak")
        readers = [threading.Thread(target=_read, args=(ports["slow"], "/large", 0.15, stopped))]
        for _ in range(3):
            read = (ports["busy"], "/ticker?pause=0.01", 0.01, stopped)
            readers.append(threading.Thread(target=_read, args=read))
        lossy = (ports["busy"], "/lossy", 0.05, stopped)
        readers.append(threading.Thread(target=_read, args=lossy))
        readers.append(threading.Thread(target=_come_and_go, args=(ports["busy"], stopped)))
        for reader in readers:
            reader.start()
            ends.callback(reader.join)
        ends.callback(stopped.set)

        def all_mailed(status: str) -> bool:
            return all(episode.mails(alert, status) for alert in CROSSED)

        def agreed() -> bool:
            episode.inside, episode.outside = _inside(stack), _outside(stack)
            return {alert for alert, _ in episode.inside} == BOTH and episode.agrees()

        def burns() -> bool:
            # The windows are longer than those of the other alerts: on a fast machine it is last.
            episode.height = time.time()
            return bool(
                episode.answer(
                    'ALERTS{alertname="SSEBudgetBurnFast", alertstate="firing", job="busy"}'
                )
            )

        wait_until(lambda: all_mailed("firing"), 120, "mails of all alerts")
        with suppress(AssertionError):
            wait_until(burns, what="an error budget to burn")
            wait_until(agreed, what="collector and Prometheus to agree")
        episode.height = time.time()
        stopped.set()
        for client in clients:
            client.close()
        post(ports["leaky"], "/stop")
        wait_until(lambda: all_mailed("resolved"), 120, "mails that all is over")
        wait_until(
            lambda: all(
                sent(alert, "resolved")
                for alert in CROSSED
                for sent in (episode.webhooks, episode.slacks)
            ),
            30,
            "the same by webhook and Slack",
        )

        def logged() -> bool:
            episode.history = stack.last_alerts()
            return all(episode.logged(alert, "resolved") for alert in CROSSED)

        wait_until(logged, what="the same in the history")
        episode.after = _inside(stack), _outside(stack)
        yield episode
