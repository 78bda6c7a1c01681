"""What a probe finds in a reading, and of a reconnection: pure functions on plain objects."""

from collections import deque
from typing import Any

import pytest

from otel_sse.cli.client import Reading
from otel_sse.cli.judge import judge
from otel_sse.cli.resume import compare, judge_resume
from otel_sse.cli.rhythm import Buffering

QUIET = Buffering("none", "rhythm", None, "")
GOOD = {"content-type": "text/event-stream", "cache-control": "no-store"}


def reading(stream: bytes = b"id: 1\ndata: x\n\n", **values: Any) -> Reading:
    """A good one over HTTP/2, but for what is given."""
    given = {"status": 200, "http_version": "HTTP/2", "headers": GOOD, **values}
    made = Reading(duration=1.0, headers_after=0.01, first_byte=0.01, last_message=0.9)
    for name, value in given.items():
        setattr(made, name, value)
    made.parser.feed(stream)
    return made


def codes(made: Reading, buffering: Buffering = QUIET) -> list[str]:
    return [each.code for each in judge(made, buffering)]


def test_a_good_reading_has_no_finding() -> None:
    """Not even a note."""
    assert codes(reading()) == []


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"headers_after": 3.0}, "slow-headers"),
        ({"longest_silence": 20.0}, "no-keep-alive"),
        ({"duration": 30.0}, "no-keep-alive"),
        ({"http_version": "HTTP/1.1"}, "http-1.1"),
        ({"headers": {"content-type": "text/event-stream"}}, "cache-control"),
        ({"headers": {**GOOD, "content-encoding": "gzip"}}, "content-coding"),
        ({"headers": {**GOOD, "via": "1.1 nginx"}}, "x-accel-buffering"),
        ({"longest_message": 2_000_000}, "large-message"),
        ({"stream": b"data: x\n\n"}, "no-ids"),
        ({"stream": b": ping\n\n"}, "no-messages"),
        ({"stream": b"retry: 0\nid: 1\ndata: x\n\n"}, "zero-retry"),
        ({"stream": b"retry: 900000\nid: 1\ndata: x\n\n"}, "long-retry"),
        ({"ending": "cut", "error": "reset"}, "cut"),
        ({"ending": "cut", "error": "bad header", "failure": "coding"}, "undecodable"),
        ({"status": 500}, "status"),
        ({"status": 302, "location": "http://x/y"}, "redirect"),
        ({"status": 204}, "no-content"),
        ({"status": None}, "no-answer"),
        ({"ending": "failed", "error": "refused"}, "no-response"),
        ({"headers": {"content-type": "text/html"}}, "media-type"),
    ],
)
def test_each_fault_is_found_alone(values: dict[str, Any], code: str) -> None:
    """One thing is wrong: one finding, which has something to read."""
    found = judge(reading(**values), QUIET)
    assert [each.code for each in found] == [code]
    assert found[0].summary.endswith(".")


def test_who_reads_to_the_end_is_not_sent_back_for_longer() -> None:
    """Only where the probe stopped can more time show a message."""
    assert "--for" in judge(reading(b"", ending="stopped"), QUIET)[0].remedy
    assert "--for" not in judge(reading(b"", ending="ended"), QUIET)[0].remedy


def test_comments_keep_a_silent_stream_alive() -> None:
    """A stream that sends them is not complained of."""
    assert codes(reading(b"id: 1\ndata: x\n\n: ping\n\n", longest_silence=20.0)) == []


def test_headers_may_say_it_in_any_case() -> None:
    """HTTP's values."""
    headers = {"content-type": "Text/Event-Stream; charset=UTF-8", "cache-control": "No-Cache"}
    assert codes(reading(headers=headers)) == []


def ids(*values: str) -> Reading:
    made = reading(b"".join(b"id: %s\ndata\n\n" % each.encode() for each in values))
    made.ids = deque(values)
    return made


def resumed(first: Reading, second: Reading, steady: Reading) -> tuple[int, int | None, set[str]]:
    found = compare(first, second, steady)
    return found.repeated, found.lost, {each.code for each in judge_resume(found, first)}


def test_a_good_reconnection() -> None:
    """It goes on where the first one ended; what the steady one got later is not lost."""
    steady = ids("a", "b", "c", "d", "e")
    assert resumed(ids("a", "b"), ids("c", "d"), steady) == (0, 0, set())


def test_lost_messages_are_those_that_the_steady_one_got() -> None:
    """Two of them."""
    steady = ids("a", "b", "c", "d", "e")
    assert resumed(ids("a", "b"), ids("e"), steady) == (0, 2, {"resume-loses"})


def test_nothing_after_the_reconnection_is_a_loss() -> None:
    """Where the steady one got more."""
    assert resumed(ids("a"), reading(b""), ids("a", "b")) == (
        0,
        1,
        {"resume-loses", "resume-silent"},
    )


def test_repeated_messages_are_counted() -> None:
    """Also where each connection has its own ids."""
    assert resumed(ids("1", "2"), ids("1", "2"), ids("x"))[0] == 2


def test_ids_that_count_are_compared_as_numbers() -> None:
    """Where the steady connection knows other ids."""
    assert resumed(ids("1", "2"), ids("5"), ids("x")) == (0, 2, {"resume-loses"})


def test_what_cannot_be_known_is_not_claimed() -> None:
    """Ids that neither count nor are shared."""
    assert resumed(ids("a", "b"), ids("k"), ids("x")) == (0, None, set())
    assert {each.code for each in judge_resume(None, ids())} == {"not-resumable"}
