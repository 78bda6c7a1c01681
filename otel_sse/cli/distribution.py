"""Quantiles of a number of seconds in constant memory."""

import math
from typing import Any, Final

# Buckets grow by 5 %: no quantile is off by more.
_GROWTH: Final = math.log(1.05)
_SMALLEST: Final = 1e-5


class Distribution:
    """Counts values in logarithmic buckets; smallest, largest and mean are exact."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.largest: float | None = None
        self.smallest: float | None = None
        self._buckets: dict[int, int] = {}

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.largest = value if self.largest is None else max(value, self.largest)
        self.smallest = value if self.smallest is None else min(value, self.smallest)
        bucket = math.floor(math.log(max(value, _SMALLEST)) / _GROWTH)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def merge(self, other: "Distribution") -> None:
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        for value in (other.smallest, other.largest):
            if value is not None:
                self.largest = value if self.largest is None else max(value, self.largest)
                self.smallest = value if self.smallest is None else min(value, self.smallest)
        self.count += other.count
        self.total += other.total

    def quantile(self, share: float) -> float | None:
        """The value below which that share of all lies; None where there is none."""
        if self.largest is None or self.smallest is None:
            return None
        wanted, below = share * self.count, 0
        for bucket in sorted(self._buckets):
            below += self._buckets[bucket]
            if below >= wanted:
                middle = math.exp((bucket + 0.5) * _GROWTH)
                return min(max(middle, self.smallest), self.largest)
        return self.largest

    def as_json(self) -> dict[str, Any]:
        """Seconds: count, mean, p50, p90, p99 and max."""
        return {
            "count": self.count,
            "mean": self.total / self.count if self.count else None,
            "p50": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "max": self.largest,
        }
