"""The totals of streams with the same base attributes.

A message counts in a ``Totals`` that all streams of a series and an event loop share. So a
collection has few of them to add up however many streams are live, and a message finds them in the
processor's cache, where those of a stream of its own would not be. Whatever is not written by one
thread alone has totals of its own; see ``Stream.counts``.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, Protocol

from otel_sse.telemetry.sampler import MessageSampler


class Counting(Protocol):
    """What counts: ``io`` in bytes and ``dropped`` by reason for itself, the rest in ``counts``."""

    @property
    def counts(self) -> Totals: ...

    @property
    def io(self) -> int: ...

    @property
    def dropped(self) -> dict[str, int] | None: ...


class Totals:
    """Numbers so far. ``messages`` is indexed by event type, ``dropped`` by reason; ``wait_time``
    is in seconds, ``io`` in bytes.
    """

    __slots__ = ("comments", "dropped", "io", "messages", "skewed", "slow_waits", "wait_time")

    def __init__(self) -> None:
        self.messages: list[int] = []
        self.dropped: dict[str, int] | None = None
        self.comments = 0
        self.io = 0
        self.wait_time = 0.0
        self.slow_waits = 0
        self.skewed = 0

    def count_message(self, index: int) -> None:
        try:
            self.messages[index] += 1
        except IndexError:
            self.messages += [0] * (index - len(self.messages)) + [1]

    def add(self, other: Totals) -> None:
        messages = self.messages
        for index, count in enumerate(other.messages):
            if index == len(messages):
                messages.append(0)
            messages[index] += count
        if other.dropped:
            self._add_dropped(other.dropped)
        self.comments += other.comments
        self.io += other.io
        self.wait_time += other.wait_time
        self.slow_waits += other.slow_waits
        self.skewed += other.skewed

    def add_stream(self, stream: Counting) -> None:
        """Adds what ``stream`` counts, but for what it counts in the totals of its loop."""
        self.io += stream.io
        if stream.dropped:
            self._add_dropped(stream.dropped)
        if type(stream.counts) is not LoopTotals:
            self.add(stream.counts)

    def _add_dropped(self, dropped: dict[str, int]) -> None:
        found = self.dropped = self.dropped or {}
        # Copied first: the stream's own thread may add a key in the meantime.
        for reason, count in dropped.copy().items():
            found[reason] = found.get(reason, 0) + count


class LoopTotals(Totals):
    """The totals of all streams of one event loop: its thread alone writes them.

    Attributes:
        loop: the event loop; another one may follow it here once it is freed.

    """

    __slots__ = ("loop",)

    def __init__(self, loop: weakref.ref[asyncio.AbstractEventLoop]) -> None:
        super().__init__()
        self.loop = loop


class MetricSeries(MessageSampler):
    """One set of base attributes: the totals of its streams, and the sampler of its messages."""

    __slots__ = ("attributes", "backlog_layers", "closed", "opened", "running", "span_name")

    def __init__(self, attributes: dict[str, Any], span_name: str = "SSE") -> None:
        super().__init__()
        self.attributes = attributes
        self.span_name = span_name
        # What closed streams have left, and what the streams of each loop count, closed ones too.
        self.closed = Totals()
        self.running: list[LoopTotals] = []
        # Streams opened, new and resumed.
        self.opened = [0, 0]
        # Backlog layers that were readable before: with no stream open they hold 0.
        self.backlog_layers: set[str] = set()

    def totals_of(self, loop: object) -> Totals:
        """Where a stream counts that the thread of ``loop`` alone writes; not for two threads at
        once.
        """
        if not isinstance(loop, asyncio.AbstractEventLoop):
            return Totals()
        free: LoopTotals | None = None
        for each in self.running:
            owner = each.loop()
            if owner is loop:
                return each
            if owner is None:
                free = each
        reference = weakref.ref(loop)
        if free is None:
            free = LoopTotals(reference)
            self.running.append(free)
        free.loop = reference
        return free
