"""The memory of the process over the last five minutes: its trend, spikes, and whether it leaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

# Seconds between two snapshots, how many are kept, and how many a leak is told by.
STEP: Final = 3.0
KEPT: Final = 100
_JUDGED: Final = 10
# More connections than that, at the end of those ten, explain why memory has grown.
_MORE: Final = 1.05
_SPIKE: Final = 1.5
_TOLD_SPIKES: Final = 10
_MB: Final = 1_048_576
_LEAK: Final = "Look for tasks, listeners and caches that are not bounded; tracemalloc shows where."
_NO_RSS: Final = (
    "process.memory.usage is not told: install opentelemetry-instrumentation-system-metrics"
)


@dataclass(frozen=True)
class Snapshot:
    """Bytes, None where they are not told. ``at`` is monotonic, ``time`` Unix, in seconds."""

    at: float
    time: float
    rss: float | None
    heap: float | None
    connections: float = 0.0


class Memory:
    """The snapshots. A snapshot that comes sooner than ``STEP`` after the one before replaces
    what is shown as now, and is not kept.

    Args:
        limit: MB/s from which on growth is called a leak.
        no_heap: why the heap is not told.

    """

    def __init__(self, limit: float = 0.1, no_heap: str = "") -> None:
        self._limit = limit
        self._no_heap = no_heap
        self._kept: deque[Snapshot] = deque(maxlen=KEPT)
        self._first: Snapshot | None = None
        self._last: Snapshot | None = None

    def add(self, snapshot: Snapshot) -> bool:
        """Takes a snapshot; whether it is kept."""
        self._first = self._first or snapshot
        self._last = snapshot
        # A tenth of a step early is on time: the readings are a second apart, more or less.
        due = not self._kept or snapshot.at - self._kept[-1].at >= 0.9 * STEP
        if due:
            self._kept.append(snapshot)
        return due

    def status(self) -> dict[str, Any]:
        """All of it, for /status."""
        return {
            "rss": self._trend("rss", _NO_RSS),
            "heap": self._trend("heap", self._no_heap),
            "snapshots": len(self._kept),
            "snapshot_seconds": STEP,
            "leak": self.leak(),
        }

    def leak(self) -> dict[str, Any]:
        """Whether the heap (the rss where no heap is told) has grown steadily, and no further
        connections explain it.
        """
        last = list(self._kept)[-_JUDGED:]
        of = "heap" if last and last[-1].heap is not None else "rss"
        points = [(each.at, size) for each in last if (size := getattr(each, of)) is not None]
        told: dict[str, Any] = {"of": of, "threshold_mb_per_second": self._limit}
        if len(points) < _JUDGED:
            return {
                "verdict": "insufficient data",
                "leaking": False,
                "rate_mb_per_second": None,
                **told,
                "recommendation": None,
            }
        rate = slope(points) / _MB
        growing = rate > self._limit
        explained = growing and last[-1].connections > _MORE * last[0].connections
        leaking = growing and not explained
        return {
            "verdict": "leak" if leaking else "more connections" if explained else "no leak",
            "leaking": leaking,
            "rate_mb_per_second": round(rate, 4),
            **told,
            "recommendation": _LEAK if leaking else None,
        }

    def _trend(self, of: str, why_not: str) -> dict[str, Any] | None:
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
            "spikes": spikes[-_TOLD_SPIKES:],
        }

    def _spikes(self, of: str) -> list[dict[str, Any]]:
        """The snapshots that are more than half above the smallest up to them."""
        spikes, smallest = [], float("inf")
        for each in self._kept:
            size = getattr(each, of)
            if size is None:
                continue
            smallest = min(smallest, size)
            if size > _SPIKE * smallest:
                over = round(size - smallest)
                spikes.append({"time": each.time, "bytes": round(size), "over_min_bytes": over})
        return spikes


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How fast the second of each pair grows with the first: the line of least squares."""
    count = len(points)
    middle = sum(x for x, _ in points) / count
    mean = sum(y for _, y in points) / count
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * (y - mean) for x, y in points) / spread if spread else 0.0
