"""The alerts of this process: thresholds.yaml, the list of the collector and of Prometheus, held
against the process's own figures.

Its ``collector:`` expressions mean here what they mean there: counters are taken as rates, here
over the last minute; a mean over no messages is 0; and what has a minimum is judged only where a
connection has been open all that time. What needs rules of Prometheus is not judged, but for the
memory leak, which memory.py tells.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import yaml

from server.figures import Window

DEFAULT: Final = Path(__file__).resolve().parents[2] / "collector" / "thresholds.yaml"
# Seconds in which an alert is told once at most, and after which one that lasts is told again.
COOLDOWN: Final = 300.0
# Rates and means are not judged over less, in seconds.
SETTLED: Final = 10.0
SEVERITIES: Final = ("critical", "warning", "info")
_LEAK: Final = "SSEMemoryLeak"
_NUMBER: Final = re.compile(r"\d+([.]\d+)?")
_NAME: Final = re.compile(r"[a-z][a-z0-9_.]*[.][a-z0-9_.]+")
_LEVELS: Final = {"critical": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}
_ADVICE: Final = {
    "SSEConnectionsHigh": "Add instances; look for clients that leave streams open.",
    "SSEMemoryHigh": "See whether it follows the connections or the backlog; add instances.",
    "SSEMessageRateLow": "Look upstream of the streams: the broker, the task that feeds them.",
    "SSEProcessingSlow": "Find the slow clients; bound their queues, send less, compress.",
    "SSEMemoryLeak": "Look for tasks, listeners and caches that are not bounded.",
    "SSEProcessingElevated": "See which clients are slow before it becomes an alert.",
    "SSEMessagesLarge": "Compress large messages, or send references and pages.",
    "SSEMessageRateHigh": "Send batches: fewer, larger writes cost less.",
    "SSEConnectionsStalled": "See whether their source is silent or stuck.",
    "SSEConnectionIdle": "Send keep-alives, and close what has nothing to say.",
    "SSEBacklogHigh": "Bound what waits for a client: drop the oldest, or disconnect it.",
    "SSEConnectionsPerClient": "Limit connections for each address; it may be a proxy.",
}

_log = logging.getLogger("server.alerts")


@dataclass(frozen=True)
class Threshold:
    """One entry of the list that can be judged here; ``terms`` is empty for the memory leak."""

    alert: str
    severity: str
    limit: float
    minimum: bool
    unit: str
    says: str
    terms: tuple[str, ...]

    @property
    def advice(self) -> str:
        return _ADVICE.get(self.alert, self.says)


@dataclass(frozen=True)
class Active:
    """A threshold that is breached now; ``value`` in its unit, ``since`` in Unix seconds."""

    threshold: Threshold
    value: float
    since: float
    told: bool = False


def load(name: str = "") -> list[Threshold] | None:
    """The thresholds of that file, or of the checkout's where there is one; else None.

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
        found = [_threshold(each) for each in entries if _is_judged(each)]
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is no list of thresholds: {error!r}") from error
    return found


def _is_judged(entry: dict[str, Any]) -> bool:
    return "collector" in entry or entry["alert"] == _LEAK


def _threshold(entry: dict[str, Any]) -> Threshold:
    variable = entry["variable"]
    said = os.environ.get(variable) or entry["default"]
    try:
        limit = float(said)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise ValueError(f"{variable} is {said!r}, and takes a number")
    if entry["severity"] not in SEVERITIES:
        raise ValueError(f"{entry['alert']}: the severity is {entry['severity']!r}")
    return Threshold(
        alert=entry["alert"],
        severity=entry["severity"],
        limit=limit,
        minimum=variable.startswith("SSE_MIN_"),
        unit=entry["unit"],
        says=entry["says"],
        terms=_terms(entry["alert"], entry.get("collector", "")),
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
    """The value of an expression; None where something in it is not told, or not long enough."""
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
    """Judges the thresholds, and tells what begins and ends to the log and to ``tell``.

    An alert is told once in the cooldown, and again after it while it lasts; its end, where it was
    told in that episode.
    """

    def __init__(self, thresholds: list[Threshold], tell: Callable[[dict[str, Any]], None]) -> None:
        self._thresholds = thresholds
        self._tell = tell
        self._active: dict[str, Active] = {}
        # When each was told last (monotonic: a clock may be set); as many as there are thresholds.
        self._told: dict[str, float] = {}

    @property
    def leak_limit(self) -> float:
        """MB/s from which on growth of the memory is called a leak."""
        limits = [each.limit for each in self._thresholds if each.alert == _LEAK]
        return limits[0] if limits else 0.1

    def judge(self, window: Window, leak: dict[str, Any], at: float, now: float) -> None:
        """Takes the newest figures; ``leak`` is memory.py's verdict. ``at`` is monotonic, ``now``
        Unix, in seconds.
        """
        for threshold in self._thresholds:
            name = threshold.alert
            value = _value(threshold, window, leak)
            before = self._active.get(name)
            if value is None:
                if before is not None:
                    self._end(self._active.pop(name), now)
                continue
            active = replace(before, value=value) if before else Active(threshold, value, now)
            if not self._left(name, at):
                active = replace(active, told=True)
                self._told[name] = at
                self._say(active, "firing", now)
            self._active[name] = active

    def active(self, at: float) -> list[dict[str, Any]]:
        """What is breached, the worst first; ``at`` is monotonic."""
        order = sorted(
            self._active.values(), key=lambda each: SEVERITIES.index(each.threshold.severity)
        )
        return [
            {
                **_described(each),
                "unit": each.threshold.unit,
                "since": utc(each.since),
                "cooldown_seconds": COOLDOWN,
                "cooldown_left_seconds": round(self._left(each.threshold.alert, at), 1),
                "recommendation": each.threshold.advice,
            }
            for each in order
        ]

    def _left(self, name: str, at: float) -> float:
        """Seconds for which it is not told."""
        return max(0.0, self._told[name] + COOLDOWN - at) if name in self._told else 0.0

    def _end(self, active: Active, now: float) -> None:
        if active.told:
            self._say(active, "resolved", now)

    def _say(self, active: Active, status: str, now: float) -> None:
        threshold = active.threshold
        level = _LEVELS[threshold.severity] if status == "firing" else logging.INFO
        _log.log(
            level,
            "%s %s (%s): %g, the threshold is %g %s. %s",
            threshold.alert,
            status,
            threshold.severity,
            active.value,
            threshold.limit,
            threshold.unit,
            threshold.says,
        )
        self._tell({"time": utc(now), "status": status, **_described(active)})


def _value(threshold: Threshold, window: Window, leak: dict[str, Any]) -> float | None:
    """The measured value where it breaches the threshold, else None."""
    if not threshold.terms:
        return leak["rate_mb_per_second"] if leak["leaking"] else None
    value = measure(threshold.terms, window)
    if value is None:
        return None
    if threshold.minimum:
        held = (window.figure("sse.server.active_connections") or 0.0) - window.gained(
            "sse.server.connections"
        )
        return value if value < threshold.limit and held > 0 else None
    return value if value > threshold.limit else None


def _described(active: Active) -> dict[str, Any]:
    threshold = active.threshold
    return {
        "source": "process",
        "alert": threshold.alert,
        "severity": threshold.severity,
        "value": float(f"{active.value:.6g}"),
        "threshold": threshold.limit,
        "summary": threshold.says,
    }


def utc(seconds: float | None = None) -> str:
    """A Unix time (now by default) as RFC 3339 in UTC, to the second."""
    when = datetime.fromtimestamp(time.time() if seconds is None else seconds, timezone.utc)
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")
