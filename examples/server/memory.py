"""The memory of the process: its trend and spikes over five minutes, and whether it leaks.

A leak is growth that lasts and that nothing explains. Each minute is represented by its least size,
since what a burst takes is given back before the minute ends. What is known to hold memory is
subtracted first: the history, what waits for clients, and the connections. The first minute does
not count, and six more have to pass: a process that has just started fills its caches and queues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any, Final

# Seconds between two snapshots, and how many are kept: five minutes.
STEP: Final = 3.0
KEPT: Final = 100
MINUTE: Final = 60.0
# Whole minutes that a leak is judged by: at least, and at most.
LEAST_MINUTES: Final = 6
MOST_MINUTES: Final = 15
RECENT_MINUTES: Final = 4
# What an open connection takes, measured: 22 KiB, and 31 KiB once its queue has been used.
CONNECTION_BYTES: Final = 32 * 1024
# A spike is so many times the median of the snapshots of the minute before it.
_SPIKE: Final = 1.5
_BEFORE: Final = 20
_LEAST_BEFORE: Final = 5
_LISTED_SPIKES: Final = 10
_MB: Final = 1_048_576
_LEAK: Final = "Look for tasks, listeners and caches that are not bounded; tracemalloc shows where."
_NO_RSS: Final = (
    "process.memory.usage is not recorded: install opentelemetry-instrumentation-system-metrics"
)


@dataclass(frozen=True)
class Snapshot:
    """Bytes, None where they are not recorded. ``at`` is monotonic, ``time`` Unix, in seconds."""

    at: float
    time: float
    rss: float | None
    heap: float | None
    connections: float = 0.0
    # The history, and what waits for clients.
    held: float = 0.0

    @property
    def explained(self) -> float:
        return self.held + self.connections * CONNECTION_BYTES


class Memory:
    """The snapshots. A snapshot that comes sooner than ``STEP`` after the one before replaces
    what is shown as now, and is not kept.

    Args:
        limit: MB/s of unexplained growth from which on it is called a leak.
        no_heap: why the heap is not recorded.

    """

    def __init__(self, limit: float = 0.1, no_heap: str = "") -> None:
        self._limit = limit
        self._no_heap = no_heap
        self._kept: deque[Snapshot] = deque(maxlen=KEPT)
        self._first: Snapshot | None = None
        self._last: Snapshot | None = None
        self._leak = _Leak()

    def add(self, snapshot: Snapshot) -> bool:
        """Takes a snapshot; whether it is kept."""
        self._first = self._first or snapshot
        self._last = snapshot
        # A tenth of a step early is on time: the readings are a second apart, more or less.
        due = not self._kept or snapshot.at - self._kept[-1].at >= 0.9 * STEP
        if due:
            self._kept.append(snapshot)
            self._leak.add(snapshot)
        return due

    def status(self) -> dict[str, Any]:
        """All of it, for /status."""
        return {
            "rss": self._trend("rss", _NO_RSS),
            "heap": self._trend("heap", self._no_heap),
            "snapshots": len(self._kept),
            "snapshot_seconds": STEP,
            "explained_bytes": round(self._last.explained) if self._last else 0,
            "leak": self.leak(),
        }

    def leak(self) -> dict[str, Any]:
        """Whether the heap (the rss where no heap is recorded) keeps growing, and neither history
        nor backlog nor connections explain it.
        """
        rate, recent = self._leak.rates()
        leaking = rate is not None and min(rate, recent) > self._limit
        return {
            "state": "insufficient data" if rate is None else "leak" if leaking else "no leak",
            "leaking": leaking,
            "rate_mb_per_second": None if rate is None else round(rate, 4),
            "minutes": self._leak.minutes,
            "minutes_needed": LEAST_MINUTES,
            "of": self._leak.of,
            "threshold_mb_per_second": self._limit,
            "recommendation": _LEAK if leaking else None,
        }

    def _trend(self, of: str, why_not: str) -> dict[str, Any]:
        """The figures of ``rss`` or ``heap``: in bytes, and growth since the start in percent."""
        now = getattr(self._last, of, None)
        sizes = [size for each in self._kept if (size := getattr(each, of)) is not None]
        if now is None or not sizes:
            return {"bytes": None, "why": why_not}
        base = getattr(self._first, of) or sizes[0]
        spikes = self._spikes(of)
        return {
            "bytes": round(now),
            "average_bytes": round(sum(sizes) / len(sizes)),
            "min_bytes": round(min(sizes)),
            "max_bytes": round(max(sizes)),
            "growth_percent": round(100 * (now - base) / base, 2),
            "spike_count": len(spikes),
            "spikes": spikes[-_LISTED_SPIKES:],
        }

    def _spikes(self, of: str) -> list[dict[str, Any]]:
        """Each time that the size rose by more than half above the median of the minute before,
        at its highest. What stays there is the new size, and no spike any more.
        """
        points = [(each, size) for each in self._kept if (size := getattr(each, of)) is not None]
        spikes: list[dict[str, Any]] = []
        within = False
        for index, (each, size) in enumerate(points):
            before = [size for _, size in islice(points, max(0, index - _BEFORE), index)]
            usual = median(before) if len(before) >= _LEAST_BEFORE else size
            over = size > _SPIKE * usual
            if over and not (within and spikes[-1]["bytes"] >= size):
                spike = {
                    "time": each.time,
                    "bytes": round(size),
                    "over_usual_bytes": round(size - usual),
                }
                spikes[len(spikes) - within :] = [spike]
            within = over
        return spikes


class _Leak:
    """The unexplained least size of each whole minute."""

    def __init__(self) -> None:
        self.of = "rss"
        self._minima: deque[tuple[float, float]] = deque(maxlen=MOST_MINUTES)
        # The minute that is not over: when it began, and its least size so far.
        self._began: float | None = None
        self._least = float("inf")
        # The first minute of a process is its start.
        self._started = False
        self._explained = 0.0

    def add(self, snapshot: Snapshot) -> None:
        of = "rss" if snapshot.heap is None else "heap"
        size = snapshot.rss if snapshot.heap is None else snapshot.heap
        if size is None:
            return
        if of != self.of:
            self._minima.clear()
            self.of = of
        # Freed memory is in no heap, and may yet be resident: what has explained resident memory
        # once still does.
        now = snapshot.explained
        self._explained = now if of == "heap" else max(self._explained, now)
        if self._began is None:
            self._began = snapshot.at
        if snapshot.at - self._began >= MINUTE:
            if self._started and self._least < float("inf"):
                self._minima.append((self._began, self._least))
            self._started = True
            self._began, self._least = snapshot.at, float("inf")
        self._least = min(self._least, size - self._explained)

    @property
    def minutes(self) -> int:
        return len(self._minima)

    def rates(self) -> tuple[float | None, float]:
        """MB/s over all minutes, and over the last few: a leak goes on. None before there are
        enough.
        """
        points = list(self._minima)
        if len(points) < LEAST_MINUTES:
            return None, 0.0
        return slope(points) / _MB, slope(points[-RECENT_MINUTES:]) / _MB


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How fast the second of each pair grows with the first: the line of least squares."""
    count = len(points)
    middle = sum(x for x, _ in points) / count
    mean = sum(y for _, y in points) / count
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * (y - mean) for x, y in points) / spread if spread else 0.0
