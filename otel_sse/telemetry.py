"""Owns what is told: instruments, spans and log-based events of the contract.

One ``Telemetry`` per meter provider and side, shared by all instrumentors: the SDK drops the
callbacks of an instrument that is made twice, and cannot forget one. So an object stays for good;
once the last instrumentor has let go of it and its last connection has ended, its callbacks yield
nothing.

Counters are observable: a connection counts for itself, and only a collection adds up what the
live ones hold and what the closed ones left. Whatever raises in here is logged once and, if it
is an instrument, switched off: the application never sees it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import _logs, metrics, trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, Status, StatusCode

from otel_sse import events, semconv
from otel_sse.collection import Collector
from otel_sse.config import Config
from otel_sse.outbox import Outbox
from otel_sse.semconv import SERVER, Capped, Metric, Side
from otel_sse.series import Series
from otel_sse.version import __version__

if TYPE_CHECKING:
    from otel_sse.connection import Connection
    from otel_sse.segment import Segment, Told

_log = logging.getLogger("otel_sse")

FLUSH_MILLIS: Final = 10_000
_RECORDED: Final = (
    semconv.DURATION,
    semconv.FIRST_MESSAGE,
    semconv.MESSAGE_SIZE,
    semconv.MESSAGE_GAP,
    semconv.SEND_DURATION,
    semconv.CONNECT_DURATION,
    semconv.DELIVERY_DURATION,
)


@dataclass(frozen=True)
class Providers:
    """Where to tell; None stands for the global provider."""

    tracer: Any = None
    meter: Any = None
    logger: Any = None


class Telemetry:
    """The verbs with which connections tell: opened, sampled, stalled, closed …"""

    def __init__(self, config: Config, providers: Providers, side: Side = SERVER) -> None:
        self.config = config
        self.side = side
        self.providers = providers
        # Guards what a collection and an ending have to agree on: live, series, closed totals.
        self.lock = threading.Lock()
        self.live: set[Connection] = set()
        self.users: set[object] = set()
        self.all_series: dict[tuple[Any, ...], Series] = {}
        # Routes, or hosts.
        self.place = Capped(semconv.MAX_PLACES)
        self.drop_reason = Capped(semconv.MAX_DROP_REASONS)
        self._error_types = Capped(semconv.MAX_ERROR_TYPES)
        self.type_names: list[str] = []
        self._adopt(config)
        # The process is about to end: streams that do not end by themselves are cut.
        self.stopping = False
        self._outbox = Outbox(self.flush)
        # What has failed, and is logged and not tried again.
        self.failures: set[str] = set()
        self._tracer = trace.get_tracer(semconv.SCOPE, __version__, providers.tracer)
        self._logger = _logs.get_logger(semconv.SCOPE, __version__, providers.logger)
        meter = metrics.get_meter(semconv.SCOPE, __version__, providers.meter)
        self._collector = Collector(self, meter)
        self._histograms: dict[Metric, Callable[..., None]] = {}
        for meaning in _RECORDED:
            metric = side.metrics.get(meaning)
            if metric is None:
                continue
            try:
                self._histograms[meaning] = meter.create_histogram(
                    metric.name,
                    metric.unit,
                    metric.description,
                    explicit_bucket_boundaries_advisory=metric.buckets,
                ).record
            except Exception:
                self.failed(metric.name)

    def _adopt(self, config: Config) -> None:
        self.config = config
        # Event types that are told, to their index in type_names: counts and kept messages
        # carry it, so the list only grows.
        self.type_index: dict[str, int] = {}
        self._open_types = 0 if config.event_types else semconv.MAX_EVENT_TYPES
        for name in (semconv.OTHER, semconv.DEFAULT_EVENT_TYPE, *sorted(config.event_types)):
            self._add_type(name)
        every = config.message_event_detail == "all"
        # A message is told as a log event at once, or kept to be told when its segment ends.
        self.tells_each = "log" in config.message_events and every
        self.keeps = bool(config.message_events - {"log"} if every else config.message_events)

    # --- users -----------------------------------------------------------------------------

    def serve(self, user: object, config: Config) -> None:
        """Notes that ``user`` (an instrumentor or a middleware) tells through this object."""
        if not self.users:
            self._adopt(config)
        self.users.add(user)

    def release(self, user: object) -> None:
        self.users.discard(user)

    def reset(self) -> None:
        """Begins anew in a forked child: what the parent serves and served is not the child's."""
        self.lock = threading.Lock()
        self.stopping = False
        self.live = set()
        self.all_series = {}
        self._outbox = Outbox(self.flush)
        self._collector.reset()
        with suppress(Exception):
            _forget(self.meter_provider)

    # --- values ----------------------------------------------------------------------------

    def series(self, base: tuple[Any, ...], span_name: str) -> Series:
        """The series of a connection; ``base`` are the values of its side's base attributes."""
        with self.lock:
            found = self.all_series.get(base)
            if found is None:
                pairs = zip(self.side.base, base, strict=True)
                attributes = {name: value for name, value in pairs if value is not None}
                found = self.all_series[base] = Series(attributes, span_name)
        return found

    def event_type(self, raw: str) -> int:
        """The index in ``type_names`` of what is told for the event type ``raw``."""
        if self._open_types and len(raw.encode()) <= semconv.MAX_EVENT_TYPE_BYTES:
            with self.lock:
                if raw not in self.type_index and self._open_types:
                    self._open_types -= 1
                    self._add_type(raw)
                return self.type_index.get(raw, 0)
        return 0

    def _add_type(self, name: str) -> None:
        if name not in self.type_names:
            self.type_names.append(name)
        self.type_index[name] = self.type_names.index(name)

    def error_type(self, error: BaseException) -> str:
        kind = type(error)
        if kind.__module__ == "builtins":
            return self._error_types(kind.__qualname__)
        return self._error_types(f"{kind.__module__}.{kind.__qualname__}")

    # --- a connection's life ---------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        with self.lock:
            connection.series.opened[connection.resumed] += 1
            self.live.add(connection)
        if self.config.lifecycle_events == "all":
            self._emit(semconv.OPENED, connection)

    def sampled(self, connection: Connection, size: int, gap: float | None, wait: float) -> None:
        """Records one message: its size in bytes, the gap before it and its wait in seconds."""
        self.record(semconv.MESSAGE_SIZE, connection, size)
        if gap is not None:
            self.record(semconv.MESSAGE_GAP, connection, gap)
        self.record(semconv.SEND_DURATION, connection, wait)

    def stalled(self, connection: Connection, idle: float) -> None:
        if self.config.lifecycle_events == "all":
            self._emit(semconv.STALL, connection, SeverityNumber.WARN, {semconv.IDLE: idle})

    def stalled_too(self, count: int) -> None:
        """Tells, as one event, of the stalls beyond those that are told one by one."""
        if self.config.lifecycle_events == "all":
            extra = {semconv.STALLED_COUNT: count}
            self._emit(semconv.STALL, None, SeverityNumber.WARN, extra)

    def recovered(self, connection: Connection, idle: float) -> None:
        if self.config.lifecycle_events == "all":
            self._emit(semconv.RECOVERED, connection, extra={semconv.IDLE: idle})

    def leave(self, connection: Connection) -> bool:
        """Moves a connection's totals to its series; False if that has been done before."""
        with self.lock:
            if connection not in self.live:
                return False
            self.live.discard(connection)
            connection.series.closed.add(connection)
        return True

    def closed(self, connection: Connection, totals: dict[str, Any]) -> None:
        """Tells the ending: ``totals`` are also the last segment's attributes."""
        attributes = {**connection.series.attributes, semconv.HTTP_STATUS: connection.status}
        for name in (semconv.CLOSE_REASON, semconv.ERROR_TYPE):
            if name in totals:
                attributes[name] = totals[name]
        self.record(semconv.DURATION, connection, totals[semconv.TOTAL_DURATION], attributes)
        if self.config.lifecycle_events != "none":
            failed = totals[semconv.CLOSE_REASON] == semconv.ERROR
            severity = SeverityNumber.ERROR if failed else SeverityNumber.INFO
            self._emit(semconv.CLOSED, connection, severity, totals)

    def message(self, connection: Connection, segment: Segment, told: Told) -> None:
        """Tells a message of ``segment``, which may be over, as a log-based event."""
        at, extra = connection.unix(told.at), self._told(segment, told)
        self._emit(semconv.MESSAGE, connection, extra=extra, at=at, span=segment.span)

    def _told(self, segment: Segment, told: Told) -> dict[str, Any]:
        attributes = {
            semconv.MESSAGE_SEQUENCE: segment.before + told.number + 1,
            semconv.EVENT_TYPE: self.type_names[told.type],
            semconv.TOLD_SIZE: told.size,
        }
        if self.side is SERVER:
            attributes[semconv.TOLD_WAIT] = told.wait
        if told.id is not None:
            attributes[semconv.EVENT_ID] = told.id
        return attributes

    # --- spans -----------------------------------------------------------------------------

    def start_span(
        self,
        series: Series,
        context: Context,
        kind: SpanKind,
        at: int,
        attributes: dict[str, Any],
        links: Sequence[Link],
    ) -> Span:
        """Starts a segment's span at ``at`` (Unix, ns)."""
        try:
            return self._tracer.start_span(series.span_name, context, kind, attributes, links, at)
        except Exception:
            self.failed("a span's start")
            return INVALID_SPAN

    def end_span(
        self,
        connection: Connection,
        segment: Segment,
        at: int,
        totals: dict[str, Any] | None = None,
    ) -> None:
        """Ends a segment's span at ``at`` (Unix, ns), with the messages that it tells; the last one
        bears the connection's ``totals``.
        """
        attributes = {semconv.SEGMENT_MESSAGES: segment.count, **(totals or {})}

        def tell() -> None:
            span = segment.span
            try:
                messages = segment.told()
                if "span" in self.config.message_events:
                    told = [
                        (self._told(segment, each), connection.unix(each.at)) for each in messages
                    ]
                    events.add(span, semconv.MESSAGE, told)
                if "log" in self.config.message_events and not self.tells_each:
                    for each in messages:
                        self.message(connection, segment, each)
                span.set_attributes(attributes)
                if semconv.ERROR_TYPE in attributes:
                    span.set_status(Status(StatusCode.ERROR))
                span.end(at)
            except Exception:
                self.failed("a span's end")

        self._outbox.put(tell)

    # --- the SDK ---------------------------------------------------------------------------

    def snapshot(self) -> list[Connection]:
        with self.lock:
            return list(self.live)

    def flush(self) -> None:
        """Exports what spans and logs are queued; waits for it, so never on an event loop."""
        self._flush(self.providers.tracer or trace.get_tracer_provider())
        self._flush(self.providers.logger or _logs.get_logger_provider())
        self._outbox.flushed()

    @property
    def meter_provider(self) -> Any:
        return self.providers.meter or metrics.get_meter_provider()

    def empty(self, *, collect: bool = True) -> None:
        """Exports everything, in portions that the queues take. The metrics first: they wait for
        nothing, and are one export where the rest may be a hundred.
        """
        if collect:
            self._flush(self.meter_provider)
        self._outbox.empty()
        self.flush()

    def _flush(self, provider: object) -> None:
        flush = getattr(provider, "force_flush", None)
        # A meter provider that the application has shut down would collect once more, and complain.
        if flush is not None and not getattr(provider, "_shutdown", False):
            try:
                flush(FLUSH_MILLIS)
            except Exception:
                self.failed("flush")

    def failed(self, what: str) -> None:
        """Logs the exception being handled, the first time that ``what`` fails."""
        if what not in self.failures:
            self.failures.add(what)
            # A log may be exported by what is broken, and then raise as that does.
            with suppress(Exception):
                _log.warning("otel_sse: %s failed; this is logged once", what, exc_info=True)

    def record(
        self,
        metric: Metric,
        connection: Connection,
        value: float,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        """Records a value of a histogram, with the connection's base attributes or others."""
        record = self._histograms.get(metric)
        if record is None:
            return
        try:
            record(value, attributes or connection.series.attributes, connection.context())
        except Exception:
            self._histograms.pop(metric, None)
            self.failed(metric.name)

    def _emit(
        self,
        name: str,
        connection: Connection | None,
        severity: SeverityNumber = SeverityNumber.INFO,
        extra: dict[str, Any] | None = None,
        at: int | None = None,
        span: Span | None = None,
    ) -> None:
        """Tells a log-based event, of ``at`` (Unix, ns) or of now, and of ``span`` or of the
        connection's current one.
        """
        at = time.time_ns() if at is None else at
        context = connection.context(span) if connection else None

        def tell() -> None:
            try:
                self._logger.emit(
                    timestamp=at,
                    observed_timestamp=at,
                    context=context,
                    severity_number=severity,
                    severity_text=severity.name,
                    attributes={**(connection.attributes if connection else {}), **(extra or {})},
                    event_name=name,
                )
            except Exception:
                self.failed("log event")

        self._outbox.put(tell)


def _forget(provider: Any) -> None:
    """Has a forked child's SDK forget what the parent has told it of our instruments.

    It keeps that, and its locks as the fork found them: the child would tell the parent's
    histograms as its own, and wait for ever where a collection was under way. Private parts of the
    SDK, until https://github.com/open-telemetry/opentelemetry-python/issues/4345 is done.
    """
    consumer = getattr(provider, "_measurement_consumer", None)
    if consumer is None:
        return
    consumer._lock = threading.Lock()
    for storage in consumer._reader_storages.values():
        storage._lock = threading.RLock()
        matches = storage._instrument_view_instrument_matches
        for instrument in list(matches):
            if instrument.instrumentation_scope.name == semconv.SCOPE:
                del matches[instrument]
