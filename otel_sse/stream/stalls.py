"""Finds what is due in a stream: an old segment, a stall to report, a recovery.

A message compares its time with ``due`` and does all of this itself. A silent stream has nobody to
do it: a collection finds it, on the reader's thread, and schedules ``run_maintenance`` on the
stream's own event loop.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

from otel_sse.process.event_loops import EventLoop
from otel_sse.stream.segments import Segments
from otel_sse.telemetry.stall_state import StallState

# Values of ``due`` that every monotonic time has reached.
AT_ONCE: Final = 0.0
CLOSED: Final = float("-inf")


class Stalls(Segments):
    """Times are monotonic seconds.

    Attributes:
        stall_state: set by a collection, advanced by the stream's own loop.
        loop: the event loop that the stream runs on, where there is one.

    """

    __slots__ = ("loop", "stall_state")

    stall_state: StallState
    loop: EventLoop | None

    def idle(self, now: float) -> float:
        """Seconds without a message."""
        raise NotImplementedError

    def run_maintenance(self) -> None:
        """Does what a collection found due; runs on the stream's own loop."""
        if self.due == CLOSED or self.disconnected:
            return
        try:
            now = perf_counter()
            if self.stall_state in (StallState.PENDING, StallState.SUPPRESSED):
                idle = self.idle(now)
                if idle < self._telemetry.config.stall_seconds:
                    self.stall_state = StallState.ACTIVE
                elif self.stall_state is StallState.PENDING:
                    self._telemetry.events.stalled(self, idle)
                    self.stall_state = StallState.REPORTED
            self._check_due(now, has_message=False)
        except Exception:
            self._telemetry.failures.log_failure_once("a segment")

    def _check_due(self, now: float, has_message: bool) -> None:
        if has_message and self.stall_state:
            if self.stall_state is StallState.REPORTED:
                self._telemetry.events.recovered(self, self.idle(now))
            self.stall_state = StallState.ACTIVE
        if now >= self.segment_due:
            self.rotate_segment(now)
        # The next message of a stalled stream ends the stall.
        self.due = AT_ONCE if self.stall_state else self.segment_due
