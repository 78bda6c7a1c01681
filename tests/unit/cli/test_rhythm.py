"""Whether something buffers, judged from times: pure functions."""

import pytest

from otel_sse.cli.rhythm import Arrival, Buffering, Chunk, judge


def arrivals(*times: float, sent: tuple[float, ...] = ()) -> list[Arrival]:
    """Messages that came at ``times``, written at ``sent`` (s)."""
    written = [int(each * 1e9) for each in sent] or [None] * len(times)
    return [Arrival(time, at) for time, at in zip(times, written, strict=True)]


def judged(
    came: list[Arrival], chunks: list[Chunk] | None = None, *, ended: bool = False
) -> Buffering:
    each = [Chunk(one.time, 10, False) for one in came]
    return judge(came, chunks or each, started=0.0, ended=ended)


EVEN = tuple(number / 2 for number in range(12))


def test_messages_that_come_as_written_are_not_buffered() -> None:
    """Also where clocks differ by hours."""
    found = judged(arrivals(*EVEN, sent=tuple(each + 7200 for each in EVEN)))
    assert (found.state, found.evidence) == ("none", "trace_comments")


def test_messages_written_apart_that_come_together_are_buffered() -> None:
    """Six written half a second apart come at once: the first was held for 2.5 s."""
    found = judged(arrivals(*[3.0] * 6, *[6.0] * 6, sent=EVEN))
    assert (found.state, found.evidence) == ("found", "trace_comments")
    assert found.held == pytest.approx(2.5)


def test_a_burst_that_was_written_as_one_is_not_buffered() -> None:
    """An application that sends six at once every three seconds has that rhythm itself."""
    burst = (*[0.0] * 6, *[3.0] * 6)
    found = judged(arrivals(*burst, sent=burst))
    assert found.state == "none"


def test_a_busy_reader_is_not_a_proxy() -> None:
    """What came together because this process was late is not held against the way."""
    sent = tuple(number / 10 for number in range(12))
    came = [Arrival(0.2 * (n // 2) + 0.1, int(t * 1e9)) for n, t in enumerate(sent)]
    assert judge(came, [], started=0.0, ended=False).state == "found"
    assert judge(came, [], started=0.0, ended=False, late=0.2).state == "none"


def test_a_slow_network_is_not_a_buffer() -> None:
    """Each message late by two seconds, but as far apart as it was written."""
    found = judged(arrivals(*[each + 2 for each in EVEN], sent=EVEN))
    assert found.state == "none"


def test_pauses_within_messages_are_suspected() -> None:
    """Blocks of 4096 bytes that end anywhere: a full buffer was sent."""
    came = arrivals(*[t + 0.001 * n for t in range(1, 5) for n in range(5)])
    chunks = [Chunk(float(t), 4096, True) for t in range(1, 6)]
    found = judged(came, chunks)
    assert (found.state, found.evidence) == ("suspected", "rhythm")
    assert "4096 bytes" in found.detail


def test_bursts_are_suspected() -> None:
    """Four at a time, a second apart."""
    found = judged(arrivals(*[float(t) for t in range(4) for _ in range(4)]))
    assert (found.state, found.evidence) == ("suspected", "rhythm")


def test_all_at_the_end_is_suspected() -> None:
    """The whole response at once, long after the request, and then the end."""
    came = arrivals(*[5.0] * 8)
    assert judged(came, ended=True).state == "suspected"
    # A replay that goes on looks the same, and is none.
    assert judged(came).state == "unknown"


def test_one_by_one_is_no_buffer() -> None:
    """An even rhythm without trace comments."""
    assert judged(arrivals(*EVEN)).state == "none"


def test_too_few_messages_are_not_judged() -> None:
    """Nothing is claimed of what cannot be known."""
    assert judged(arrivals(1.0, 2.0)).state == "unknown"
    assert judged([]).state == "unknown"
