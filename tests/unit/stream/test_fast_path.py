"""A message on the fast path is reported as one that is parsed."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.server_streams import INFO, TICK, obtain
from opentelemetry.context import Context

from otel_sse.stream import base, segments, sharing, stalls
from otel_sse.stream.request import Request
from otel_sse.stream.server import ServerStream
from otel_sse.telemetry.stall_state import StallState
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.parser import EventStreamParser

STARTED = 1e6


class ParsesAll(EventStreamParser):
    """Recognises no message by its template."""

    __slots__ = ()

    def match_template(self, _: Any) -> None:
        return None


class FastPath(EventStreamParser):
    """Counts how often it recognises one."""

    __slots__ = ()
    hits = 0

    def match_template(self, chunk: Any) -> str | None:
        kind = super().match_template(chunk)
        FastPath.hits += kind is not None
        return kind


@contextlib.contextmanager
def connected(telemetry: Telemetry) -> Iterator[ServerStream]:
    request = Request().state
    request.started, request.context = STARTED, Context()
    stream = sharing.open_server_stream(telemetry, INFO, request)
    assert stream is not None
    yield stream
    stream.close(completed=True)
    request.finish()


def sends(seed: int) -> Iterator[tuple[bytes, float, float]]:
    """Chunks with the times of their send: mostly one message like the last, often many at once,
    seldom slow; some 250 a second.
    """
    rng = random.Random(seed)
    chunks = [
        *(b"data: x\n\n", TICK, b"id: 5\ndata: zz\n\n", b": keep-alive\n\n"),
        *(
            b"data: a\n\ndata: b\n\n",
            b"data: ",
            b"\n\n",
            b"event: " + b"t" * 300 + b"\ndata: y\n\n",
        ),
    ]
    now, chunk = STARTED + 0.1, chunks[0]
    for _ in range(2000):
        if rng.random() < 0.1:
            chunk = rng.choice(chunks)
        wait = rng.choice([0.001, 0.01, 0.2, 0.6, 1.1]) if rng.random() < 0.005 else 0.0
        yield chunk, now, now + wait
        now += wait + rng.choice([0.0001, 0.003, 0.009])


def reported(
    parser: type[EventStreamParser], seed: int, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[Any]:
    """Everything that is reported of a stream."""
    backend = Backend()
    monkeypatch.setattr(base, "EventStreamParser", parser)
    monkeypatch.setattr(base, "perf_counter", lambda: STARTED + 500)
    monkeypatch.setattr(segments.random, "uniform", lambda low, high: (low + high) / 2)
    user = object()
    telemetry = obtain(backend, user, **options)
    with connected(telemetry) as stream:
        for chunk, began, ended in sends(seed):
            stream.on_send(chunk, began, ended)
    # What the throttle still holds is emitted: a burst of segments is more than it lets pass.
    telemetry.export()
    metrics = {
        (name, str(sorted(point.attributes.items()))): (
            getattr(point, "value", None),
            getattr(point, "count", None),
            round(getattr(point, "sum", 0.0), 6),
        )
        for name, metric in backend.metrics().items()
        for point in metric.data.data_points
    }
    spans = [
        (
            _without_id(span.attributes),
            [
                (each.name, each.timestamp - span.start_time, each.attributes)
                for each in span.events
            ],
            span.dropped_events,
            len(span.links),
        )
        for span in backend.spans()
    ]
    events = [(each.event_name, _without_id(each.attributes)) for each in backend.events()]
    sharing.release_telemetry(user, telemetry)
    return [metrics, spans, events]


def _without_id(attributes: Any) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name != "sse.connection.id"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"message_event_detail": "all"},
        {"message_events": "span,log", "message_event_detail": "all"},
        {"segment_seconds": 5},
        {"capture_event_id": True},
        {"event_types": "tick"},
    ],
    ids=str,
)
def test_both_paths_report_the_same(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every metric, span and event is equal, whichever path a message takes."""
    FastPath.hits = 0
    for seed in range(3):
        assert reported(FastPath, seed, monkeypatch, **options) == reported(
            ParsesAll, seed, monkeypatch, **options
        )
    # Nothing takes the fast path where ids are captured or every message is emitted at once.
    each = options.get("message_events") == "span,log"
    assert (FastPath.hits > 200) == (not each and "capture_event_id" not in options)


def repeat(stream: ServerStream, count: int, at: float) -> None:
    """Sends the same message that often, faster than all of them are sampled."""
    for number in range(count):
        began = STARTED + at + number / 10_000
        stream.on_send(TICK, began, began)


def test_a_configuration_that_changes_while_a_stream_lives(backend: Backend) -> None:
    """A type that is recorded from now on is counted, and so is every message of it."""
    first, second = object(), object()
    telemetry = obtain(backend, first, event_types="other")
    with connected(telemetry) as stream:
        repeat(stream, 1000, 1)
        sharing.release_telemetry(first, telemetry)
        assert obtain(backend, second, event_types="tick,tock") is telemetry
        repeat(stream, 1000, 2)
        assert sum(stream.counts.messages) == stream.sequence == 2000
        assert stream.io == 2000 * len(TICK)
        assert backend.value("sse.server.messages", sse__event__type="tick") == 1000
    sharing.release_telemetry(second, telemetry)


def test_every_message_is_recorded_once_configured(backend: Backend) -> None:
    """Where the configuration changes to that, the live streams follow at once."""
    first, second = object(), object()
    telemetry = obtain(backend, first)
    with connected(telemetry) as stream:
        repeat(stream, 1000, 1)
        sharing.release_telemetry(first, telemetry)
        obtain(backend, second, message_events="log", message_event_detail="all")
        repeat(stream, 50, 2)
        assert len(backend.events("sse.message")) == 50
    sharing.release_telemetry(second, telemetry)


@pytest.mark.parametrize("apart", [1e-4, 1.0], ids=["dense", "sparse"])
def test_a_send_that_ends_behind_a_later_one_takes_no_time_back(
    apart: float,
    backend: Backend,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two tasks may send on one stream: it is idle since the send that began last, and no gap
    between two messages is negative. Dense messages take the fast path, sparse ones are sampled.
    """
    monkeypatch.setattr(base, "EventStreamParser", FastPath)
    FastPath.hits = 0
    user = object()
    telemetry = obtain(backend, user)
    with connected(telemetry) as stream:
        for number in range(1000):
            at = STARTED + 1 + number * apart
            stream.on_send(TICK, at, at)
            stream.on_send(TICK, at - apart / 2, at + apart / 4)
            assert stream.idle(at + 5) == pytest.approx(5)
    sharing.release_telemetry(user, telemetry)
    ((_, gaps),) = backend.points("sse.server.message.gap")
    assert gaps.min >= 0
    assert FastPath.hits > 500
    assert "sse.server.message.gap" not in caplog.text


def test_a_stall_that_ends_by_an_earlier_send_was_not_shorter_than_nothing(
    backend: Backend,
) -> None:
    """A send that began before the last message may end the stall that followed that."""
    user = object()
    telemetry = obtain(backend, user)
    with connected(telemetry) as stream:
        stream.on_send(TICK, STARTED + 9, STARTED + 9)
        stream.stall_state, stream.due = StallState.REPORTED, stalls.AT_ONCE
        stream.on_send(TICK, STARTED + 1, STARTED + 99)
    sharing.release_telemetry(user, telemetry)
    (recovered,) = backend.events("sse.connection.recovered")
    assert recovered.attributes["sse.connection.idle"] == 0
