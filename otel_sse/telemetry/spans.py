"""The spans: one for each segment of a stream, with its messages as events at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, Status, StatusCode, Tracer

from otel_sse import semconv
from otel_sse.config import Config
from otel_sse.semconv import SERVER, Role
from otel_sse.telemetry.cardinality import EventTypes
from otel_sse.telemetry.failures import FailureLog
from otel_sse.telemetry.log_events import EventSource, LogEvents
from otel_sse.telemetry.sdk_internals import add_span_events
from otel_sse.telemetry.segment import RecordedMessage, Segment
from otel_sse.telemetry.throttle import EmitThrottle


class SpanSource(EventSource, Protocol):
    """What the end of a span needs of its stream."""

    def unix_time(self, at: float) -> int:
        """Monotonic seconds as Unix nanoseconds."""


class Spans:
    """Starts and ends the spans of segments; ends go through ``throttle``."""

    def __init__(
        self,
        tracer: Tracer,
        role: Role,
        config: Config,
        event_types: EventTypes,
        events: LogEvents,
        throttle: EmitThrottle,
        failures: FailureLog,
    ) -> None:
        self.config = config
        self._tracer = tracer
        self._role = role
        self._event_types = event_types
        self._events = events
        self._throttle = throttle
        self._failures = failures

    @property
    def emits_each_message(self) -> bool:
        """Every message is a log event at once, rather than at the end of its segment."""
        config = self.config
        return "log" in config.message_events and config.message_event_detail == "all"

    @property
    def buffers_messages(self) -> bool:
        """Messages are recorded at the end of their segment."""
        config = self.config
        if config.message_event_detail == "all":
            return bool(config.message_events - {"log"})
        return bool(config.message_events)

    def start(
        self,
        name: str,
        context: Context,
        kind: SpanKind,
        at: int,
        attributes: Mapping[str, Any],
        links: Sequence[Link],
    ) -> Span:
        """Starts a span at ``at`` (Unix, ns) below ``context``."""
        try:
            return self._tracer.start_span(name, context, kind, attributes, links, at)
        except Exception:
            self._failures.log_failure_once("a span's start")
            return INVALID_SPAN

    def end(
        self,
        stream: SpanSource,
        segment: Segment,
        at: int,
        totals: Mapping[str, Any] | None = None,
    ) -> None:
        """Ends a segment's span at ``at`` (Unix, ns); the last one has the stream's ``totals``."""
        attributes = {semconv.SEGMENT_MESSAGES: segment.count, **(totals or {})}

        def end() -> None:
            span = segment.span
            try:
                self._record_messages(stream, segment)
                span.set_attributes(attributes)
                if semconv.ERROR_TYPE in attributes:
                    span.set_status(Status(StatusCode.ERROR))
                span.end(at)
            except Exception:
                self._failures.log_failure_once("a span's end")

        self._throttle.submit(end)

    def emit_message(self, stream: SpanSource, segment: Segment, message: RecordedMessage) -> None:
        """Emits a message as a log event."""
        at = stream.unix_time(message.at)
        self._events.message(stream, segment.span, at, self._attributes(segment, message))

    def _record_messages(self, stream: SpanSource, segment: Segment) -> None:
        messages = segment.selected_messages()
        if "span" in self.config.message_events:
            events = [
                (self._attributes(segment, each), stream.unix_time(each.at)) for each in messages
            ]
            add_span_events(segment.span, semconv.MESSAGE, events)
        if "log" in self.config.message_events and not self.emits_each_message:
            for each in messages:
                self.emit_message(stream, segment, each)

    def _attributes(self, segment: Segment, message: RecordedMessage) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            semconv.MESSAGE_SEQUENCE: segment.before + message.number + 1,
            semconv.EVENT_TYPE: self._event_types.names[message.type],
            semconv.EVENT_MESSAGE_SIZE: message.size,
        }
        if self._role is SERVER:
            attributes[semconv.EVENT_SEND_DURATION] = message.wait
        if message.id is not None:
            attributes[semconv.EVENT_ID] = message.id[: semconv.MAX_EVENT_ID]
        return attributes
