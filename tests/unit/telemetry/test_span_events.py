"""What the short way into the events of a span must not change: what is exported and dropped."""

from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, Span

from otel_sse import events

TOLD: list[events.Event] = [
    ({"sse.event.type": f"tick-{number}", "sse.message.size": number, "wait": number / 7}, number)
    for number in range(1, 6)
]


def made(**limits: Any) -> Any:
    provider = TracerProvider(span_limits=SpanLimits(**limits), shutdown_on_exit=False)
    return provider.get_tracer("test").start_span("SSE", start_time=1)


def by_the_api(span: Span) -> None:
    for attributes, at in TOLD:
        span.add_event("sse.message", attributes, at)


def exported(span: Any) -> Any:
    """What a receiver gets of the events, and how many it is told were dropped."""
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
    straight, official = made(**limits), made(**limits)
    for span in (straight, official):
        span.add_event("application", {"mine": True}, 1)
    events.add(straight, "sse.message", TOLD)
    by_the_api(official)
    assert exported(straight) == exported(official)


def test_the_short_way_is_taken_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the SDK of these tests it is; else what it saves is lost without a sign."""
    span = made()
    monkeypatch.setattr(type(span), "add_event", None)
    events.add(span, "sse.message", TOLD)
    assert len(span.events) == len(TOLD)


def test_a_span_of_another_kind_is_asked_by_the_api() -> None:
    """A span that is not the SDK's own, or holds its events otherwise, gets ``add_event``."""

    class Other(NonRecordingSpan):
        def __init__(self) -> None:
            super().__init__(INVALID_SPAN.get_span_context())
            self.told: list[Any] = []

        def is_recording(self) -> bool:
            return True

        def add_event(self, name: str, attributes: Any = None, timestamp: Any = None) -> None:
            self.told.append((attributes, timestamp))

    other = Other()
    events.add(other, "sse.message", TOLD)
    assert other.told == TOLD


def test_events_that_are_held_otherwise_are_added_by_the_api() -> None:
    """A later SDK may keep them in something else, or bound them in another way."""
    for name in ("_events", "_limits"):
        span = made()
        added: list[Any] = []
        setattr(span, name, [])
        span.add_event = lambda *event, added=added: added.append(event)
        events.add(span, "sse.message", TOLD)
        assert added == [("sse.message", *event) for event in TOLD]


def test_a_span_that_is_over_takes_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """The SDK says so in the log, as it does of anyone's events."""
    span = made()
    span.end()
    events.add(span, "sse.message", TOLD[:1])
    assert len(span.events) == 0
    assert "ended span" in caplog.text
