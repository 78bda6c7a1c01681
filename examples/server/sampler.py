"""Reads the process's metrics again and again, and works out once what all viewers are shown."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from server import heap
from server.alerts import Alerts
from server.figures import STREAMS, Reader, Reading, Sample, Window
from server.health import DEGRADED, HEALTHY, NO_DATA, NOT_JUDGED, Condition, Health
from server.memory import KEPT, Memory, Snapshot
from server.meters import HISTORY, QUEUED
from server.thresholds import SETTLED, Threshold, Watch, utc
from server.view import Moment, view

EVERY: Final = 1.0
# A reading takes at most this share of the time: with very many connections it comes more seldom.
_SHARE: Final = 0.05
_DASHBOARD: Final = "/status/events"
_NO_LIST: Final = (
    "There is no list of thresholds, so nothing is judged: SSE_SERVER_THRESHOLDS names the file."
)
_EMPTY_LIST: Final = "The list of thresholds has none that can be judged here."
_COUNTED: Final = (
    "The dashboard's own streams are among the figures: start the server with "
    "OTEL_PYTHON_SSE_EXCLUDED_URLS=/status/events to exclude them."
)
_NO_STREAMS: Final = (
    "No streams are recorded here: otel-sse is not installed, or its sse_aiohttp_server is among "
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS."
)
_UNNAMED: Final = "The service has no name: OTEL_SERVICE_NAME sets it."
_EXPENSIVE: Final = (
    "A reading takes {:.0f} ms of CPU time, so they come every {:.1f} s, and the rates with them."
)
_SYSTEM: Final = (
    " OTEL_PYTHON_SYSTEM_METRICS_EXCLUDED_METRICS=system.* excludes what is not shown here."
)
FAILED: Final = "The metrics cannot be read; the server's log has the error."

_log = logging.getLogger("server.status")


class Sampler:
    """The newest status, and the moments that the dashboard's charts are drawn of.

    Raises:
        figures.NoMetricsError: the process has no metrics that could be read.

    """

    def __init__(
        self,
        alerts: Alerts,
        thresholds: list[Threshold] | None,
        health: Health,
        fleet_url: str = "",
    ) -> None:
        self._reader = Reader()
        no_heap = "" if heap.record(self._reader.provider) else heap.WHY_NOT
        self._alerts = alerts
        self._health = health
        self._fleet_url = fleet_url
        self._watch = Watch(thresholds or [], alerts.add)
        self._no_list = _NO_LIST if thresholds is None else "" if thresholds else _EMPTY_LIST
        self._window = Window()
        self._memory = Memory(self._watch.leak_limit, no_heap)
        # CPU seconds of the last reading, and seconds between two.
        self._cost = 0.0
        self._pause = EVERY
        self._started = time.monotonic()
        # The last reading did not succeed.
        self.failed = False
        self._reading: Reading | None = None
        self._status: dict[str, Any] = {}
        # A step is also the charts' step.
        self.moments: deque[Moment] = deque(maxlen=KEPT)
        # Counts the readings.
        self.number = 0
        self.json = b""

    def close(self) -> None:
        self._reader.close()

    async def run(self, changed: Callable[[], None]) -> None:
        """Reads until it is cancelled, and calls ``changed`` after each reading."""
        while True:
            await self.sample()
            changed()
            await asyncio.sleep(self._pause)

    async def sample(self) -> None:
        """One reading, in a thread."""
        try:
            reading = await asyncio.to_thread(self._reader.read)
            # The first reading is expensive, and any other may be: the cheaper of two counts.
            self._pause = max(EVERY, min(reading.cost, self._cost) / _SHARE)
            self._cost = reading.cost
            self._take(reading)
        except Exception:
            if not self.failed:
                _log.exception("The metrics cannot be read; what comes next is not logged")
            self.failed = True
            return
        self.failed = False

    def _take(self, reading: Reading) -> None:
        sample, now = Sample.of(reading, self._watch.parts), time.time()
        self._reading = reading
        self._window.add(sample)
        rss, used = (sample.figures.get(name) for name in ("process.memory.usage", heap.NAME))
        active = sample.figures.get("sse.server.active_connections", 0.0)
        if self._memory.add(Snapshot(reading.at, now, rss, used, active, _held(reading))):
            before = self.moments[-1] if self.moments else None
            self.moments.append(Moment.of(sample, now, before))
        self._watch.judge(self._window, self._memory.leak(), reading.at, now)
        self.number += 1
        memory = self._memory.status()
        if used is not None:
            memory["heap"]["total_bytes"] = round(sample.figures.get(heap.TOTAL, used))
        notes = [self._no_list, *_notes(reading, self._pause)]
        self._status = {
            "time": utc(now),
            "process": {
                "pid": os.getpid(),
                "service": reading.resource.get("service.name"),
                "instance": reading.resource.get("service.instance.id"),
                "uptime_seconds": round(reading.at - self._started, 1),
                "fleet_url": self._fleet_url or None,
            },
            **view(reading, self._window),
            "memory": memory,
            "thresholds": {
                each.alert: {"limit": each.limit, "unit": each.unit, "severity": each.severity}
                for each in self._watch.thresholds
            },
            "notes": [each for each in notes if each],
        }
        self.refresh()

    def refresh(self) -> None:
        """Works the alerts and the health into the status anew."""
        if not self._status:
            return
        active = self._watch.active(time.monotonic())
        own = [each for each in active if each["severity"] != "info"]
        alerts = [*own, *self._alerts.active()]
        status = {
            "health": self.health(alerts),
            **self._status,
            "alerts": alerts,
            "insights": [each for each in active if each["severity"] == "info"],
        }
        self.json = json.dumps(status).encode()

    def health(self, alerts: list[dict[str, Any]]) -> dict[str, Any]:
        """With these active alerts, for /status."""
        now = time.time()
        found = self._health.judge(self._observed(alerts), now)
        return {**found, "since": utc(found["since"])}

    def _observed(self, alerts: list[dict[str, Any]]) -> Iterator[Condition]:
        if self.failed:
            yield Condition(NO_DATA, FAILED)
        for each in alerts:
            if each.get("severity") != "info":
                text = f"{each['alert']}: {each.get('summary') or 'an alert is firing'}"
                yield Condition(DEGRADED, text if text.endswith(".") else f"{text}.")
        judged = len(self._watch.thresholds) - len(self._watch.unjudged)
        if self._no_list:
            yield Condition(NOT_JUDGED, self._no_list)
        elif self._reading is None or _records_no_streams(self._reading):
            yield Condition(NO_DATA, _NO_STREAMS)
        elif self._window.span < SETTLED:
            yield Condition(NO_DATA, f"Rates are judged {SETTLED:g} s after the start.")
        elif not judged:
            yield Condition(NOT_JUDGED, "No metric that has a threshold is recorded.")
        else:
            without = ", ".join(self._watch.unjudged)
            missing = f" Not judged, since it is not recorded: {without}." if without else ""
            yield Condition(HEALTHY, f"All {judged} thresholds are met.{missing}")


def _records_no_streams(reading: Reading) -> bool:
    return STREAMS not in reading.metrics


def _held(reading: Reading) -> float:
    """Bytes of this process that are messages: the history, and what waits for clients. What waits
    in the kernel is not the process's.
    """
    transport = reading.by("sse.server.backlog.size", "sse.backlog.layer").get("transport", 0.0)
    own = (reading.figure(name) or 0.0 for name in (HISTORY, QUEUED))
    return transport + sum(own)


def _notes(reading: Reading, pause: float) -> list[str]:
    """How the figures come about, where that may surprise."""
    notes = []
    if _records_no_streams(reading):
        notes.append(_NO_STREAMS)
    if _DASHBOARD in reading.by("sse.server.active_connections", "http.route"):
        notes.append(_COUNTED)
    if str(reading.resource.get("service.name", "")).startswith("unknown_service"):
        notes.append(_UNNAMED)
    if pause > EVERY:
        system = any(name.startswith("system.") for name in reading.metrics)
        notes.append(_EXPENSIVE.format(reading.cost * 1000, pause) + (_SYSTEM if system else ""))
    return notes
