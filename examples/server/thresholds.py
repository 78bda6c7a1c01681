"""The alerts of this process: thresholds.yaml, the list of the collector and of Prometheus, judged
by the process's own figures.

Its ``collector:`` expressions mean here what they mean there: counters are taken as rates, here
over the last minute; a mean over no messages is 0; and what has a minimum is judged only where a
connection has been open all that time. What needs rules of Prometheus is not judged, except for the
memory leak, which memory.py finds.

A threshold at the server's own limit could never be crossed, so each of those is four fifths of the
limit where no variable sets it. ``python -m server.thresholds`` prints the same numbers as
variables for the collector and for ``collector/rules.py``.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import yaml

from server import meters
from server.figures import Part, Window
from server.settings import CLIENT_BUFFER_BYTES, Settings

DEFAULT: Final = Path(__file__).resolve().parents[2] / "collector" / "thresholds.yaml"
# Seconds in which an alert is reported once at most, and after which one that lasts is reported
# again.
COOLDOWN: Final = 300.0
# Rates and means are not judged over less, in seconds.
SETTLED: Final = 10.0
SEVERITIES: Final = ("critical", "warning", "info")
# The part of a limit of the server's own at which it warns.
WARN_AT: Final = 0.8
# Where a write has so many messages on average, they are sent in batches already.
BATCHED: Final = 2.0
_LEAK: Final = "SSEMemoryLeak"
_MANY_MESSAGES: Final = "SSEMessageRateHigh"
_NUMBER: Final = re.compile(r"\d+([.]\d+)?")
_NAME: Final = re.compile(r"[a-z][a-z0-9_.]*[.][a-z0-9_.]+")
_LEVELS: Final = {"critical": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}
_ADVICE: Final = {
    "SSEConnectionsHigh": "Add workers, or raise SSE_SERVER_MAX_CONNECTIONS: above it clients are "
    "refused.",
    "SSEMemoryHigh": "See whether it follows the connections or the backlog; add workers. Above "
    "SSE_SERVER_MEMORY_LIMIT_MB clients are refused.",
    "SSEMessageRateLow": "Look at what publishes, and at the broker.",
    "SSEProcessingSlow": "Find the slow clients in the list of connections. The server drops or "
    "disconnects them by SSE_SERVER_SLOW_CLIENT; send less, or compress.",
    "SSEMemoryLeak": "Look for tasks, listeners and caches that are not bounded.",
    "SSEProcessingElevated": "Find the slow clients in the list of connections.",
    "SSEMessagesLarge": "Send references and pages instead, or compress: "
    "SSE_SERVER_COMPRESS_FROM, SSE_SERVER_CONTENT_CODING.",
    "SSEMessageRateHigh": "Each message is a write of its own: SSE_SERVER_BATCH_SECONDS and "
    "SSE_SERVER_BATCH_SIZE make fewer, larger ones.",
    "SSEConnectionsStalled": "See whether what publishes to their topics is silent or stuck.",
    "SSEConnectionIdle": "See whether anything publishes to its topics; SSE_SERVER_IDLE_SECONDS "
    "closes it.",
    "SSEBacklogHigh": "The client that is first in the list of connections reads too slowly. Its "
    "queue is bounded by SSE_SERVER_QUEUE_BYTES; SSE_SERVER_SLOW_CLIENT=disconnect frees it.",
    "SSEConnectionsPerClient": "Several clients may share a proxy's address (SSE_SERVER_PROXY); "
    "above SSE_SERVER_MAX_CONNECTIONS_PER_CLIENT they are refused.",
    "SSEDroppedMessages": "Clients miss messages: find the slow ones in the list of connections; "
    "send less, or give them more by SSE_SERVER_QUEUE_BYTES and SSE_SERVER_QUEUE_LENGTH.",
    "SSERejectedConnections": "Clients are refused: the reasons are under /status, server. Add "
    "workers, or raise the limit that is named there.",
    "SSEBrokerErrors": "Look at Redis, and at the server's log: while it is away nothing is "
    "published, and clients wait.",
}

_log = logging.getLogger("server.alerts")


@dataclass(frozen=True)
class Threshold:
    """One entry of the list that can be judged here; ``terms`` is empty for the memory leak, and
    ``parts`` are those of its terms that are parts of a metric.
    """

    alert: str
    severity: str
    limit: float
    minimum: bool
    unit: str
    summary: str
    terms: tuple[str, ...]
    parts: tuple[tuple[str, Part], ...] = ()

    @property
    def advice(self) -> str:
        return _ADVICE.get(self.alert, self.summary)


@dataclass(frozen=True)
class Active:
    """A threshold that is breached now; ``value`` in its unit, ``since`` in Unix seconds."""

    threshold: Threshold
    value: float
    since: float
    reported: bool = False


def own_limits(settings: Settings) -> dict[str, float]:
    """The variables of the thresholds that are limits of this server too, each at four fifths."""
    limits = {
        "SSE_MAX_CONNECTIONS": settings.max_connections,
        "SSE_MAX_PER_CLIENT": settings.max_connections_per_client,
        "SSE_MAX_IDLE_SECONDS": settings.idle_seconds,
        "SSE_MAX_MEMORY_MB": settings.memory_limit_mb,
        "SSE_MAX_BACKLOG_BYTES": CLIENT_BUFFER_BYTES,
    }
    return {name: _number(WARN_AT * limit) for name, limit in limits.items() if limit}


def load(name: str = "", limits: Mapping[str, float] | None = None) -> list[Threshold] | None:
    """The thresholds of that file, or of the checkout's where there is one; else None. ``limits``
    are the defaults of variables, in place of those of the file where they are lower.

    Raises:
        ValueError: the file or a variable is not as it has to be.

    """
    file = Path(name or DEFAULT)
    if not file.is_file():
        if name:
            raise ValueError(f"SSE_SERVER_THRESHOLDS names {file}, where there is no file")
        return None
    try:
        entries = yaml.safe_load(file.read_text())
        found = [_threshold(each, limits or {}) for each in entries if _is_judged(each)]
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is no list of thresholds: {error!r}") from error
    return found


def _is_judged(entry: dict[str, Any]) -> bool:
    return "collector" in entry or entry["alert"] == _LEAK


def _threshold(entry: dict[str, Any], limits: Mapping[str, float]) -> Threshold:
    variable, default = entry["variable"], entry["default"]
    text = os.environ.get(variable) or default
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise ValueError(f"{variable} is {text!r}, and takes a number")
    if variable in limits and not os.environ.get(variable):
        limit = min(limit, limits[variable])
    if entry["severity"] not in SEVERITIES:
        raise ValueError(f"{entry['alert']}: the severity is {entry['severity']!r}")
    terms = _terms(entry["alert"], entry.get("collector", ""))
    # Points with one of these attributes do not count: `without: {class: rate_limit}`.
    without = tuple((str(key), str(value)) for key, value in entry.get("without", {}).items())
    parts = {each: Part(each, without) for each in terms if without and _NAME.fullmatch(each)}
    names = {each: f"{each} without {part.without}" for each, part in parts.items()}
    return Threshold(
        alert=entry["alert"],
        severity=entry["severity"],
        limit=limit,
        minimum=variable.startswith("SSE_MIN_"),
        unit=entry["unit"],
        summary=entry["summary"] if "summary" in entry else entry["says"],
        terms=tuple(names.get(each, each) for each in terms),
        parts=tuple((names[each], part) for each, part in parts.items()),
    )


def _terms(alert: str, expression: str) -> tuple[str, ...]:
    """Metrics and numbers with ``*`` or ``/`` between them, worked out from left to right."""
    terms = tuple(expression.split())
    for index, term in enumerate(terms):
        operand = _NUMBER.fullmatch(term) or _NAME.fullmatch(term)
        known = term in ("*", "/") if index % 2 else operand
        if not known or len(terms) % 2 == 0:
            raise ValueError(f"{alert}: not understood: {expression}")
    return terms


def measure(terms: tuple[str, ...], window: Window) -> float | None:
    """The value of an expression; None where a metric of it is not recorded, or not long enough."""
    value: float | None = None
    for index in range(0, len(terms), 2):
        operand = _operand(terms[index], window)
        if operand is None:
            return None
        if value is None:
            value = operand
        elif terms[index - 1] == "*":
            value *= operand
        else:
            value = value / operand if operand else 0.0
    return value


def _operand(term: str, window: Window) -> float | None:
    if _NUMBER.fullmatch(term):
        return float(term)
    if window.is_counter(term):
        return window.rate(term) if window.span >= SETTLED else None
    return window.figure(term)


class Watch:
    """Judges the thresholds, and reports what begins and ends to the log and to ``report``.

    An alert is reported once in the cooldown, and again after it while it lasts; its end, where it
    was reported in that episode.
    """

    def __init__(
        self, thresholds: list[Threshold], report: Callable[[dict[str, Any]], None]
    ) -> None:
        self.thresholds = thresholds
        # The alerts that were not judged last, since a metric is not recorded.
        self.unjudged: list[str] = []
        self._report = report
        self._active: dict[str, Active] = {}
        # When each was reported last (monotonic: a clock may be set); one for each threshold.
        self._reported: dict[str, float] = {}

    @property
    def parts(self) -> dict[str, Part]:
        """The figures beside the metrics that the judged samples have to have."""
        return dict(each for threshold in self.thresholds for each in threshold.parts)

    @property
    def leak_limit(self) -> float:
        """MB/s from which on growth of the memory is called a leak."""
        limits = [each.limit for each in self.thresholds if each.alert == _LEAK]
        return limits[0] if limits else 0.1

    def judge(self, window: Window, leak: dict[str, Any], at: float, now: float) -> None:
        """Takes the newest figures; ``leak`` is memory.py's. ``at`` is monotonic, ``now`` Unix, in
        seconds.
        """
        self.unjudged = []
        for threshold in self.thresholds:
            name = threshold.alert
            value = _value(threshold, window, leak)
            if value is None and threshold.terms:
                self.unjudged.append(name)
            before = self._active.get(name)
            if value is None or not _breaches(threshold, value, window, leak):
                if before is not None:
                    self._end(self._active.pop(name), value, now)
                continue
            active = replace(before, value=value) if before else Active(threshold, value, now)
            if not self._cooldown_left(name, at):
                active = replace(active, reported=True)
                self._reported[name] = at
                self._announce(active.threshold, "firing", value, now)
            self._active[name] = active

    def active(self, at: float) -> list[dict[str, Any]]:
        """What is breached, the worst first; ``at`` is monotonic."""
        order = sorted(
            self._active.values(), key=lambda each: SEVERITIES.index(each.threshold.severity)
        )
        return [
            {
                **_described(each.threshold, each.value),
                "since": utc(each.since),
                "cooldown_seconds": COOLDOWN,
                "cooldown_left_seconds": round(self._cooldown_left(each.threshold.alert, at), 1),
                "recommendation": each.threshold.advice,
            }
            for each in order
        ]

    def _cooldown_left(self, name: str, at: float) -> float:
        """Seconds for which it is not reported."""
        return max(0.0, self._reported[name] + COOLDOWN - at) if name in self._reported else 0.0

    def _end(self, active: Active, value: float | None, now: float) -> None:
        if active.reported:
            self._announce(active.threshold, "resolved", value, now)

    def _announce(self, threshold: Threshold, status: str, value: float | None, now: float) -> None:
        _log.log(
            _LEVELS[threshold.severity] if status == "firing" else logging.INFO,
            "%s %s (%s): %s, the threshold is %g %s. %s",
            threshold.alert,
            status,
            threshold.severity,
            "not recorded" if value is None else f"{value:g}",
            threshold.limit,
            threshold.unit,
            threshold.summary,
        )
        self._report({"time": utc(now), "status": status, **_described(threshold, value)})


def _value(threshold: Threshold, window: Window, leak: dict[str, Any]) -> float | None:
    """The measured value; None where it is not known."""
    if not threshold.terms:
        rate: float | None = leak["rate_mb_per_second"]
        return rate
    return measure(threshold.terms, window)


def _breaches(threshold: Threshold, value: float, window: Window, leak: dict[str, Any]) -> bool:
    if not threshold.terms:
        return bool(leak["leaking"])
    if threshold.minimum:
        held = (window.figure("sse.server.active_connections") or 0.0) - window.gained(
            "sse.server.connections"
        )
        return value < threshold.limit and held > 0
    if threshold.alert == _MANY_MESSAGES and _batching_would_not_help(window):
        return False
    return value > threshold.limit


def _batching_would_not_help(window: Window) -> bool:
    """Whether writes have several messages each already, or are so few to each client that there is
    nothing to put together. Known only where the server counts its writes.
    """
    if not window.is_counter(meters.WRITES):
        return False
    writes = window.gained(meters.WRITES)
    clients = window.figure("sse.server.active_connections") or 1.0
    each = writes / window.span / clients if window.span else 0.0
    return window.gained("sse.server.messages") >= BATCHED * writes or each <= 1.0


def _described(threshold: Threshold, value: float | None) -> dict[str, Any]:
    return {
        "source": "process",
        "alert": threshold.alert,
        "severity": threshold.severity,
        "value": None if value is None else float(f"{value:.6g}"),
        "threshold": threshold.limit,
        "unit": threshold.unit,
        "summary": threshold.summary,
    }


def utc(seconds: float) -> str:
    """A Unix time as RFC 3339 in UTC, to the second."""
    when = datetime.fromtimestamp(seconds, timezone.utc)
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")


def _number(value: float) -> float:
    """With six digits: 0.8 of a number may have sixteen."""
    return float(f"{value:.6g}")


def main() -> None:
    from server.settings import load as settings

    for name, limit in own_limits(settings()).items():
        print(f"export {name}={limit:.15g}")


if __name__ == "__main__":
    main()
