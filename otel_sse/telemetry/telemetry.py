"""All that one role of one meter provider emits: the parts of this package, wired together.

Shared by all instrumentors, since the SDK drops the callbacks of an instrument that is made twice
and cannot forget one. So a ``Telemetry`` stays for good. Once the last instrumentor has released it
and its last stream has closed, its counters stand still, as the SDK's own do, and its gauges are
gone.

Counters are observable: streams count in plain numbers, and only a collection adds these up.
Whatever raises in here is logged once; an instrument that raised is switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Protocol

from opentelemetry import _logs, metrics, trace
from opentelemetry.metrics import MeterProvider

from otel_sse import semconv
from otel_sse.config import Config
from otel_sse.process.event_loops import LoopTask, run_in_parallel
from otel_sse.semconv import SERVER, Metric, Role
from otel_sse.telemetry.cardinality import CardinalityLimit, ErrorTypes, EventTypes
from otel_sse.telemetry.failures import FailureLog
from otel_sse.telemetry.histograms import Histograms
from otel_sse.telemetry.log_events import EventSource, LogEvents
from otel_sse.telemetry.observable import ObservableInstruments
from otel_sse.telemetry.providers import Providers
from otel_sse.telemetry.registry import StreamRegistry
from otel_sse.telemetry.sdk_internals import forget_parent_metrics
from otel_sse.telemetry.series import MetricSeries
from otel_sse.telemetry.snapshot import Snapshot
from otel_sse.telemetry.spans import Spans
from otel_sse.telemetry.throttle import EmitThrottle
from otel_sse.version import __version__


class MetricSource(EventSource, Protocol):
    """What a histogram record needs of its stream."""

    @property
    def series(self) -> MetricSeries: ...

    @property
    def status(self) -> int: ...


class Telemetry:
    """The attributes are the parts that streams use."""

    def __init__(self, config: Config, providers: Providers, role: Role = SERVER) -> None:
        self.role = role
        self.providers = providers
        self.failures = FailureLog()
        self.streams = StreamRegistry(role)
        self.event_types = EventTypes()
        self.error_types = ErrorTypes()
        # The values of http.route, or of server.address with its port.
        self.routes_or_hosts = CardinalityLimit(semconv.MAX_ROUTES_OR_HOSTS)
        self.drop_reasons = CardinalityLimit(semconv.MAX_DROP_REASONS)
        self.instrumentors: set[object] = set()
        # The process is about to end: a stream that does not end by itself is cut.
        self.stopping = False
        # Flushes that have ended, also those that failed.
        self.flushes = 0
        self._throttle = EmitThrottle(self.flush)
        # Of the collections.
        self._numbers = count()
        scope, schema_url = semconv.SCOPE, semconv.SCHEMA_URL
        tracer = trace.get_tracer(scope, __version__, providers.tracer, schema_url)
        meter = metrics.get_meter(scope, __version__, providers.meter, schema_url)
        logger = _logs.get_logger(scope, __version__, providers.logger, schema_url)
        self.histograms = Histograms(role, meter, self.failures)
        self.events = LogEvents(logger, config, self._throttle, self.failures)
        self.spans = Spans(
            tracer, role, config, self.event_types, self.events, self._throttle, self.failures
        )
        self._configure(config)
        self._observable = ObservableInstruments(
            role, meter, self._snapshot, self.events.stall_summary, self.failures
        )

    def _configure(self, config: Config) -> None:
        self.config = self.events.config = self.spans.config = config
        self.event_types.configure(config.event_types)
        # Read for every message, so not by way of the parts.
        self.type_indexes = self.event_types.indexes
        self.emits_each_message = self.spans.emits_each_message
        self.buffers_messages = self.spans.buffers_messages

    def add_user(self, instrumentor: object, config: Config) -> None:
        """Notes that ``instrumentor`` (or a middleware) uses this; ``config`` applies if it is the
        first one.
        """
        if not self.instrumentors:
            self._configure(config)
        self.instrumentors.add(instrumentor)

    def release(self, instrumentor: object) -> None:
        self.instrumentors.discard(instrumentor)

    def reset(self) -> None:
        """Starts anew in a forked child: what the parent served is not the child's."""
        self.stopping = False
        self.streams.reset()
        self.event_types.after_fork()
        self._throttle.reset()
        self._observable.reset()
        with suppress(Exception):
            forget_parent_metrics(self.meter_provider)

    # --- values of a stream ----------------------------------------------------------------

    def record(self, metric: Metric, stream: MetricSource, value: float) -> None:
        """Records a value of a histogram, with the stream's base attributes."""
        self.histograms.record(metric, value, stream.series.attributes, stream.context())

    def record_message(
        self, stream: MetricSource, size: int, gap: float | None, wait: float
    ) -> None:
        """Records one message: its size in bytes, the gap before it and its wait in seconds."""
        self.record(semconv.MESSAGE_SIZE, stream, size)
        if gap is not None:
            self.record(semconv.MESSAGE_GAP, stream, gap)
        self.record(semconv.SEND_DURATION, stream, wait)

    def record_close(self, stream: MetricSource, totals: dict[str, Any]) -> None:
        """Records a stream's duration and emits its event; ``totals`` are its attributes."""
        attributes = {**stream.series.attributes, semconv.HTTP_STATUS: stream.status}
        for name in (semconv.CLOSE_REASON, semconv.ERROR_TYPE):
            if name in totals:
                attributes[name] = totals[name]
        duration = totals[semconv.TOTAL_DURATION]
        self.histograms.record(semconv.DURATION, duration, attributes, stream.context())
        self.events.closed(stream, totals)

    # --- the end of the process, see process.shutdown --------------------------------------

    @property
    def meter_provider(self) -> MeterProvider:
        return self.providers.meter_provider

    @property
    def shutdown_seconds(self) -> float:
        return self.config.shutdown_seconds

    def close_tasks(self) -> Sequence[LoopTask]:
        streams = self.streams.unclosed_streams()
        return [(each.loop, partial(each.close, cut=True)) for each in streams]

    def export(self, *, collect: bool = True) -> None:
        """Exports everything, in batches that the SDK's queues take; ``collect``: the metrics too.

        Those at the same time: they are one export, where the rest may be a hundred.
        """
        exports = [self._drain_and_flush]
        if collect:
            exports.insert(0, self._flush_metrics)
        run_in_parallel(exports)

    def discard_pending(self) -> None:
        """Drops what is not in the SDK's queues yet: the exporters do not answer."""
        self._throttle.discard()

    def flush(self) -> None:
        """Exports the queued spans and logs, and waits: never to be called on an event loop."""
        self.providers.flush_spans_and_logs(self.failures)
        self._throttle.reset_window()
        self.flushes += 1

    def _flush_metrics(self) -> None:
        self.providers.flush_metrics(self.failures)
        self.flushes += 1

    def _drain_and_flush(self) -> None:
        self._throttle.drain()
        self.flush()

    def _snapshot(self, now: float) -> Snapshot:
        rows, live = self.streams.rows()
        stall_seconds = self.config.stall_seconds
        snapshot = Snapshot(
            rows,
            live,
            now,
            stall_seconds,
            self.event_types.names,
            next(self._numbers),
            in_use=bool(self.instrumentors or live),
        )
        snapshot.due += self.streams.overdue(now)
        return snapshot
