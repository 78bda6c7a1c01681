"""The log-based events: a stream's opening, stall, recovery and close, and single messages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, set_span_in_context

from otel_sse import semconv
from otel_sse.config import Config
from otel_sse.telemetry.failures import FailureLog
from otel_sse.telemetry.throttle import EmitThrottle

# Of an event that no stream has. Without a context it would get the one that is current.
_NO_SPAN: Final = set_span_in_context(INVALID_SPAN, Context())


class EventSource(Protocol):
    """What an event needs of its stream."""

    @property
    def attributes(self) -> dict[str, Any]: ...

    def context(self, span: Span | None = None) -> Context:
        """The context of ``span``, or of the stream's current segment."""


class LogEvents:
    """Emits events through ``throttle``; ``config`` chooses which."""

    def __init__(
        self, logger: Logger, config: Config, throttle: EmitThrottle, failures: FailureLog
    ) -> None:
        self.config = config
        self._logger = logger
        self._throttle = throttle
        self._failures = failures

    def opened(self, stream: EventSource) -> None:
        if self.config.lifecycle_events == "all":
            self._emit(semconv.OPENED, stream)

    def stalled(self, stream: EventSource, idle: float) -> None:
        """``idle``: seconds without a message."""
        if self.config.lifecycle_events == "all":
            self._emit(semconv.STALL, stream, SeverityNumber.WARN, {semconv.IDLE: idle})

    def stall_summary(self, count: int) -> None:
        """One event for ``count`` stalls that have none of their own."""
        if self.config.lifecycle_events == "all":
            extra = {semconv.STALLED_COUNT: count}
            self._emit(semconv.STALL, None, SeverityNumber.WARN, extra)

    def recovered(self, stream: EventSource, idle: float) -> None:
        """``idle``: how many seconds the stall lasted."""
        if self.config.lifecycle_events == "all":
            self._emit(semconv.RECOVERED, stream, extra={semconv.IDLE: idle})

    def closed(self, stream: EventSource, totals: Mapping[str, Any]) -> None:
        if self.config.lifecycle_events != "none":
            failed = totals[semconv.CLOSE_REASON] == semconv.ERROR
            severity = SeverityNumber.ERROR if failed else SeverityNumber.INFO
            self._emit(semconv.CLOSED, stream, severity, totals)

    def message(
        self, stream: EventSource, span: Span, at: int, attributes: Mapping[str, Any]
    ) -> None:
        """A message of ``at`` (Unix, ns) in the segment of ``span``, which may have ended."""
        self._emit(semconv.MESSAGE, stream, extra=attributes, at=at, span=span)

    def _emit(
        self,
        name: str,
        stream: EventSource | None,
        severity: SeverityNumber = SeverityNumber.INFO,
        extra: Mapping[str, Any] | None = None,
        at: int | None = None,
        span: Span | None = None,
    ) -> None:
        at = time.time_ns() if at is None else at
        context = stream.context(span) if stream else _NO_SPAN

        def emit() -> None:
            try:
                self._logger.emit(
                    timestamp=at,
                    observed_timestamp=at,
                    context=context,
                    severity_number=severity,
                    severity_text=severity.name,
                    attributes={**(stream.attributes if stream else {}), **(extra or {})},
                    event_name=name,
                )
            except Exception:
                self._failures.log_failure_once("log event")

        self._throttle.submit(emit)
