"""What waits for one client: a bounded queue, from which batches are taken.

Putting a message in never waits. Beyond the bounds the oldest messages are dropped, or the client
is disconnected and comes back for them by its last id: a setting chooses.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import otel_sse
from server.broker import Id, Message, gap
from server.settings import DISCONNECT, WRITE_BUFFER_BYTES, Settings

# Between messages, so that proxies and clients see that the connection is alive.
HEARTBEAT: Final = b": heartbeat\n\n"
# What a closing connection is given to take what waits for it.
FLUSH_SECONDS: Final = 2.0


class Outlet:
    """A client's connection, as all others but its own handler see it.

    Args:
        topics: those that the client wants; none: all.
        stream: what ``otel_sse.current()`` gave in the handler.
        abort: cuts the connection at once.
        limited: is called with the limit by which the server ends the connection.

    """

    def __init__(
        self,
        settings: Settings,
        topics: frozenset[str],
        stream: otel_sse.Current,
        abort: Callable[[], None],
        limited: Callable[[str], None],
    ) -> None:
        self.topics = topics
        self.bytes = 0
        self._settings = settings
        self._stream = stream
        self._abort = abort
        self._limited = limited
        self._queue: deque[Message] = deque()
        # Since when the first of them waits; what a batch did not take has waited long enough.
        self._since = 0.0
        # How many were dropped since the client was last sent a gap, by reason.
        self._dropped: Counter[str] = Counter()
        # All up to this one the client gets from the history.
        self._skipped = Id(0, 0)
        self.started = self.last = time.monotonic()
        # Not all that began together end together.
        self.lifetime = settings.age_seconds * random.uniform(0.9, 1.0)
        # When its end was asked for; the client then has FLUSH_SECONDS.
        self.ended: float | None = None
        # Is done from then on.
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # What the handler waits for in `take`, and what ends its wait.
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def put(self, message: Message) -> None:
        if message.id <= self._skipped or self.ended is not None:
            return
        settings = self._settings
        if not self._queue:
            self._since = time.monotonic()
            if self._waiter is not None:
                self._wake_after(settings.batch_seconds)
        self._queue.append(message)
        self.bytes += len(message.frame)
        while len(self._queue) > settings.queue_length or self.bytes > settings.queue_bytes:
            if settings.slow_client == DISCONNECT:
                self.shed("slow_client")
            else:
                self._drop(1, "slow_client")
        if len(self._queue) >= settings.batch_size:
            self._wake()

    def waited(self, now: float) -> float:
        """Seconds that messages have waited beyond the time that batches take; 0: none do. A
        client that keeps up takes all that waits again and again.
        """
        return max(0.0, now - self._since - self._settings.batch_seconds) if self._queue else 0.0

    def skip_to(self, last: Id) -> None:
        self._skipped = last
        while self._queue and self._queue[0].id <= last:
            self.bytes -= len(self._queue.popleft().frame)

    async def take(self) -> bytes | None:
        """The next batch, as one chunk; a heartbeat where none came; None at the end."""
        settings = self._settings
        if not self._queue:
            await self._wait(settings.heartbeat_seconds)
        elif len(self._queue) < settings.batch_size:
            await self._wait(self._since + settings.batch_seconds - time.monotonic())
        if not self._queue:
            return None if self.ended is not None else b"".join(self._gaps()) or HEARTBEAT
        chunk = self._gaps()
        most, size = len(chunk) + settings.batch_size, 0
        # One message may be larger than the buffer; several are not put together beyond it.
        while (
            self._queue
            and len(chunk) < most
            and (not size or size + len(self._queue[0].frame) <= WRITE_BUFFER_BYTES)
        ):
            chunk.append(self._queue.popleft().frame)
            size += len(chunk[-1])
        self.bytes -= size
        self.last = time.monotonic()
        return b"".join(chunk)

    async def _wait(self, seconds: float) -> None:
        """At most so long; ``put`` may make it shorter, since a wait less is much for many."""
        if seconds <= 0 or self.ended is not None or self._only_gaps():
            return
        self._waiter = asyncio.get_running_loop().create_future()
        self._wake_after(seconds)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._timer is not None:
                self._timer.cancel()

    def _wake_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._wake)

    def _only_gaps(self) -> bool:
        return bool(self._dropped) and not self._queue

    def _gaps(self) -> list[bytes]:
        """The events by which the client learns what it misses."""
        gaps = [gap(reason=reason, dropped=count) for reason, count in self._dropped.items()]
        self._dropped.clear()
        return gaps

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, reason: str = "completed") -> None:
        """No more will come; what waits is yet sent. ``reason`` is of ``sse.close.reason``."""
        if self.ended is None:
            self.ended = time.monotonic()
            self.over.set_result(None)
            self._stream.set_close_reason(reason)
            self._wake()

    def expire(self, limit: str) -> None:
        """Ends it in order, because it has reached the limit."""
        if self.ended is None:
            self._limited(limit)
            self.end("timeout")

    def drop_all(self, reason: str) -> None:
        """Drops what waits; the client goes on with what comes."""
        self._drop(len(self._queue), reason)

    def shed(self, limit: str) -> None:
        """Cuts the connection now; the client may come back for what it misses."""
        self.drop_all(limit)
        self.expire(limit)
        self._abort()

    def cut_if_late(self, now: float) -> None:
        """Cuts what does not come to its end because its client does not read."""
        if self.ended is not None and now - self.ended > FLUSH_SECONDS:
            self.drop_all("slow_client")
            self._abort()

    def _drop(self, count: int, reason: str) -> None:
        if count:
            self._stream.record_dropped(count, reason)
            self._dropped[reason] += count
            for _ in range(count):
                self.bytes -= len(self._queue.popleft().frame)
            if self._only_gaps():
                # Nothing may come for a long time.
                self._wake()
