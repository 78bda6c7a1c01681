"""Reads the process's metrics again and again, and works out once what all viewers are shown."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from server import heap
from server.alerts import Alerts
from server.figures import Reader, Reading, Sample, Window
from server.memory import KEPT, Memory, Snapshot
from server.thresholds import Threshold, Watch, utc
from server.view import Moment, view

EVERY: Final = 1.0
# A reading takes at most this share of the time: with very many connections it comes more seldom.
_SHARE: Final = 0.05
_DASHBOARD: Final = "/status/events"
_NO_LIST: Final = (
    "There is no list of thresholds, so nothing is judged: SSE_SERVER_THRESHOLDS names the file."
)
_COUNTED: Final = (
    "The dashboard's own streams are among the figures: start the server with "
    "OTEL_PYTHON_SSE_EXCLUDED_URLS=/status/events to leave them out."
)
_UNTOLD: Final = (
    "No streams are told here: otel-sse is not installed, or its sse_aiohttp_server is among "
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS."
)
_DEAR: Final = (
    "A reading takes {:.0f} ms of CPU time, so they come every {:.1f} s, and the rates with them."
)
_SYSTEM: Final = (
    " OTEL_PYTHON_SYSTEM_METRICS_EXCLUDED_METRICS=system.* leaves out what is not shown here."
)

_log = logging.getLogger("server.status")


class Sampler:
    """The newest status, and the moments that the dashboard's charts are drawn of.

    Raises:
        figures.NoMetricsError: the process has no metrics that could be read.

    """

    def __init__(self, alerts: Alerts, thresholds: list[Threshold] | None) -> None:
        self._reader = Reader()
        no_heap = "" if heap.tell(self._reader.provider) else heap.WHY_NOT
        self._alerts = alerts
        self._watch = Watch(thresholds or [], alerts.add)
        self._notes = [_NO_LIST] if thresholds is None else []
        self._window = Window()
        self._memory = Memory(self._watch.leak_limit, no_heap)
        # CPU seconds of the last reading, and seconds between two.
        self._cost = 0.0
        self._pause = EVERY
        self._started = time.monotonic()
        # The last reading did not succeed.
        self.failed = False
        self._status: dict[str, Any] = {}
        # A step is also the charts' step.
        self.moments: deque[Moment] = deque(maxlen=KEPT)
        # Counts the readings.
        self.number = 0
        self.json = b""

    def close(self) -> None:
        self._reader.close()

    async def run(self, changed: Callable[[], None]) -> None:
        """Reads for ever, and calls ``changed`` after each reading."""
        while True:
            await self.sample()
            changed()
            await asyncio.sleep(self._pause)

    async def sample(self) -> None:
        """One reading, in a thread."""
        try:
            reading = await asyncio.to_thread(self._reader.read)
            # The first reading is dear, and any other may be by chance: the cheaper of two counts.
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
        sample, now = Sample.of(reading), time.time()
        self._window.add(sample)
        rss, used = (sample.figures.get(name) for name in ("process.memory.usage", heap.NAME))
        active = sample.figures.get("sse.server.active_connections", 0.0)
        if self._memory.add(Snapshot(reading.at, now, rss, used, active)):
            before = self.moments[-1] if self.moments else None
            self.moments.append(Moment.of(sample, now, before))
        self._watch.judge(self._window, self._memory.leak(), reading.at, now)
        self.number += 1
        self._status = {
            "time": utc(now),
            "process": {
                "pid": os.getpid(),
                "service": reading.resource.get("service.name"),
                "instance": reading.resource.get("service.instance.id"),
                "uptime_seconds": round(reading.at - self._started, 1),
            },
            **view(reading, self._window),
            "memory": self._memory.status(),
            "notes": [*self._notes, *_notes(reading, self._pause)],
        }
        self.refresh()

    def refresh(self) -> None:
        """Works the alerts into the status anew."""
        if not self._status:
            return
        active = self._watch.active(time.monotonic())
        own = [each for each in active if each["severity"] != "info"]
        status = {
            **self._status,
            "alerts": [*own, *self._alerts.active()],
            "insights": [each for each in active if each["severity"] == "info"],
        }
        self.json = json.dumps(status).encode()


def _notes(reading: Reading, pause: float) -> list[str]:
    """What a person should know of how the figures come about."""
    notes = []
    if "sse.server.connections_per_client.max" not in reading.metrics:
        notes.append(_UNTOLD)
    if _DASHBOARD in reading.by("sse.server.active_connections", "http.route"):
        notes.append(_COUNTED)
    if pause > EVERY:
        system = any(name.startswith("system.") for name in reading.metrics)
        notes.append(_DEAR.format(reading.cost * 1000, pause) + (_SYSTEM if system else ""))
    return notes
