"""The straight way of an ordinary message tells what the general way tells."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.backend import Backend
from opentelemetry.context import Context

from otel_sse import connection as module
from otel_sse import lifecycle
from otel_sse.asgi import _getter
from otel_sse.connection import Connection
from otel_sse.current import Request
from otel_sse.opening import Opening
from otel_sse.scanner import Scanner
from otel_sse.telemetry import Providers, Telemetry

OPENING = Opening(
    *("GET", "/x", "http", "/x", "127.0.0.1", None, "1.1", 200, False, [], _getter, None)
)
STARTED = 1e6
TICK = b"event: tick\ndata: x\n\n"


class General(Scanner):
    """Knows no message by its look."""

    __slots__ = ()

    def whole(self, _: Any) -> None:
        return None


class Straight(Scanner):
    """Notes how often it does."""

    __slots__ = ()
    hits = 0

    def whole(self, chunk: Any) -> str | None:
        kind = super().whole(chunk)
        Straight.hits += kind is not None
        return kind


def obtain(backend: Backend, user: object, **options: Any) -> Telemetry:
    providers = Providers(*backend.providers.values())
    return lifecycle.obtain(user, providers, options)


def connect(telemetry: Telemetry) -> Connection:
    request = Request()
    request.started, request.ambient = STARTED, Context()
    return lifecycle.open_connection(telemetry, OPENING, request)


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


def told(
    scanner: type[Scanner], seed: int, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[Any]:
    """All that is told of a stream."""
    backend = Backend()
    monkeypatch.setattr(module, "Scanner", scanner)
    monkeypatch.setattr(module, "perf_counter", lambda: STARTED + 500)
    monkeypatch.setattr(module.random, "uniform", lambda low, high: (low + high) / 2)
    user = object()
    telemetry = obtain(backend, user, **options)
    connection = connect(telemetry)
    for chunk, began, ended in sends(seed):
        connection.sent(chunk, began, ended)
    connection.end(completed=True)
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
    lifecycle.release(user, telemetry)
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
def test_both_ways_tell_the_same(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every metric, span and event is equal, whichever way a message takes."""
    Straight.hits = 0
    for seed in range(3):
        assert told(Straight, seed, monkeypatch, **options) == told(
            General, seed, monkeypatch, **options
        )
    # Nothing goes straight where ids are captured or every message is told at once.
    each = options.get("message_events") == "span,log"
    assert (Straight.hits > 200) == (not each and "capture_event_id" not in options)


def repeat(connection: Connection, count: int, at: float) -> None:
    """Sends the same message that often, faster than all of them are sampled."""
    for number in range(count):
        began = STARTED + at + number / 10_000
        connection.sent(TICK, began, began)


def test_a_configuration_that_changes_while_a_stream_lives(backend: Backend) -> None:
    """A type that is told only now is counted, and so is every message of it."""
    first, second = object(), object()
    telemetry = obtain(backend, first, event_types="other")
    connection = connect(telemetry)
    repeat(connection, 1000, 1)
    lifecycle.release(first, telemetry)
    assert obtain(backend, second, event_types="tick,tock") is telemetry
    repeat(connection, 1000, 2)
    assert sum(connection.messages) == connection.sequence == 2000
    assert connection.io == 2000 * len(TICK)
    assert backend.value("sse.server.messages", sse__event__type="tick") == 1000
    connection.end(completed=True)
    lifecycle.release(second, telemetry)


def test_every_message_is_told_from_when_it_is_asked(backend: Backend) -> None:
    """Where the configuration changes to that, the live streams follow at once."""
    first, second = object(), object()
    telemetry = obtain(backend, first)
    connection = connect(telemetry)
    repeat(connection, 1000, 1)
    lifecycle.release(first, telemetry)
    obtain(backend, second, message_events="log", message_event_detail="all")
    repeat(connection, 50, 2)
    assert len(backend.events("sse.message")) == 50
    connection.end(completed=True)
    lifecycle.release(second, telemetry)
