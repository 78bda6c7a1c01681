"""What a segment buffers of its messages, and what it selects at its end."""

import sys

import pytest
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import INVALID_SPAN

from otel_sse.telemetry.segment import Segment


def segment(*, every: bool = False, limit: int | None = 128, app_events: int = 0) -> Segment:
    limits = SpanLimits(max_events=limit if limit is not None else SpanLimits.UNSET)
    provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    span = provider.get_tracer("test").start_span("SSE")
    for _ in range(app_events):
        span.add_event("application")
    return Segment(span, 0, buffers=True, every=every)


def append(made: Segment, count: int, slow: tuple[int, ...] = ()) -> list[int]:
    for number in range(count):
        made.append(float(number), number / 1000, number * 10, 1)
        if number in slow:
            made.append_slow(float(number), number / 1000, number * 10, 1)
    return [each.number for each in made.selected_messages()]


def test_a_short_segment_records_every_message() -> None:
    """Up to 32 messages all are recorded."""
    for count in range(33):
        assert append(segment(), count) == list(range(count))


@pytest.mark.parametrize("count", [33, 47, 48, 49, 500, 5003])
def test_a_long_segment_records_its_first_and_last_sixteen(count: int) -> None:
    """How it began, and what came right before the end."""
    assert append(segment(), count) == [*range(16), *range(count - 16, count)]


@pytest.mark.parametrize("count", [17, 33, 47, 48, 49, 500])
def test_each_message_has_its_own_figures(count: int) -> None:
    """The last ones, too, whose slots have been written before."""
    made = segment()
    for number in range(count):
        made.append(number + 0.5, number / 8, number * 10, number + 3)
    for each in made.selected_messages():
        figures = (each.at, each.wait, each.size, each.type)
        number = each.number
        assert figures == (number + 0.5, number / 8, number * 10, number + 3)


def test_a_slow_send_among_the_first_sixteen_takes_no_place_of_the_eight() -> None:
    """They are recorded anyway."""
    middle = tuple(range(100, 180, 10))
    assert append(segment(), 500, (0, 14, 15, *middle)) == [*range(16), *middle, *range(484, 500)]
    # The seventeenth is the first whose slot is written again.
    assert append(segment(), 500, (16,)) == [*range(17), *range(484, 500)]


def test_slow_sends_between_are_recorded_too_up_to_eight() -> None:
    """A slow send in the middle is recorded in its place; the ninth is not."""
    slow = tuple(range(100, 200, 10))
    assert append(segment(), 500, slow) == [*range(16), *slow[:8], *range(484, 500)]


def test_figures_come_back_as_they_were_buffered() -> None:
    """Time, wait, size and type survive the packing, sizes beyond 4 GiB too."""
    made = segment()
    made.append(12.25, 0.125, 2**33, 7)
    (message,) = made.selected_messages()
    assert (message.at, message.wait, message.size, message.type) == (12.25, 0.125, 2**33, 7)


def test_every_message_fills_a_segment_at_forty() -> None:
    """Under ``all`` a segment is full at 40 messages and records them all."""
    made = segment(every=True)
    assert [made.append(0.0, 0.0, 1, 1) for _ in range(40)] == [False] * 39 + [True]
    assert [each.number for each in made.selected_messages()] == list(range(40))


@pytest.mark.parametrize(
    ("limit", "app_events", "expected"), [(10, 0, 10), (10, 4, 6), (128, 100, 28)]
)
def test_the_spans_own_limit_less_the_applications_events_holds(
    limit: int, app_events: int, expected: int
) -> None:
    """Our events never push one of the application's out of the span."""
    made = segment(limit=limit, app_events=app_events)
    numbers = append(made, 100)
    assert len(numbers) == expected
    assert numbers == sorted(numbers)
    assert {0, 99} <= set(numbers)


@pytest.mark.parametrize("every", [True, False])
def test_a_span_without_capacity_records_nothing_and_is_never_full(every: bool) -> None:
    """With an event limit of 0 no message is buffered, and no segment is cut for it."""
    made = segment(every=every, limit=0)
    assert not any(made.append(0.0, 0.0, 1, 1) for _ in range(100))
    assert made.selected_messages() == []
    assert made.count == 100


def test_nothing_is_buffered_where_the_span_does_not_record() -> None:
    """An unsampled connection costs no memory for its messages."""
    made = Segment(INVALID_SPAN, 0, buffers=True, every=True)
    assert not any(made.append(0.0, 0.0, 1, 1) for _ in range(100))
    assert made.selected_messages() == []


def test_buffered_messages_stay_below_two_kilobytes() -> None:
    """The memory of the buffer is bounded, however long the segment."""
    for every, count in ((False, 100_000), (True, 40)):
        made = segment(every=every)
        append(made, count)
        assert sys.getsizeof(made._buffer) < 2048


def test_ids_are_buffered_with_their_messages() -> None:
    """Where ids are captured, first and last messages bear theirs, and memory stays bounded."""
    made = segment()
    for number in range(1000):
        made.append(0.0, 0.0, 1, 1)
        made.set_event_id(f"id-{number}" + "x" * 100)
    messages = made.selected_messages()
    assert [each.id for each in messages] == [
        f"id-{each.number}".ljust(64, "x") for each in messages
    ]
    assert len(made._ids or ()) <= 100
