"""How often each kind of thing happened within the last minute."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

SECONDS: Final = 60


class Recent:
    """Counts by kind, in slots of a second, so that its size does not grow with the counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots: deque[tuple[int, Counter[str]]] = deque()

    def add(self, kind: str) -> None:
        second = int(self._clock())
        if not self._slots or self._slots[-1][0] != second:
            self._slots.append((second, Counter()))
            self._expire(second)
        self._slots[-1][1][kind] += 1

    def counts(self) -> Counter[str]:
        """Those of the last minute, the most frequent first."""
        self._expire(int(self._clock()))
        found: Counter[str] = Counter()
        for _, counts in self._slots:
            found.update(counts)
        return Counter(dict(found.most_common()))

    def _expire(self, second: int) -> None:
        while self._slots and self._slots[0][0] <= second - SECONDS:
            self._slots.popleft()
