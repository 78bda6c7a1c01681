"""Decides which messages go into the histograms of a series.

A histogram record costs 5 to 8 us, ten times the rest of a message. So messages are recorded in
windows that end after ``MAX_RECORDS`` records or a second, whichever comes first; in each, every
``stride``-th message is recorded, and the rate of one window sets the stride of the next. Up to
100 messages a second in a series the stride is 1: every message is recorded.
"""

from __future__ import annotations

from math import ceil
from typing import Final

from otel_sse.semconv import MAX_RECORDS

_WINDOW: Final = 1.0


class MessageSampler:
    """Times are monotonic seconds. Shared by the streams of a series, without a lock: two threads
    at once may record a message more or less than the stride says.
    """

    __slots__ = ("_records", "_skip_remaining", "_stride", "_window_end", "_window_start")

    def __init__(self) -> None:
        self._window_start = 0.0
        self._window_end = 0.0
        self._skip_remaining = 0
        self._stride = 1
        self._records = 0

    def skip(self, now: float) -> bool:
        """Whether the message of ``now`` is not to be recorded. True is counted as skipped."""
        if self._skip_remaining and now < self._window_end:
            self._skip_remaining -= 1
            return True
        return False

    def record_sample(self, now: float) -> None:
        """Notes that the message of ``now`` is recorded, and sets how many to skip next."""
        full = self._records >= MAX_RECORDS
        if full or now >= self._window_end:
            seen = self._records * self._stride - self._skip_remaining
            elapsed = max(now - self._window_start, 1e-6) if full else _WINDOW
            idle = now - self._window_end > _WINDOW
            # A tenth above the rate is tolerated, or jitter would sample a series of just 100.
            self._stride = 1 if idle else max(1, ceil(seen / elapsed / MAX_RECORDS - 0.1))
            self._window_start = now
            self._window_end = now + _WINDOW
            self._records = 0
        self._records += 1
        self._skip_remaining = self._stride - 1
