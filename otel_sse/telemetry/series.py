"""The numbers of streams with the same base attributes.

All streams of a series and an event loop count their messages in the same ``Counts``. So a
collection has few of them to add up however many streams are live, and a message finds them in the
processor's cache, where those of a stream of its own would not be. The loop's thread writes them.
Where no such thread is known a stream has counts of its own: without an asyncio loop, and where
several threads may read or send.

A finalizer may send as well, in whatever thread it runs. In CPython with a GIL no other thread and
no finalizer runs within ``x.n += 1``, so nothing is lost; ``tests/unit/stream/test_counts.py`` has
threads compete for it on each Python. Without a GIL nothing is shared.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from functools import partial
from typing import Any, Final, Protocol

from otel_sse.telemetry.sampler import MessageSampler

# Of the build: in a free-threaded one the GIL may come and go.
_HAS_GIL: Final = "free-threading" not in sys.version


class CountedStream(Protocol):
    """A stream's own numbers: ``io`` in bytes, ``dropped`` by reason, the rest in ``counts``."""

    @property
    def counts(self) -> Counts: ...

    @property
    def io(self) -> int: ...

    @property
    def dropped(self) -> dict[str, int] | None: ...


class Counts:
    """Numbers so far. ``messages`` is indexed by event type; ``wait_time`` is in seconds."""

    __slots__ = ("comments", "messages", "skewed", "slow_waits", "wait_time")

    def __init__(self) -> None:
        self.messages: list[int] = []
        self.comments = 0
        self.wait_time = 0.0
        self.slow_waits = 0
        self.skewed = 0

    def count_message(self, index: int) -> None:
        missing = index + 1 - len(self.messages)
        if missing > 0:
            # By zeros alone: a finalizer may count in here, and grow the list meanwhile.
            self.messages.extend([0] * missing)
        self.messages[index] += 1

    def add(self, other: Counts) -> None:
        messages = self.messages
        for index, count in enumerate(other.messages):
            if index == len(messages):
                messages.append(0)
            messages[index] += count
        self.comments += other.comments
        self.wait_time += other.wait_time
        self.slow_waits += other.slow_waits
        self.skewed += other.skewed


class LoopCounts(Counts):
    """Those of all streams of one event loop."""

    __slots__ = ()


class Totals(Counts):
    """A sum over streams. ``io`` is in bytes, ``dropped`` is by reason."""

    __slots__ = ("dropped", "io")

    def __init__(self) -> None:
        super().__init__()
        self.io = 0
        self.dropped: dict[str, int] = {}

    def add_totals(self, other: Totals) -> None:
        self.add(other)
        self.io += other.io
        self._add_dropped(other.dropped)

    def add_stream(self, stream: CountedStream) -> None:
        """Adds a stream's own numbers: not what it counts with others of its loop."""
        self.io += stream.io
        if stream.dropped:
            # Copied first: the stream's own thread may add a key in the meantime.
            self._add_dropped(stream.dropped.copy())
        if type(stream.counts) is not LoopCounts:
            self.add(stream.counts)

    def _add_dropped(self, dropped: dict[str, int]) -> None:
        for reason, count in dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count


class MetricSeries(MessageSampler):
    """One set of base attributes: the numbers of its streams, and the sampler of its messages.

    Attributes:
        closed: what closed streams have left of their own numbers.
        by_loop: what the streams of each event loop have counted, of freed loops too.
        opened: streams opened, new and resumed.
        backlog_layers: those that were readable before: with no stream open they hold 0.

    """

    __slots__ = (
        "_free",
        "_loops",
        "attributes",
        "backlog_layers",
        "by_loop",
        "closed",
        "opened",
        "span_name",
    )

    def __init__(self, attributes: dict[str, Any], span_name: str = "SSE") -> None:
        super().__init__()
        self.attributes = attributes
        self.span_name = span_name
        self.closed = Totals()
        self.by_loop: list[LoopCounts] = []
        # By the address of a loop, a reference to it, and its counts.
        self._loops: dict[int, tuple[weakref.ref[asyncio.AbstractEventLoop], LoopCounts]] = {}
        # The counts of loops that have been freed, for the next ones.
        self._free: list[LoopCounts] = []
        self.opened = [0, 0]
        self.backlog_layers: set[str] = set()

    def counts_of(self, loop: object) -> Counts:
        """The counts for the streams of ``loop``; to be called under the registry's lock."""
        if not _HAS_GIL or not isinstance(loop, asyncio.AbstractEventLoop):
            return Counts()
        key = id(loop)
        found = self._loops.get(key)
        if found is not None:
            return found[1]
        if self._free:
            counts = self._free.pop()
        else:
            counts = LoopCounts()
            self.by_loop.append(counts)
        # The callback is called before another loop can have the address. It takes no lock, and
        # nothing here ever holds a loop, whose end would run application code under the lock.
        self._loops[key] = (weakref.ref(loop, partial(self._on_loop_freed, key)), counts)
        return counts

    def _on_loop_freed(self, key: int, _: object) -> None:
        found = self._loops.pop(key, None)
        if found is not None:
            self._free.append(found[1])
