"""One collection: what live connections hold and closed ones left, added up for each series.

It runs on a metric reader's thread and only reads. What it finds due (segments of silent
streams, stalls) it hands to the event loops that own them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.metrics import CallbackOptions, Observation

from otel_sse import backlog, semconv
from otel_sse.loops import Job, hand, runs
from otel_sse.semconv import Metric
from otel_sse.series import Series, Totals

if TYPE_CHECKING:
    from otel_sse.connection import Connection
    from otel_sse.telemetry import Telemetry

# How far the telling of a connection's stall has got: not stalled, a collection has asked for an
# event or, beyond so many, for none, and the event has been told.
LIVELY: Final = 0
ASKED: Final = 1
QUIET: Final = 2
TOLD: Final = 3


class Row:
    """The figures of one series; times in seconds, backlog in bytes."""

    __slots__ = ("active", "age", "backlog", "backlog_max", "idle", "opened", "stalled", "totals")

    def __init__(self, series: Series) -> None:
        self.totals = Totals()
        self.totals.add(series.closed)
        self.opened = tuple(series.opened)
        self.active = 0
        self.stalled = 0
        self.idle = 0.0
        self.age = 0.0
        self.backlog: dict[str, int] = {}
        self.backlog_max: int | None = None


class Collection:
    """The figures of one moment. ``now`` is monotonic, ``stall`` the threshold (0: off), in s.

    ``rows`` and ``live`` have to be taken together, under the lock that guards closing: then a
    connection is in exactly one of them.
    """

    def __init__(
        self,
        rows: dict[Series, Row],
        live: Iterable[Connection],
        now: float,
        stall: float,
        type_names: Sequence[str],
    ) -> None:
        self.rows = rows
        self.type_names = type_names
        # Those whose stall is new, and those whose segment is old.
        self.stalled: list[Connection] = []
        self.due: list[Connection] = []
        clients: Counter[str] = Counter()
        read: set[int] = set()
        for connection in live:
            row = rows[connection.series]
            row.active += 1
            row.totals.add(connection)
            idle = connection.idle(now)
            row.idle = max(row.idle, idle)
            row.age = max(row.age, now - connection.started)
            stalled = 0 < stall <= idle
            row.stalled += stalled
            if stalled and not connection.stall:
                self.stalled.append(connection)
            elif now >= connection.segment_due:
                self.due.append(connection)
            if connection.client is not None:
                clients[connection.client] += 1
            transport = connection.transport
            if transport is not None and id(transport) not in read:
                read.add(id(transport))
                self._add_backlog(row, connection.series, backlog.read(transport))
        self.busiest_client = max(clients.values(), default=0)

    def _add_backlog(self, row: Row, series: Series, layers: dict[str, int]) -> None:
        for layer, size in layers.items():
            series.layers.add(layer)
            row.backlog[layer] = row.backlog.get(layer, 0) + size
        if layers:
            row.backlog_max = max(row.backlog_max or 0, sum(layers.values()))


Read = Callable[[Collection], Iterator[Observation]]


def _each(value: Callable[[Row], int | float]) -> Read:
    def read(collection: Collection) -> Iterator[Observation]:
        for series, row in collection.rows.items():
            yield Observation(value(row), series.attributes)

    return read


def _by(attribute: str, counts: Callable[[Row], dict[Any, int]]) -> Read:
    def read(collection: Collection) -> Iterator[Observation]:
        for series, row in collection.rows.items():
            for key, count in counts(row).items():
                yield Observation(count, {**series.attributes, attribute: key})

    return read


def _messages(collection: Collection) -> Iterator[Observation]:
    names = collection.type_names
    for series, row in collection.rows.items():
        for index, count in enumerate(row.totals.messages):
            if count:
                yield Observation(count, {**series.attributes, semconv.EVENT_TYPE: names[index]})


def _backlog_size(collection: Collection) -> Iterator[Observation]:
    for series, row in collection.rows.items():
        layers = row.backlog if row.active else dict.fromkeys(series.layers, 0)
        for layer, size in layers.items():
            yield Observation(size, {**series.attributes, semconv.BACKLOG_LAYER: layer})


def _backlog_max(collection: Collection) -> Iterator[Observation]:
    for series, row in collection.rows.items():
        size = row.backlog_max if row.active else (0 if series.layers else None)
        if size is not None:
            yield Observation(size, series.attributes)


def _busiest_client(collection: Collection) -> Iterator[Observation]:
    yield Observation(collection.busiest_client)


# The observable instruments, of which each side has some: the metric, the meter's method that
# makes it, its figures.
OBSERVED: Final[tuple[tuple[Metric, str, Read], ...]] = (
    (semconv.ACTIVE, "up_down_counter", _each(lambda row: row.active)),
    (
        semconv.CONNECTIONS,
        "counter",
        _by(semconv.RESUMED, lambda row: {False: row.opened[0], True: row.opened[1]}),
    ),
    (semconv.RECONNECTIONS, "counter", _each(lambda row: row.opened[1])),
    (semconv.DELIVERY_SKEWED, "counter", _each(lambda row: row.totals.skewed)),
    (semconv.MESSAGES, "counter", _messages),
    (semconv.DROPPED, "counter", _by(semconv.DROP_REASON, lambda row: row.totals.dropped)),
    (semconv.COMMENTS, "counter", _each(lambda row: row.totals.comments)),
    (semconv.IO, "counter", _each(lambda row: row.totals.io)),
    (semconv.SEND_TIME, "counter", _each(lambda row: row.totals.send_time)),
    (semconv.SLOW_SENDS, "counter", _each(lambda row: row.totals.stalls)),
    (semconv.STALLED, "up_down_counter", _each(lambda row: row.stalled)),
    (semconv.IDLE_MAX, "gauge", _each(lambda row: row.idle)),
    (semconv.AGE_MAX, "gauge", _each(lambda row: row.age)),
    (semconv.PER_CLIENT_MAX, "gauge", _busiest_client),
    (semconv.BACKLOG_SIZE, "up_down_counter", _backlog_size),
    (semconv.BACKLOG_MAX, "gauge", _backlog_max),
)


class Collector:
    """Answers for the observable instruments of a telemetry, and hands on what it finds due."""

    def __init__(self, telemetry: Telemetry, meter: Any) -> None:
        self._telemetry = telemetry
        self.reset()
        metrics = telemetry.side.metrics
        for meaning, kind, read in OBSERVED:
            if meaning in metrics:
                self._observe(meter, metrics[meaning], kind, read)

    def reset(self) -> None:
        # The collection under way, and the instruments that have read it.
        self._collection: Collection | None = None
        self._readers: set[str] = set()

    def _observe(self, meter: Any, metric: Metric, kind: str, read: Read) -> None:
        telemetry = self._telemetry

        def callback(_: CallbackOptions) -> list[Observation]:
            if metric.name in telemetry.failures:
                return []
            try:
                return list(read(self._collect(metric.name)))
            except Exception:
                telemetry.failed(metric.name)
                return []

        try:
            create = getattr(meter, f"create_observable_{kind}")
            create(metric.name, [callback], metric.unit, metric.description)
        except Exception:
            telemetry.failed(metric.name)

    def _collect(self, reader: str) -> Collection:
        """The collection under way. An instrument that asks again begins the next one."""
        collection = self._collection
        if collection is None or reader in self._readers:
            telemetry = self._telemetry
            with telemetry.lock:
                live = list(telemetry.live)
                series = telemetry.all_series.values() if live or telemetry.users else ()
                rows = {each: Row(each) for each in series}
            now = time.perf_counter()
            stall = telemetry.config.stall_seconds
            collection = Collection(rows, live, now, stall, telemetry.type_names)
            self._collection = collection
            self._readers = set()
            self._hand(collection)
        self._readers.add(reader)
        return collection

    def _hand(self, collection: Collection) -> None:
        """Has the event loops tell what the collection found due."""
        # A stall that nobody could tell is found again.
        stalled = [each for each in collection.stalled if runs(each.loop)]
        due = collection.due
        collection.stalled, collection.due = [], []
        spoken, quiet = stalled[: semconv.MAX_STALL_EVENTS], stalled[semconv.MAX_STALL_EVENTS :]
        jobs: list[Job] = [(each.loop, each.tend) for each in (*stalled, *due)]
        if quiet:
            jobs.append((quiet[0].loop, partial(self._telemetry.stalled_too, len(quiet))))
        for mark, connections in ((ASKED, spoken), (QUIET, quiet)):
            for connection in connections:
                connection.stall = mark
        hand(jobs)
