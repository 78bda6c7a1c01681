"""One look at all streams of a role, for each series: the numbers of event loops, of live streams
and of closed ones.

It is taken on a metric reader's thread and only reads. What it finds due (segments of silent
streams, stalls) it passes to the event loops that own the streams.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Protocol

from otel_sse.process.backlog import NO_BACKLOG, Transport, read_backlog
from otel_sse.process.event_loops import EventLoop
from otel_sse.process.server_facts import HypercornTransport
from otel_sse.semconv import KERNEL
from otel_sse.telemetry.series import CountedStream, Counts, MetricSeries, Totals
from otel_sse.telemetry.stall_state import StallState

# Backlogs that one collection reads; each takes a system call. With more connections they take
# turns, and a connection keeps what was read of it last: 10,000 are read within 3 collections.
MAX_BACKLOGS: Final = 4096
# Streams between two moments in which an event loop may have the interpreter.
_YIELD_EVERY: Final = 256


class LiveStream(CountedStream, Protocol):
    """What a snapshot reads of a stream, and the backlog that it notes. Times are monotonic
    seconds.
    """

    counts: Counts
    stall_state: StallState
    # As ``read_backlog`` gives it; None before it has been read.
    backlog: dict[str, int] | None

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
        self.totals.add_totals(series.closed)
        for each in series.by_loop:
            self.totals.add(each)
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
        rows: a snapshot of each series, without the live streams' own numbers.
        live: the live streams, which are added.
        now: monotonic seconds.
        stall_seconds: the stall threshold; 0: off.
        type_names: the event types by their index.
        number: of this collection; see ``MAX_BACKLOGS``.
        in_use: there is an instrumentor or a live stream, so there are gauges.

    """

    def __init__(
        self,
        rows: dict[MetricSeries, SeriesSnapshot],
        live: Sequence[LiveStream],
        now: float,
        stall_seconds: float,
        type_names: Sequence[str],
        number: int,
        *,
        in_use: bool,
    ) -> None:
        self.rows = rows
        self.in_use = in_use
        self.type_names = type_names
        # Streams whose stall is new, and streams whose segment is old.
        self.stalled: list[LiveStream] = []
        self.due: list[LiveStream] = []
        clients: dict[str, int] = {}
        read: set[int] = set()
        turns = -(-len(live) // MAX_BACKLOGS)
        for index, stream in enumerate(live):
            if not index % _YIELD_EVERY:
                time.sleep(0)
            row = rows[stream.series]
            row.active += 1
            row.totals.add_stream(stream)
            idle = stream.idle(now)
            if idle > row.idle:
                row.idle = idle
            age = now - stream.started
            if age > row.age:
                row.age = age
            stalled = 0 < stall_seconds <= idle
            row.stalled += stalled
            if stalled and not stream.stall_state:
                self.stalled.append(stream)
            elif now >= stream.segment_due:
                self.due.append(stream)
            client = stream.client
            if client is not None:
                clients[client] = clients.get(client, 0) + 1
            transport = stream.transport
            if transport is None:
                continue
            # HTTP/2 streams share one.
            key = id(transport.shared if type(transport) is HypercornTransport else transport)
            if key in read:
                continue
            read.add(key)
            # By the address: at which turn it is read does not depend on the others.
            if (key >> 6) % turns == number % turns:
                stream.backlog = read_backlog(transport)
                if not stream.backlog:
                    # It is closing, or cannot be read: the stream's own loop finds out.
                    self.due.append(stream)
            backlog = stream.backlog
            # Nothing adds nothing, once the row has both layers.
            if backlog and (backlog is not NO_BACKLOG or KERNEL not in row.backlog):
                _add_backlog(row, stream.series, backlog)
        self.busiest_client = max(clients.values(), default=0)


def _add_backlog(row: SeriesSnapshot, series: MetricSeries, layers: dict[str, int]) -> None:
    total = 0
    for layer, size in layers.items():
        total += size
        if layer in row.backlog:
            row.backlog[layer] += size
        else:
            series.backlog_layers.add(layer)
            row.backlog[layer] = size
    if row.backlog_max is None or total > row.backlog_max:
        row.backlog_max = total
