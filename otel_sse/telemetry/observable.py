"""The observable instruments: a snapshot of all live streams whenever a reader collects."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from otel_sse import semconv
from otel_sse.process import gc_safety
from otel_sse.process.event_loops import LoopTask, is_running, schedule
from otel_sse.process.server_pools import connection_limit
from otel_sse.semconv import Metric, Role
from otel_sse.telemetry.failures import FailureLog
from otel_sse.telemetry.snapshot import SeriesSnapshot, Snapshot
from otel_sse.telemetry.stall_state import StallState

Read = Callable[[Snapshot], Iterator[Observation]]


def _each(value: Callable[[SeriesSnapshot], int | float]) -> Read:
    def read(snapshot: Snapshot) -> Iterator[Observation]:
        for series, row in snapshot.rows.items():
            yield Observation(value(row), series.attributes)

    return read


def _by(attribute: str, counts: Callable[[SeriesSnapshot], dict[Any, int]]) -> Read:
    def read(snapshot: Snapshot) -> Iterator[Observation]:
        for series, row in snapshot.rows.items():
            for key, count in counts(row).items():
                yield Observation(count, {**series.attributes, attribute: key})

    return read


def _messages(snapshot: Snapshot) -> Iterator[Observation]:
    names = snapshot.type_names
    for series, row in snapshot.rows.items():
        for index, count in enumerate(row.totals.messages):
            if count:
                yield Observation(count, {**series.attributes, semconv.EVENT_TYPE: names[index]})


def _backlog_size(snapshot: Snapshot) -> Iterator[Observation]:
    for series, row in snapshot.rows.items():
        layers = row.backlog if row.active else dict.fromkeys(series.backlog_layers, 0)
        for layer, size in layers.items():
            yield Observation(size, {**series.attributes, semconv.BACKLOG_LAYER: layer})


def _backlog_max(snapshot: Snapshot) -> Iterator[Observation]:
    for series, row in snapshot.rows.items():
        size = row.backlog_max if row.active else (0 if series.backlog_layers else None)
        if size is not None:
            yield Observation(size, series.attributes)


def _busiest_client(snapshot: Snapshot) -> Iterator[Observation]:
    yield Observation(snapshot.busiest_client)


def _limit(_: Snapshot) -> Iterator[Observation]:
    limit = connection_limit()
    if limit is not None:
        yield Observation(limit)


# Of each role some: the metric, the meter's method that makes the instrument, its values.
_OBSERVABLE: Final[tuple[tuple[Metric, str, Read], ...]] = (
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
    (semconv.SEND_TIME, "counter", _each(lambda row: row.totals.wait_time)),
    (semconv.SLOW_SENDS, "counter", _each(lambda row: row.totals.slow_waits)),
    (semconv.STALLED, "up_down_counter", _each(lambda row: row.stalled)),
    (semconv.IDLE_MAX, "gauge", _each(lambda row: row.idle)),
    (semconv.AGE_MAX, "gauge", _each(lambda row: row.age)),
    (semconv.LIMIT, "gauge", _limit),
    (semconv.PER_CLIENT_MAX, "gauge", _busiest_client),
    (semconv.BACKLOG_SIZE, "up_down_counter", _backlog_size),
    (semconv.BACKLOG_MAX, "gauge", _backlog_max),
)


class ObservableInstruments:
    """Makes the observable instruments of ``role``, and passes on what a collection finds due.

    Args:
        role: the server's or the client's side.
        meter: where the instruments are made.
        take_snapshot: a snapshot of the monotonic time that it is given, in seconds.
        emit_stall_summary: emits one event for that many stalls beyond the limit.
        failures: instruments that have failed are observed no more.

    """

    def __init__(
        self,
        role: Role,
        meter: Meter,
        take_snapshot: Callable[[float], Snapshot],
        emit_stall_summary: Callable[[int], None],
        failures: FailureLog,
    ) -> None:
        self._take_snapshot = take_snapshot
        self._emit_stall_summary = emit_stall_summary
        self._failures = failures
        self.reset()
        for meaning, kind, read in _OBSERVABLE:
            if meaning in role.metrics:
                self._observe(meter, role.metrics[meaning], kind, read)

    def reset(self) -> None:
        # The snapshot of the collection under way, and the instruments that have read it.
        self._snapshot: Snapshot | None = None
        self._readers: set[str] = set()

    def _observe(self, meter: Meter, metric: Metric, kind: str, read: Read) -> None:
        failures = self._failures
        cumulative = kind != "gauge"

        def callback(_: CallbackOptions) -> Sequence[Observation]:
            if metric.name in failures.failed_components:
                return ()
            try:
                snapshot = self._current_snapshot(metric.name)
                return list(read(snapshot)) if cumulative or snapshot.in_use else ()
            except Exception:
                failures.log_failure_once(metric.name)
                return ()

        try:
            create = getattr(meter, f"create_observable_{kind}")
            create(metric.name, [callback], metric.unit, metric.description)
        except Exception:
            failures.log_failure_once(metric.name)

    def _current_snapshot(self, reader: str) -> Snapshot:
        """The snapshot of this collection; an instrument that asks again starts the next one."""
        snapshot = self._snapshot
        if snapshot is None or reader in self._readers:
            snapshot = self._snapshot = self._take_snapshot(time.perf_counter())
            self._readers = set()
            self._schedule_due(snapshot)
            gc_safety.start_waiting()
        self._readers.add(reader)
        return snapshot

    def _schedule_due(self, snapshot: Snapshot) -> None:
        """Has the event loops do what the snapshot found due."""
        # Without a running loop nothing could emit the event: the next collection finds the stall.
        stalled = [each for each in snapshot.stalled if is_running(each.loop)]
        due = snapshot.due
        # The snapshot outlives this: it must not keep streams that close.
        snapshot.stalled, snapshot.due = [], []
        pending = stalled[: semconv.MAX_STALL_EVENTS]
        suppressed = stalled[semconv.MAX_STALL_EVENTS :]
        tasks: list[LoopTask] = [(each.loop, each.run_maintenance) for each in (*stalled, *due)]
        if suppressed:
            summary = partial(self._emit_stall_summary, len(suppressed))
            tasks.append((suppressed[0].loop, summary))
        for state, streams in (
            (StallState.PENDING, pending),
            (StallState.SUPPRESSED, suppressed),
        ):
            for stream in streams:
                stream.stall_state = state
        schedule(tasks)
