"""Throttles bursts, so that the queues of the SDK's batch processors do not overflow.

A load balancer that goes away ends ten thousand streams in a moment; a queue holds 2,048 spans or
log records and drops the rest. What comes beyond the limit waits here, each with its own time, and
follows in batches with a flush after each.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

Callback = Callable[[], None]

# Emitted directly in one second: half of a queue, since the application's own spans need room too.
BURST_LIMIT: Final = 1024
# Emitted between two flushes beyond that: half of the SDK's export batch of 512.
BATCH_SIZE: Final = 256
# Beyond so many that wait they are emitted directly: memory is bounded, the queue may drop them.
MAX_PENDING: Final = 50_000
# Seconds. A flush that takes longer is one of an exporter that does not answer: no more flushes.
FLUSH_TIMEOUT: Final = 5.0


class EmitThrottle:
    """``flush`` exports what the SDK's queues hold, and waits for it."""

    def __init__(self, flush: Callback) -> None:
        self._flush = flush
        self.reset()

    def reset(self) -> None:
        """Starts anew in a forked child: what waits is emitted by the parent."""
        self._pending: deque[Callback] = deque()
        # Held for a batch and its flush.
        self._lock = threading.Lock()
        self._running = False
        self._window_start = 0.0
        self._emitted = 0

    def submit(self, emit: Callback) -> None:
        """Calls ``emit`` now, or soon in another thread."""
        now = time.monotonic()
        if now - self._window_start >= 1:
            self._window_start, self._emitted = now, 0
        self._emitted += 1
        # While the thread runs, the last of those before this one may be in its hands.
        within = self._emitted <= BURST_LIMIT and not self._pending and not self._running
        if within or len(self._pending) >= MAX_PENDING:
            emit()
            return
        self._pending.append(emit)
        if not self._running:
            self._running = True
            try:
                threading.Thread(target=self._run, name="otel-sse-throttle", daemon=True).start()
            except RuntimeError:  # the interpreter is ending: its exit hook drains
                self._running = False

    def reset_window(self) -> None:
        """The SDK's queues are empty again."""
        self._emitted = 0

    def discard(self) -> None:
        """Drops what waits: the process ends, and the exporters take nothing."""
        self._pending.clear()

    def drain(self) -> None:
        """Emits all that waits; returns when that is done."""
        slow = False
        while self._pending:
            with self._lock:
                with suppress(IndexError):  # fewer wait, or they were discarded in the meantime
                    for _ in range(BATCH_SIZE):
                        emit = self._pending.popleft()
                        emit()
                if not slow:
                    started = time.monotonic()
                    self._flush()
                    slow = time.monotonic() - started > FLUSH_TIMEOUT
        # Another thread may have taken the last batch: it is emitted when the lock is free.
        with self._lock:
            pass

    def _run(self) -> None:
        while True:
            try:
                self.drain()
            finally:
                self._running = False
            if not self._pending or self._running:
                return
            # Submitted in between, by a thread that saw this one still running.
            self._running = True
