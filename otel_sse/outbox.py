"""Lets no more go out at a time than the SDK's batch queues take: a queue drops what is too much.

A load balancer that goes away ends ten thousand streams in a moment; a queue holds 2,048 spans
or log records. What comes on top waits here, each with its own time, and follows in portions.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from otel_sse.loops import Work

# At most so many in a second are told at once, and so many between two flushes then.
_ROOM: Final = 1024
_PORTION: Final = 256
# More than that do not wait: whether they are dropped is the queue's matter.
_MOST: Final = 50_000
# A flush that takes longer, in seconds, is an exporter's that does not work.
_PATIENCE: Final = 5.0


class Outbox:
    """``flush`` exports what the queues hold, and waits for it."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._waiting: deque[Work] = deque()
        # Held for a portion and its flush.
        self._busy = threading.Lock()
        self._running = False
        self._since = 0.0
        self._told = 0

    def put(self, tell: Work) -> None:
        """Calls ``tell`` now, or soon in another thread."""
        now = time.monotonic()
        if now - self._since >= 1:
            self._since, self._told = now, 0
        self._told += 1
        if (self._told <= _ROOM and not self._waiting) or len(self._waiting) >= _MOST:
            tell()
            return
        self._waiting.append(tell)
        if not self._running:
            self._running = True
            try:
                threading.Thread(target=self._run, name="otel-sse-outbox", daemon=True).start()
            except RuntimeError:  # the interpreter is going down: the exit hook empties it
                self._running = False

    def flushed(self) -> None:
        """The queues are empty again."""
        self._told = 0

    def empty(self) -> None:
        """Tells all that waits; returns when that is done."""
        slow = False
        while self._waiting:
            with self._busy:
                for _ in range(min(_PORTION, len(self._waiting))):
                    self._waiting.popleft()()
                if not slow:
                    began = time.monotonic()
                    self._flush()
                    slow = time.monotonic() - began > _PATIENCE

    def _run(self) -> None:
        while True:
            self.empty()
            self._running = False
            if not self._waiting or self._running:
                return
            # Put since, by somebody who took this thread for running.
            self._running = True
