"""One look at all live streams: what they count and what closed ones left, for each series.

It is taken on a metric reader's thread and only reads. What it finds due (segments of silent
streams, stalls) it passes to the event loops that own the streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from otel_sse.process.backlog import Transport, read_backlog
from otel_sse.process.event_loops import EventLoop
from otel_sse.telemetry.series import MetricSeries, SupportsTotals, Totals
from otel_sse.telemetry.stall_state import StallState


class LiveStream(SupportsTotals, Protocol):
    """What a snapshot reads of a stream. Times are monotonic seconds."""

    stall_state: StallState

    @property
    def series(self) -> MetricSeries: ...

    @property
    def started(self) -> float: ...

    @property
    def resumed(self) -> bool: ...

    @property
    def segment_due(self) -> float: ...

    @property
    def client(self) -> str | None: ...

    @property
    def transport(self) -> Transport | None: ...

    @property
    def loop(self) -> EventLoop | None: ...

    def idle(self, now: float) -> float: ...

    def run_maintenance(self) -> None: ...

    def is_overdue(self, now: float) -> bool: ...

    def close(
        self, error: BaseException | None = None, *, completed: bool = False, cut: bool = False
    ) -> None: ...


class SeriesSnapshot:
    """The values of one series; times in seconds, backlog in bytes."""

    __slots__ = ("active", "age", "backlog", "backlog_max", "idle", "opened", "stalled", "totals")

    def __init__(self, series: MetricSeries) -> None:
        self.totals = Totals()
        self.totals.add(series.closed)
        self.opened = tuple(series.opened)
        self.active = 0
        self.stalled = 0
        self.idle = 0.0
        self.age = 0.0
        self.backlog: dict[str, int] = {}
        self.backlog_max: int | None = None


class Snapshot:
    """The values of one moment.

    ``rows`` and ``live`` have to be taken together, under the lock that guards closing: then each
    stream is in exactly one of them.

    Args:
        rows: a snapshot of each series, with its closed streams alone.
        live: the live streams, which are added.
        now: monotonic seconds.
        stall_seconds: the stall threshold; 0: off.
        type_names: the event types by their index.

    """

    def __init__(
        self,
        rows: dict[MetricSeries, SeriesSnapshot],
        live: Iterable[LiveStream],
        now: float,
        stall_seconds: float,
        type_names: Sequence[str],
    ) -> None:
        self.rows = rows
        self.type_names = type_names
        # Streams whose stall is new, and streams whose segment is old.
        self.stalled: list[LiveStream] = []
        self.due: list[LiveStream] = []
        clients: Counter[str] = Counter()
        read: set[int] = set()
        for stream in live:
            row = rows[stream.series]
            row.active += 1
            row.totals.add(stream)
            idle = stream.idle(now)
            row.idle = max(row.idle, idle)
            row.age = max(row.age, now - stream.started)
            stalled = 0 < stall_seconds <= idle
            row.stalled += stalled
            if stalled and not stream.stall_state:
                self.stalled.append(stream)
            elif now >= stream.segment_due:
                self.due.append(stream)
            if stream.client is not None:
                clients[stream.client] += 1
            transport = stream.transport
            # HTTP/2 streams share one.
            shared = getattr(transport, "shared", transport)
            if transport is not None and id(shared) not in read:
                read.add(id(shared))
                layers = read_backlog(transport)
                self._add_backlog(row, stream.series, layers)
                if not layers:
                    # It is closing, or cannot be read: the stream's own loop finds out.
                    self.due.append(stream)
        self.busiest_client = max(clients.values(), default=0)

    def _add_backlog(
        self, row: SeriesSnapshot, series: MetricSeries, layers: dict[str, int]
    ) -> None:
        for layer, size in layers.items():
            series.backlog_layers.add(layer)
            row.backlog[layer] = row.backlog.get(layer, 0) + size
        if layers:
            row.backlog_max = max(row.backlog_max or 0, sum(layers.values()))
