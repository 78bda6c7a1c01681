"""Span events that are added directly are exported and dropped as those of ``add_event``."""

from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, Span

from otel_sse.telemetry import sdk_internals

EVENTS: list[sdk_internals.SpanEvent] = [
    ({"sse.event.type": f"tick-{number}", "sse.message.size": number, "wait": number / 7}, number)
    for number in range(1, 6)
]


def made(**limits: Any) -> Any:
    provider = TracerProvider(span_limits=SpanLimits(**limits), shutdown_on_exit=False)
    return provider.get_tracer("test").start_span("SSE", start_time=1)


def by_the_api(span: Span) -> None:
    for attributes, at in EVENTS:
        span.add_event("sse.message", attributes, at)


def exported(span: Any) -> Any:
    """What a receiver gets of the events, and the count of dropped ones."""
    span.end(9)
    read: ReadableSpan = span
    (resource,) = encode_spans([read]).resource_spans
    (encoded,) = resource.scope_spans[0].spans
    return list(encoded.events), encoded.dropped_events_count, read.to_json().count("tick-")


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_events": 3},
        {"max_events": 0},
        {"max_event_attributes": 2},
        {"max_attribute_length": 4},
        {"max_event_attributes": 2, "max_events": 3},
    ],
)
def test_both_ways_export_the_same(limits: dict[str, int]) -> None:
    """Events, their order and what a span's limits cut or drop are those of ``add_event``."""
    direct, official = made(**limits), made(**limits)
    for span in (direct, official):
        span.add_event("application", {"mine": True}, 1)
    sdk_internals.add_span_events(direct, "sse.message", EVENTS)
    by_the_api(official)
    assert exported(direct) == exported(official)


def test_events_are_added_directly_where_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the SDK of these tests that is possible; the cost would rise unnoticed otherwise."""
    span = made()
    monkeypatch.setattr(type(span), "add_event", None)
    sdk_internals.add_span_events(span, "sse.message", EVENTS)
    assert len(span.events) == len(EVENTS)


def test_a_span_of_another_class_gets_add_event() -> None:
    """A span that is not the SDK's own, or holds its events otherwise, gets ``add_event``."""

    class Other(NonRecordingSpan):
        def __init__(self) -> None:
            super().__init__(INVALID_SPAN.get_span_context())
            self.added: list[Any] = []

        def is_recording(self) -> bool:
            return True

        def add_event(self, name: str, attributes: Any = None, timestamp: Any = None) -> None:
            self.added.append((attributes, timestamp))

    other = Other()
    sdk_internals.add_span_events(other, "sse.message", EVENTS)
    assert other.added == EVENTS


def test_events_that_are_held_otherwise_are_added_by_the_api() -> None:
    """A later SDK may keep them in something else, or bound them in another way."""
    for name in ("_events", "_limits"):
        span = made()
        added: list[Any] = []
        setattr(span, name, [])
        span.add_event = lambda *event, added=added: added.append(event)
        sdk_internals.add_span_events(span, "sse.message", EVENTS)
        assert added == [("sse.message", *event) for event in EVENTS]


def test_a_span_that_is_over_takes_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """The SDK logs that, as it does for any event."""
    span = made()
    span.end()
    sdk_internals.add_span_events(span, "sse.message", EVENTS[:1])
    assert len(span.events) == 0
    assert "ended span" in caplog.text
