"""A stream that no event loop owns: what is due in it is done in any thread.

A collection finds an old segment or a stall of a silent stream, and a thread does what is due. The
stream's own thread must not record in that time. It takes no lock for that: it waits only where
what is due is being done at that moment. ``_idle`` and ``_maintained`` are set and read by the two
in opposite orders, so that at least one of them sees the other.
"""

from __future__ import annotations

from functools import partial
from threading import RLock
from typing import Any, Final

from otel_sse.process import gc_safety
from otel_sse.stream.base import Stream
from otel_sse.telemetry.stall_state import StallState

_NO_SLOTS: Final[tuple[str, ...]] = ()


class ThreadedStream(Stream):
    """Maintenance runs in any thread while the stream is idle: from ``_start_idle`` until
    ``_end_idle``.
    """

    # The slots below are the subclasses', since two bases cannot both have some. By a name, or mypy
    # would miss them here.
    __slots__ = _NO_SLOTS

    _shares_counts = False

    _idle: bool
    _lock: Any
    _maintained: bool

    def _init_threaded(self) -> None:
        """Before the stream registers: a collection may see it from then on."""
        # Reentrant: maintenance closes a stream that is overdue.
        self._lock = RLock()
        self._maintained = self._idle = False

    def _start_idle(self) -> None:
        self._idle = True

    def _end_idle(self) -> None:
        self._idle = False
        # Not within a collection: what the other thread does may wait for a lock of this one.
        if self._maintained and not gc_safety.in_finalizer() and self._may_lock():
            with self._lock:
                pass

    def _may_lock(self) -> bool:
        """Not in a forked child: it has no thread that would release the lock."""
        streams = self._telemetry.streams
        return self in streams.live or self in streams.ended

    def run_maintenance(self) -> None:
        with self._lock:
            # First this, then a look at the other: the stream's thread does it the other way round.
            self._maintained = True
            try:
                if self._idle:
                    super().run_maintenance()
                elif self.stall_state is not StallState.REPORTED:
                    # A later collection finds the stall again.
                    self.stall_state = StallState.ACTIVE
            finally:
                self._maintained = False

    def close(
        self, error: BaseException | None = None, *, completed: bool = False, cut: bool = False
    ) -> None:
        if gc_safety.in_finalizer(error):
            gc_safety.defer(partial(self.close, error, completed=completed, cut=cut))
            return
        if not self._may_lock():
            return
        with self._lock:
            self._before_close()
            super().close(error, completed=completed, cut=cut)

    def _before_close(self) -> None:
        """What a role has to record first."""
