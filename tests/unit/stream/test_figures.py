"""Every figure of a stream whose times are known."""

import time
from typing import Any

import pytest
from helpers.backend import Backend
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context

from otel_sse.config import load
from otel_sse.servers.asgi_observer import _getter
from otel_sse.stream import base, identity, sharing
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import RequestState
from otel_sse.stream.server import ServerStream
from otel_sse.telemetry.providers import Providers

INFO = ServerStreamInfo(
    method="GET",
    route="/x",
    scheme="https",
    known_path="/x",
    client="192.0.2.7",
    user_agent=b"agent",
    protocol="1.1",
    status=200,
    resumed=True,
    carrier=[],
    getter=_getter,
    transport=None,
)
STARTED = 1000.0
UNIX = 1_700_000_000 * 10**9
# What is sent, when, and how long the send waits. The server's clock shows UNIX at STARTED.
SENDS = (
    (b"data: 1\n\n", 0.5, 0.25),
    (b": ping\n\n", 1.0, 0.0),
    (b"event: tick\ndata: 22\n\n", 2.0, 1.0),
    (b"data: 3\n\ndata: 4\n\n", 4.0, 0.0),
)
ENDED = 8.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (base, identity):
        monkeypatch.setattr(module, "perf_counter", lambda: STARTED + ENDED)
    monkeypatch.setattr(identity, "time_ns", lambda: UNIX + int(ENDED * 1e9))


def serve(backend: Backend, **options: Any) -> ServerStream:
    providers = Providers(*backend.providers.values())
    telemetry = sharing.acquire_telemetry(ServerStream, providers, load(options))
    request = RequestState(STARTED, Context(), Context())
    stream = sharing.open_server_stream(telemetry, INFO, request)
    assert stream is not None
    for chunk, at, wait in SENDS:
        stream.on_send(chunk, STARTED + at, STARTED + at + wait)
    stream.close(completed=True)
    request.finish()
    return stream


def seconds(unix: int | None) -> float:
    """Since the start, of a time in Unix nanoseconds."""
    assert unix is not None
    return (unix - UNIX) / 1e9


@pytest.mark.usefixtures("clock")
def test_a_span_has_the_times_of_its_stream(backend: Backend) -> None:
    """From the request's start to the end of the response, its messages when they were sent."""
    serve(backend)
    (span,) = backend.spans()
    assert (seconds(span.start_time), seconds(span.end_time)) == (0.0, ENDED)
    assert [seconds(event.timestamp) for event in span.events] == [0.5, 2.0, 4.0, 4.0]
    assert [dict(event.attributes or {}) for event in span.events] == [
        {
            "sse.message.sequence": number,
            "sse.event.type": kind,
            "sse.message.size": size,
            "sse.send.duration": wait,
        }
        for number, kind, size, wait in (
            (1, "message", 9, 0.25),
            (2, "tick", 22, 1.0),
            (3, "message", 9, 0.0),
            (4, "message", 9, 0.0),
        )
    ]


@pytest.mark.usefixtures("clock")
def test_a_span_and_the_event_of_the_close_have_all_totals(backend: Backend) -> None:
    """And what the request was; nothing else."""
    stream = serve(backend)
    (span,) = backend.spans()
    (closed,) = backend.events("sse.connection.closed")
    request = {
        "http.request.method": "GET",
        "http.route": "/x",
        "url.scheme": "https",
        "url.path": "/x",
        "client.address": "192.0.2.7",
        "user_agent.original": "agent",
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
        "sse.connection.id": stream.id,
        "sse.resumed": True,
    }
    totals = {
        "sse.messages": 4,
        "sse.comments": 1,
        "sse.io": sum(len(chunk) for chunk, *_ in SENDS),
        "sse.connection.duration": ENDED,
        "sse.time_to_first_message": 0.75,
        "sse.send.max_duration": 1.0,
        "sse.close.reason": "completed",
    }
    assert dict(closed.attributes) == {**request, **totals}
    segment = {"sse.segment.index": 0, "sse.segment.messages": 4, "sse.segment.final": True}
    assert dict(span.attributes or {}) == {**request, **totals, **segment}


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("wait", "slow"), [(0.5, 1), (0.499, 0)])
def test_a_send_is_slow_from_the_threshold_on(wait: float, slow: int, backend: Backend) -> None:
    """Not only beyond it."""
    telemetry = sharing.acquire_telemetry(
        ServerStream, Providers(*backend.providers.values()), load({"slow_send_seconds": 0.5})
    )
    request = RequestState(STARTED, Context(), Context())
    stream = sharing.open_server_stream(telemetry, INFO, request)
    assert stream is not None
    for at in (1.0, 2.0, 3.0):
        stream.on_send(b"data: x\n\n", STARTED + at, STARTED + at + wait)
    stream.close(completed=True)
    request.finish()
    assert backend.value("sse.server.slow_sends") == 3 * slow


@pytest.mark.usefixtures("clock")
def test_metrics_add_up_the_waits_and_gaps(backend: Backend) -> None:
    """A gap is from the start of a message's send to the next one's; the first message has none."""
    serve(backend, slow_send_seconds=1)

    def sums(name: str) -> tuple[int, float]:
        ((_, point),) = backend.points(f"sse.server.{name}")
        return point.count, point.sum

    assert backend.value("sse.server.send.time") == 1.25
    assert backend.value("sse.server.slow_sends") == 1
    assert sums("send.duration") == (4, 1.25)
    assert sums("message.gap") == (3, 3.5)
    assert sums("message.size") == (4, 49)
    assert sums("connection.time_to_first_message") == (1, 0.75)
    assert sums("connection.duration") == (1, ENDED)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    "name",
    [
        "send.duration",
        "message.size",
        "message.gap",
        "connection.time_to_first_message",
        "connection.duration",
    ],
)
def test_an_exemplar_leads_to_the_streams_span(name: str, backend: Backend) -> None:
    """Whatever span is current where it is recorded."""
    with backend.tracer.start_as_current_span("another"):
        serve(backend)
    (span,) = backend.spans("SSE")
    ((_, point),) = backend.points(f"sse.server.{name}")
    assert {each.span_id for each in point.exemplars} == {span.context.span_id}


def test_log_events_are_stamped_with_the_time_of_their_emission(backend: Backend) -> None:
    """Both times, since a collector sorts by either; the severity is that of what happened."""
    began = time.time_ns()
    serve(backend)
    ended = time.time_ns()
    opened, closed = backend.events("sse.connection.")
    assert began <= opened.timestamp <= closed.timestamp <= ended
    for event in (opened, closed):
        assert event.observed_timestamp == event.timestamp
        assert event.severity_number is SeverityNumber.INFO
        assert event.severity_text == "INFO"


@pytest.mark.usefixtures("clock")
def test_a_message_as_a_log_event_has_the_time_of_its_send(backend: Backend) -> None:
    """Not that of its emission, at the end of the segment."""
    serve(backend, message_events="log")
    events = backend.events("sse.message")
    assert [seconds(event.timestamp) for event in events] == [0.5, 2.0, 4.0, 4.0]
    assert backend.spans()[0].events == ()
