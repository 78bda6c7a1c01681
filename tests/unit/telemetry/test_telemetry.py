"""Instruments and events: every name, unit, attribute and cap that is documented."""

import asyncio
import gc
import logging
import time
from typing import Any

import pytest
from helpers.asgi import SSE, START, Fed, Stream, http_scope, middleware
from helpers.backend import Backend
from helpers.waiting import until
from opentelemetry.sdk.metrics import MeterProvider

import otel_sse
from otel_sse import SSEMiddleware, semconv

BASE = {"http.request.method": "GET", "url.scheme": "http"}

# The metrics: name, unit, kind of data, the attributes beside the base ones.
SERVER_METRICS = [
    ("sse.server.active_connections", "{connection}", "sum", set()),
    ("sse.server.connections", "{connection}", "counter", {"sse.resumed"}),
    (
        "sse.server.connection.duration",
        "s",
        "histogram",
        {"sse.close.reason", "http.response.status_code"},
    ),
    ("sse.server.connection.time_to_first_message", "s", "histogram", set()),
    ("sse.server.messages", "{message}", "counter", {"sse.event.type"}),
    ("sse.server.dropped_messages", "{message}", "counter", {"sse.drop.reason"}),
    ("sse.server.comments", "{comment}", "counter", set()),
    ("sse.server.io", "By", "counter", set()),
    ("sse.server.send.time", "s", "counter", set()),
    ("sse.server.slow_sends", "{send}", "counter", set()),
    ("sse.server.message.size", "By", "histogram", set()),
    ("sse.server.message.gap", "s", "histogram", set()),
    ("sse.server.send.duration", "s", "histogram", set()),
    ("sse.server.stalled_connections", "{connection}", "sum", set()),
    ("sse.server.connection.idle.max", "s", "gauge", set()),
    ("sse.server.connection.age.max", "s", "gauge", set()),
    ("sse.server.connections_per_client.max", "{connection}", "gauge", None),
]


async def test_every_metric_has_its_name_unit_kind_and_attributes(
    backend: Backend,
) -> None:
    """What a dashboard is written against is what is emitted, and nothing else is."""
    fed = Fed()
    stream = Stream(middleware(backend, fed))
    await fed.feed(b"data: 1\n\n", b"event: tick\ndata: 2\n\n", b": ping\n\n")
    await fed.feed(lambda: otel_sse.current().record_dropped(3, "queue full"))
    fed.end()
    await stream.task
    metrics = backend.metrics()
    backlog = {"sse.server.backlog.size", "sse.server.backlog.max"}
    assert set(metrics) - backlog == {name for name, *_ in SERVER_METRICS}
    for name, unit, kind, extra in SERVER_METRICS:
        metric = metrics[name]
        assert metric.unit == unit, name
        assert metric.description.endswith("."), name
        data = metric.data
        if kind == "histogram":
            assert hasattr(data.data_points[0], "bucket_counts"), name
        elif kind == "gauge":
            assert not hasattr(data, "is_monotonic"), name
        else:
            assert data.is_monotonic is (kind == "counter"), name
        for point in data.data_points:
            expected = set() if extra is None else set(BASE) | extra
            assert set(point.attributes or {}) == expected, name
    assert backend.value("sse.server.messages", sse__event__type="message") == 1
    assert backend.value("sse.server.messages", sse__event__type="tick") == 1
    assert backend.value("sse.server.comments") == 1
    assert backend.value("sse.server.dropped_messages", sse__drop__reason="queue full") == 3
    assert backend.value("sse.server.io") == len(stream.body)


async def test_histograms_carry_their_bucket_advice(backend: Backend) -> None:
    """Each histogram comes with boundaries made for streams, up to 24 h for a lifetime."""
    fed = Fed()
    stream = Stream(middleware(backend, fed))
    fed.end(b"data: 1\n\n", b"data: 2\n\n", None)
    await stream.task
    for metric in (
        semconv.DURATION,
        semconv.FIRST_MESSAGE,
        semconv.MESSAGE_SIZE,
        semconv.MESSAGE_GAP,
        semconv.SEND_DURATION,
    ):
        ((_, point),) = backend.points(metric.name)
        assert tuple(point.explicit_bounds) == metric.buckets
        assert list(metric.buckets) == sorted(set(metric.buckets))
    assert semconv.DURATION.buckets[-1] == 24 * 3600


async def test_live_figures_follow_the_streams(backend: Backend) -> None:
    """Active, oldest, idlest and the busiest client's count are those of this moment."""
    app = Fed()
    mw = middleware(backend, app)
    began = time.perf_counter()
    streams = [Stream(mw, client=(address, 1)) for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2")]
    await app.feed(b"data: 1\n\n")
    await until(lambda: backend.value("sse.server.active_connections") == 3)
    assert backend.value("sse.server.connections_per_client.max") == 2
    live = otel_sse.connections()
    ((_, age),) = backend.points("sse.server.connection.age.max")
    assert 0 < max(each.age for each in live) <= age.value <= time.perf_counter() - began
    ((_, idle),) = backend.points("sse.server.connection.idle.max")
    assert 0 < max(each.idle for each in live) <= idle.value <= time.perf_counter() - began
    for _stream in streams:
        app.end()
    await asyncio.gather(*(stream.task for stream in streams))
    for name in ("active_connections", "connection.age.max", "connection.idle.max"):
        assert backend.value(f"sse.server.{name}") == 0
    assert backend.value("sse.server.connections_per_client.max") == 0
    assert backend.value("sse.server.connections") == 3


async def test_time_to_first_message_is_never_recorded_for_none(backend: Backend) -> None:
    """A stream of comments alone has no first message."""
    fed = Fed()
    stream = Stream(middleware(backend, fed))
    fed.end(b": only\n\n", b"data\n", None)
    await stream.task
    assert backend.points("sse.server.connection.time_to_first_message") == []
    assert "sse.time_to_first_message" not in backend.spans("SSE")[0].attributes


async def test_resumed_connections_are_counted_apart(backend: Backend) -> None:
    """A request with Last-Event-ID counts as resumed; the id itself is recorded nowhere."""
    fed = Fed()
    mw = middleware(backend, fed)
    headers = [(b"host", b"h"), (b"Last-Event-ID", b"secret-7")]
    streams = [Stream(mw), Stream(mw, headers=headers)]
    fed.end(None, None)
    await asyncio.gather(*(stream.task for stream in streams))
    assert backend.value("sse.server.connections", sse__resumed=True) == 1
    assert backend.value("sse.server.connections", sse__resumed=False) == 1
    assert "secret-7" not in repr([span.to_json() for span in backend.spans()])


async def test_slow_sends_and_send_time_add_up_the_waits(backend: Backend) -> None:
    """A send that waits past the threshold is a stall; every wait is in send.time."""
    fed = Fed()
    stream = Stream(middleware(backend, fed, slow_send_seconds=0.05))
    await fed.feed(b"data: fast\n\n")
    stream.blocked = asyncio.Event()
    asyncio.get_running_loop().call_later(0.08, stream.blocked.set)
    await fed.feed(b"data: slow\n\n")
    stream.blocked = None
    fed.end()
    await stream.task
    assert backend.value("sse.server.slow_sends") == 1
    assert backend.value("sse.server.send.time") >= 0.08
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.send.max_duration"] >= 0.08


async def test_event_types_beyond_sixteen_or_sixty_four_bytes_are_other(backend: Backend) -> None:
    """The number of series is bounded whatever the application names its events."""
    fed = Fed()
    stream = Stream(middleware(backend, fed))
    names = [f"type-{n}" for n in range(40)]
    await fed.feed(b"event: %s\ndata: x\n\n" % ("x" * 65).encode())
    for name in names:
        await fed.feed(f"event: {name}\ndata: x\n\n".encode())
    await fed.feed(b"data: x\n\n")
    fed.end()
    await stream.task
    points = {a["sse.event.type"]: p.value for a, p in backend.points("sse.server.messages")}
    assert points == {**dict.fromkeys(names[:16], 1), "message": 1, "_OTHER": 25}


async def test_configured_event_types_are_the_only_ones_recorded(backend: Backend) -> None:
    """Where names are configured, every other type is _OTHER from the first message on."""
    fed = Fed()
    stream = Stream(middleware(backend, fed, event_types="token,done"))
    for name in (b"first", b"token", b"done", b"message"):
        await fed.feed(b"event: " + name + b"\ndata: x\n\n")
    fed.end()
    await stream.task
    points = {a["sse.event.type"]: p.value for a, p in backend.points("sse.server.messages")}
    assert points == {"_OTHER": 1, "token": 1, "done": 1, "message": 1}


async def test_methods_schemes_drop_reasons_and_error_types_are_capped(backend: Backend) -> None:
    """Untrusted clients' methods and schemes and an application's endless reasons stay bounded."""
    fed = Fed()
    mw = middleware(backend, fed)
    stream = Stream(mw, method="BREW", scheme="gopher")
    for number in range(20):
        await fed.feed(lambda n=number: otel_sse.current().record_dropped(1, f"reason-{n}"))
    fed.end()
    await stream.task
    points = backend.points("sse.server.dropped_messages")
    assert all(a["http.request.method"] == "_OTHER" for a, _ in points)
    assert all(a["url.scheme"] == "_OTHER" for a, _ in points)
    reasons = {a["sse.drop.reason"]: p.value for a, p in points}
    assert len(reasons) == 17
    assert reasons["_OTHER"] == 4
    for number in range(120):
        error = type(f"Error{number}", (Exception,), {})
        failing = Stream(mw)
        fed.end(error())
        with pytest.raises(error):
            await failing.task
    kinds = {
        a["error.type"]
        for a, _ in backend.points("sse.server.connection.duration")
        if "error.type" in a
    }
    assert len(kinds) == 101
    assert "_OTHER" in kinds


async def test_routes_beyond_two_hundred_are_other(backend: Backend) -> None:
    """A process with endless routes has a bounded number of series; each connection counts."""
    fed = Fed()
    mw = middleware(backend, fed)
    for number in range(230):
        stream = Stream(mw, path_template=f"/rooms/{number}/{{id}}", path=f"/rooms/{number}/x")
        fed.end(b"data: x\n\n", None)
        await stream.task
    points = {a["http.route"]: p.value for a, p in backend.points("sse.server.messages")}
    assert len(points) == 201
    assert points["_OTHER"] == 30
    assert backend.spans("SSE")[-1].name == "SSE _OTHER"


async def test_a_closed_set_of_lifecycle_events_reports_each_connection(backend: Backend) -> None:
    """Opened is emitted while the stream lives, closed with totals, both within its span."""
    fed = Fed()
    stream = Stream(middleware(backend, fed))
    await fed.feed(b"data: 1\n\n")
    (opened,) = backend.events("sse.connection.")
    assert opened.event_name == "sse.connection.opened"
    assert opened.severity_text == "INFO"
    fed.end()
    await stream.task
    (span,) = backend.spans("SSE")
    _, closed = backend.events("sse.connection.")
    assert closed.event_name == "sse.connection.closed"
    for event in (opened, closed):
        assert event.trace_id == span.context.trace_id
        assert event.span_id == span.context.span_id
        assert event.attributes["sse.connection.id"] == span.attributes["sse.connection.id"]
    for name in (
        "sse.close.reason",
        "sse.messages",
        "sse.comments",
        "sse.io",
        "sse.connection.duration",
        "sse.time_to_first_message",
        "sse.send.max_duration",
    ):
        assert closed.attributes[name] == span.attributes[name]


@pytest.mark.parametrize(
    ("choice", "emitted"),
    [("all", ["opened", "closed"]), ("closed", ["closed"]), ("none", [])],
)
async def test_lifecycle_events_can_be_chosen(
    choice: str, emitted: list[str], backend: Backend
) -> None:
    """``lifecycle_events`` chooses which are emitted."""
    fed = Fed()
    stream = Stream(middleware(backend, fed, lifecycle_events=choice))
    fed.end()
    await stream.task
    assert [e.event_name for e in backend.events()] == [
        f"sse.connection.{name}" for name in emitted
    ]


async def test_a_stall_is_reported_once_and_so_is_the_recovery(backend: Backend) -> None:
    """Comments do not count as life; the next message ends the stall."""
    fed = Fed()
    # Long enough for a busy machine to look at it before and afterwards.
    stream = Stream(middleware(backend, fed, stall_seconds=1))
    await fed.feed(b"data: 1\n\n")
    assert backend.value("sse.server.stalled_connections") == 0
    await until(lambda: backend.value("sse.server.stalled_connections") == 1)
    for _ in range(3):
        await fed.feed(b": ping\n\n")
        assert backend.value("sse.server.stalled_connections") == 1
    await until(lambda: backend.events("sse.connection.stalled"))
    assert backend.value("sse.server.stalled_connections") == 1
    (stalled,) = backend.events("sse.connection.stalled")
    assert stalled.severity_text == "WARN"
    assert 1 <= stalled.attributes["sse.connection.idle"] < 60
    await fed.feed(b": ping\n\n")
    assert backend.events("sse.connection.recovered") == []
    await fed.feed(b"data: 2\n\n")
    (recovered,) = backend.events("sse.connection.recovered")
    idle = recovered.attributes["sse.connection.idle"]
    assert stalled.attributes["sse.connection.idle"] < idle < 60
    assert backend.value("sse.server.stalled_connections") == 0
    await fed.feed(b"data: 3\n\n")
    assert len(backend.events("sse.connection.recovered")) == 1
    fed.end()
    await stream.task


async def test_more_than_a_hundred_stalls_are_summed_up(backend: Backend) -> None:
    """A collection emits a hundred stalls and one event for the rest; only the hundred recover."""
    fed = Fed()
    mw = middleware(backend, fed, stall_seconds=0.05)
    streams = [Stream(mw) for _ in range(130)]
    await until(lambda: len(otel_sse.connections()) >= 130)
    await asyncio.sleep(0.06)
    assert backend.value("sse.server.stalled_connections") == 130
    await until(lambda: len(backend.events("sse.connection.stalled")) == 101)
    assert backend.value("sse.server.stalled_connections") == 130
    *single, last = sorted(
        backend.events("sse.connection.stalled"), key=lambda e: len(e.attributes), reverse=True
    )
    assert last.attributes == {"sse.stalled_connections": 30}
    assert all("sse.connection.id" in event.attributes for event in single)
    fed.end(*[b"data: 1\n\n"] * 130)
    await until(lambda: backend.value("sse.server.messages") == 130)
    fed.end(*[None] * 130)
    await asyncio.gather(*(stream.task for stream in streams))
    recovered = {
        e.attributes["sse.connection.id"] for e in backend.events("sse.connection.recovered")
    }
    assert recovered <= {event.attributes["sse.connection.id"] for event in single}


async def test_stall_detection_can_be_switched_off(backend: Backend) -> None:
    """With ``stall_seconds=0`` nothing is stalled."""
    fed = Fed()
    stream = Stream(middleware(backend, fed, stall_seconds=0))
    await fed.feed(b"data: 1\n\n")
    await asyncio.sleep(0.02)
    assert backend.value("sse.server.stalled_connections") == 0
    fed.end()
    await stream.task
    assert backend.events("sse.connection.stalled") == []


async def test_excluded_urls_are_not_reported(backend: Backend) -> None:
    """A stream whose URL is excluded is not reported."""
    fed = Fed()
    mw = middleware(backend, fed, excluded_urls="localhost/internal")
    streams = [Stream(mw, path="/internal/events"), Stream(mw, path="/events")]
    fed.end(None, None)
    await asyncio.gather(*(stream.task for stream in streams))
    assert backend.value("sse.server.connections") == 1
    assert len(backend.spans()) == 1


async def test_a_second_configuration_is_warned_of_and_ignored(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """One meter provider has one set of instruments and one configuration: the first."""
    fed = Fed()
    first = middleware(backend, fed, stall_seconds=5)
    with caplog.at_level(logging.WARNING, "otel_sse"):
        second = middleware(backend, fed, stall_seconds=7)
    assert "stall_seconds" in caplog.text
    streams = [Stream(first), Stream(second)]
    fed.end(None, None)
    await asyncio.gather(*(stream.task for stream in streams))
    assert backend.value("sse.server.connections") == 2


async def test_two_readers_collect_the_same_exact_figures(backend: Backend) -> None:
    """Every reader of the provider gets its own fresh collection."""
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    one, two = InMemoryMetricReader(), InMemoryMetricReader()
    provider = MeterProvider([one, two], shutdown_on_exit=False)
    fed = Fed()
    stream = Stream(SSEMiddleware(fed, meter_provider=provider))
    for expected in (1, 2, 3):
        await fed.feed(b"data: x\n\n")
        for reader in (one, two):
            data = reader.get_metrics_data()
            (metric,) = [
                m
                for r in data.resource_metrics
                for s in r.scope_metrics
                for m in s.metrics
                if m.name == "sse.server.messages"
            ]
            assert [point.value for point in metric.data.data_points] == [expected]
    fed.end()
    await stream.task


async def test_connections_is_a_snapshot_of_what_is_live(backend: Backend) -> None:
    """For a status page: id, route, client, age, idle, messages, bytes and backlog."""
    before = {each.id for each in otel_sse.connections()}
    fed = Fed()
    stream = Stream(middleware(backend, fed), client=("192.0.2.7", 9))
    await fed.feed(b"data: 1\n\n", b"data: 2\n\n")
    (mine,) = [each for each in otel_sse.connections() if each.id not in before]
    assert mine.client_address == "192.0.2.7"
    assert mine.messages == 2
    assert mine.bytes == 18
    assert mine.route is None
    assert mine.backlog is None
    assert 0 <= mine.idle <= mine.age < 60
    fed.end()
    await stream.task
    assert mine.id not in {each.id for each in otel_sse.connections()}


async def test_metrics_are_exact_while_threads_collect(backend: Backend) -> None:
    """Collections on another thread, all the while, never count a message twice or not at all,
    and a counter never falls.
    """
    import threading

    stop = threading.Event()
    seen: list[float] = []

    def collect() -> None:
        while not stop.is_set():
            seen.append(backend.value("sse.server.messages"))
            time.sleep(0)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        for _ in range(20):
            fed = Fed()
            mw = middleware(backend, fed)
            streams = [Stream(mw) for _ in range(20)]
            fed.end(*[b"data: x\n\n"] * 100, *[None] * 20)
            await asyncio.gather(*(stream.task for stream in streams))
    finally:
        stop.set()
        thread.join()
    assert seen == sorted(seen)
    assert backend.value("sse.server.messages") == 20 * 100
    assert backend.value("sse.server.active_connections") == 0


async def test_nothing_of_ours_outlives_its_stream(backend: Backend) -> None:
    """After a thousand streams no connection, request or responder remains."""
    from otel_sse.servers.asgi_observer import RequestObserver
    from otel_sse.stream.request import Request
    from otel_sse.stream.request_span import RequestSpan
    from otel_sse.stream.server import ServerStream

    def ours() -> set[int]:
        gc.collect()
        kinds = (ServerStream, RequestSpan, RequestObserver, Request)
        return {id(each) for each in gc.get_objects() if type(each) in kinds}

    before = ours()
    fed = Fed(headers=SSE)
    mw = middleware(backend, fed)
    for _ in range(1000):
        stream = Stream(mw)
        fed.end(b"data: x\n\n", None)
        await stream.task
    del stream
    backend.metrics()
    # Events beyond the throttle's limit wait for its thread, and keep their streams.
    await until(lambda: ours() <= before)


async def test_a_stream_whose_peer_disconnected_is_freed_at_once_too(backend: Backend) -> None:
    """The exception of a failed send is not kept: its traceback would keep the stream."""
    import weakref

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})

    live: list[Any] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            live.extend(weakref.ref(each) for each in mw.telemetry.streams.live)
            raise BrokenPipeError(32, "Broken pipe")

    mw = middleware(backend, app)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(BrokenPipeError):
            await mw(http_scope(), None, send)
        assert len(live) == 1
        assert live[0]() is None
    finally:
        gc.enable()


async def test_a_stream_is_freed_without_the_garbage_collector(backend: Backend) -> None:
    """Nothing of ours is in a cycle: memory is given back as each stream ends."""
    import weakref

    from otel_sse.stream.server import ServerStream

    live = middleware(backend, Fed()).telemetry.streams.live
    fed = Fed()
    stream = Stream(middleware(backend, fed))
    await fed.feed(b"data: x\n\n")
    gc.collect()
    gc.disable()
    try:
        (connection,) = live
        assert isinstance(connection, ServerStream)
        gone = weakref.ref(connection)
        del connection
        fed.end()
        await stream.task
        del stream
        assert gone() is None
    finally:
        gc.enable()
