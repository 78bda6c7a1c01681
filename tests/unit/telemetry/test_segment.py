"""What a segment keeps of its messages, and what it tells of them."""

import sys

import pytest
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import INVALID_SPAN

from otel_sse.segment import Segment


def segment(*, every: bool = False, limit: int | None = 128, app_events: int = 0) -> Segment:
    limits = SpanLimits(max_events=limit if limit is not None else SpanLimits.UNSET)
    provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    span = provider.get_tracer("test").start_span("SSE")
    for _ in range(app_events):
        span.add_event("application")
    return Segment(span, 0, keeps=True, every=every)


def keep(made: Segment, count: int, slow: tuple[int, ...] = ()) -> list[int]:
    for number in range(count):
        made.keep(float(number), number / 1000, number * 10, 1)
        if number in slow:
            made.keep_slow(float(number), number / 1000, number * 10, 1)
    return [told.number for told in made.told()]


def test_a_short_segment_tells_every_message() -> None:
    """Up to 32 messages nothing is left out."""
    for count in range(33):
        assert keep(segment(), count) == list(range(count))


@pytest.mark.parametrize("count", [33, 47, 48, 49, 500, 5003])
def test_a_long_segment_tells_its_first_and_last_sixteen(count: int) -> None:
    """How it began, and what came right before the end."""
    assert keep(segment(), count) == [*range(16), *range(count - 16, count)]


def test_slow_sends_between_are_told_too_up_to_eight() -> None:
    """A slow send in the middle is told in its place; the ninth is not."""
    slow = tuple(range(100, 200, 10))
    assert keep(segment(), 500, slow) == [*range(16), *slow[:8], *range(484, 500)]


def test_figures_come_back_as_they_were_kept() -> None:
    """Time, wait, size and type survive the packing, sizes beyond 4 GiB too."""
    made = segment()
    made.keep(12.25, 0.125, 2**33, 7)
    (told,) = made.told()
    assert (told.at, told.wait, told.size, told.type) == (12.25, 0.125, 2**33, 7)


def test_every_message_fills_a_segment_at_forty() -> None:
    """Under ``all`` a segment is full at 40 messages and tells them all."""
    made = segment(every=True)
    assert [made.keep(0.0, 0.0, 1, 1) for _ in range(40)] == [False] * 39 + [True]
    assert [told.number for told in made.told()] == list(range(40))


@pytest.mark.parametrize(("limit", "app_events", "told"), [(10, 0, 10), (10, 4, 6), (128, 100, 28)])
def test_the_spans_own_limit_less_the_applications_events_holds(
    limit: int, app_events: int, told: int
) -> None:
    """Our events never push one of the application's out of the span."""
    made = segment(limit=limit, app_events=app_events)
    numbers = keep(made, 100)
    assert len(numbers) == told
    assert numbers == sorted(numbers)
    assert {0, 99} <= set(numbers)


@pytest.mark.parametrize("every", [True, False])
def test_a_span_without_room_is_told_nothing_and_never_full(every: bool) -> None:
    """With an event limit of 0 no message is kept, and no segment is cut for it."""
    made = segment(every=every, limit=0)
    assert not any(made.keep(0.0, 0.0, 1, 1) for _ in range(100))
    assert made.told() == []
    assert made.count == 100


def test_nothing_is_kept_where_the_span_does_not_record() -> None:
    """An unsampled connection costs no memory for its messages."""
    made = Segment(INVALID_SPAN, 0, keeps=True, every=True)
    assert not any(made.keep(0.0, 0.0, 1, 1) for _ in range(100))
    assert made.told() == []


def test_kept_messages_stay_below_two_kilobytes() -> None:
    """The memory of what is kept is bounded, however long the segment."""
    for every, count in ((False, 100_000), (True, 40)):
        made = segment(every=every)
        keep(made, count)
        assert sys.getsizeof(made._kept) < 2048


def test_ids_are_kept_with_the_messages_that_are() -> None:
    """Where ids are captured, first and last messages bear theirs, and memory stays bounded."""
    made = segment()
    for number in range(1000):
        made.keep(0.0, 0.0, 1, 1)
        made.keep_id(f"id-{number}" + "x" * 100)
    told = made.told()
    assert [each.id for each in told] == [f"id-{each.number}".ljust(64, "x") for each in told]
    assert len(made._ids or ()) <= 100
