"""The totals of a stream, and of all closed streams with the same base attributes."""

from __future__ import annotations

from typing import Any, Protocol

from otel_sse.telemetry.sampler import MessageSampler


class SupportsTotals(Protocol):
    """Anything that holds totals. ``messages`` is indexed by event type, ``dropped`` by reason;
    ``wait_time`` is in seconds, ``io`` in bytes.
    """

    @property
    def messages(self) -> list[int]: ...

    @property
    def io(self) -> int: ...

    @property
    def wait_time(self) -> float: ...

    @property
    def slow_waits(self) -> int: ...

    @property
    def skewed(self) -> int: ...

    @property
    def comments(self) -> int: ...

    @property
    def dropped(self) -> dict[str, int] | None: ...


class Totals:
    """A sum of ``SupportsTotals``."""

    __slots__ = ("comments", "dropped", "io", "messages", "skewed", "slow_waits", "wait_time")

    def __init__(self) -> None:
        self.messages: list[int] = []
        self.dropped: dict[str, int] = {}
        self.comments = 0
        self.io = 0
        self.wait_time = 0.0
        self.slow_waits = 0
        self.skewed = 0

    def add(self, other: SupportsTotals) -> None:
        messages = self.messages
        for index, count in enumerate(other.messages):
            if index == len(messages):
                messages.append(0)
            messages[index] += count
        if other.dropped:
            # Copied first: the stream's own thread may add a key in the meantime.
            for reason, count in other.dropped.copy().items():
                self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.comments += other.comments
        self.io += other.io
        self.wait_time += other.wait_time
        self.slow_waits += other.slow_waits
        self.skewed += other.skewed


class MetricSeries(MessageSampler):
    """One set of base attributes: the totals of its closed streams, and the sampler of its
    messages.
    """

    __slots__ = ("attributes", "backlog_layers", "closed", "opened", "span_name")

    def __init__(self, attributes: dict[str, Any], span_name: str = "SSE") -> None:
        super().__init__()
        self.attributes = attributes
        self.span_name = span_name
        self.closed = Totals()
        # Streams opened, new and resumed.
        self.opened = [0, 0]
        # Backlog layers that were readable before: with no stream open they hold 0.
        self.backlog_layers: set[str] = set()
