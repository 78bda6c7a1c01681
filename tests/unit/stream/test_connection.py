"""A stream's spans: attributes, segments and recorded messages."""

import asyncio
import itertools
import time
from typing import Any

import pytest
from helpers.asgi import TRACEPARENT, Fed, Stream, middleware
from helpers.backend import Backend
from helpers.waiting import until
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind

from otel_sse import SSEMiddleware


async def test_the_span_has_the_documented_attributes(backend: Backend) -> None:
    """Name, kind, remote parent, times and attributes of a connection that has one span;
    no query, cookie, payload or id is among them.
    """
    fed = Fed()
    headers = [
        TRACEPARENT,
        (b"user-agent", b"probe/1"),
        (b"cookie", b"secret-cookie"),
        (b"authorization", b"secret-auth"),
        (b"last-event-id", b"secret-id"),
    ]
    stream = Stream(
        middleware(backend, fed),
        headers=headers,
        query_string=b"key=secret-query",
        path="/private/secret-path",
    )
    await fed.feed(b": hi\n\n", b"id: secret-event\ndata: secret-data\n\n")
    fed.end()
    await stream.task
    (span,) = backend.spans("SSE")
    assert span.name == "SSE"
    assert span.kind is SpanKind.SERVER
    assert f"{span.context.trace_id:032x}" == "a" * 32
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "b" * 16
    attributes = dict(span.attributes or {})
    assert len(attributes.pop("sse.connection.id")) == 16
    seconds = attributes.pop("sse.connection.duration")
    assert span.end_time - span.start_time == pytest.approx(seconds * 1e9, rel=0.01)
    assert 0 < attributes.pop("sse.time_to_first_message") <= seconds
    assert 0 < attributes.pop("sse.send.max_duration") <= seconds
    assert attributes == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "client.address": "10.0.0.1",
        "user_agent.original": "probe/1",
        "sse.resumed": True,
        "sse.segment.index": 0,
        "sse.segment.messages": 1,
        "sse.segment.final": True,
        "sse.close.reason": "completed",
        "sse.messages": 1,
        "sse.comments": 1,
        "sse.io": len(stream.body),
    }
    (event,) = span.events
    assert event.name == "sse.message"
    message = dict(event.attributes)
    assert 0 < message.pop("sse.send.duration") <= seconds
    assert message == {
        "sse.message.sequence": 1,
        "sse.event.type": "message",
        "sse.message.size": len(b"id: secret-event\ndata: secret-data\n\n"),
    }
    exported = span.to_json() + repr([each.attributes for each in backend.events()])
    assert "secret" not in exported


async def test_an_old_segment_ends_with_the_next_message_and_starts_a_linked_trace(
    backend: Backend,
) -> None:
    """Segments by time: the first in the caller's trace, each later one a root linked to its
    predecessor and to the first; the last one bears the totals.
    """
    fed = Fed()
    stream = Stream(middleware(backend, fed, segment_seconds=0.02), headers=[TRACEPARENT])
    for number in range(3):
        await fed.feed(b"data: %d\n\n" % number)
        await asyncio.sleep(0.03)
    await fed.feed(b"data: 3\n\n", b"data: 4\n\n")
    fed.end()
    await stream.task
    spans = backend.spans("SSE")
    assert [span.attributes["sse.segment.index"] for span in spans] == list(range(len(spans)))
    assert len(spans) >= 4
    assert sum(span.attributes["sse.segment.messages"] for span in spans) == 5
    assert [span.attributes.get("sse.segment.final") for span in spans[:-1]] == [None] * (
        len(spans) - 1
    )
    assert spans[-1].attributes["sse.segment.final"] is True
    assert spans[-1].attributes["sse.messages"] == 5
    assert "sse.close.reason" not in spans[0].attributes
    assert f"{spans[0].context.trace_id:032x}" == "a" * 32
    assert len({span.context.trace_id for span in spans}) == len(spans)
    assert len({span.attributes["sse.connection.id"] for span in spans}) == 1
    sequences = [e.attributes["sse.message.sequence"] for span in spans for e in span.events]
    assert sequences == [1, 2, 3, 4, 5]
    for before, after in itertools.pairwise(spans):
        assert after.parent is None
        assert after.kind is SpanKind.INTERNAL
        linked = {link.context.span_id for link in after.links}
        assert linked == {before.context.span_id, spans[0].context.span_id}
        assert after.start_time >= before.end_time


@pytest.mark.parametrize("headers", [[TRACEPARENT], []])
async def test_under_all_every_message_is_recorded_in_siblings_of_forty(
    headers: Any, backend: Backend
) -> None:
    """Segments by event limit: full ones go on in the same trace, under the same parent."""
    fed = Fed()
    stream = Stream(middleware(backend, fed, message_event_detail="all"), headers=headers)
    fed.end(*[b"data: x\n\n"] * 100, None)
    await stream.task
    spans = backend.spans("SSE")
    assert [len(span.events) for span in spans] == [40, 40, 20]
    assert len({span.context.trace_id for span in spans}) == 1
    sequences = [e.attributes["sse.message.sequence"] for span in spans for e in span.events]
    assert sequences == list(range(1, 101))
    if headers:
        assert {span.parent.span_id for span in spans if span.parent} == {int("b" * 16, 16)}
    else:
        assert spans[0].parent is None
        assert {s.parent.span_id for s in spans[1:] if s.parent} == {spans[0].context.span_id}
    assert all(span.links for span in spans[1:])


async def test_a_slow_send_in_the_middle_is_recorded(backend: Backend) -> None:
    """``edges``: the first and last 16, and what was slow between them."""
    fed = Fed()
    stream = Stream(middleware(backend, fed, slow_send_seconds=0.02))
    await fed.feed(*[b"data: x\n\n"] * 100)
    stream.blocked = asyncio.Event()
    asyncio.get_running_loop().call_later(0.04, stream.blocked.set)
    await fed.feed(b"data: slow\n\n")
    stream.blocked = None
    await fed.feed(*[b"data: x\n\n"] * 100)
    fed.end()
    await stream.task
    (span,) = backend.spans("SSE")
    sequences = [event.attributes["sse.message.sequence"] for event in span.events]
    assert sequences == [*range(1, 17), 101, *range(186, 202)]
    assert span.events[16].attributes["sse.send.duration"] >= 0.02


@pytest.mark.parametrize("detail", ["edges", "all"])
@pytest.mark.parametrize("where", ["span", "log", "span,log", "none"])
async def test_messages_are_recorded_where_configured(
    where: str, detail: str, backend: Backend
) -> None:
    """``message_events`` chooses span events, log events, both or neither."""
    fed = Fed()
    stream = Stream(middleware(backend, fed, message_events=where, message_event_detail=detail))
    fed.end(*[b"event: tick\ndata: x\n\n"] * 20, None)
    await stream.task
    in_spans = [event for span in backend.spans("SSE") for event in span.events]
    in_logs = backend.events("sse.message")
    assert len(in_spans) == (20 if "span" in where else 0)
    assert len(in_logs) == (20 if "log" in where else 0)
    for number, event in enumerate(in_logs):
        assert event.attributes["sse.message.sequence"] == number + 1
        assert event.attributes["sse.event.type"] == "tick"
        assert event.attributes["sse.message.size"] == 21
        assert event.trace_id == backend.spans("SSE")[0].context.trace_id


async def test_message_events_have_the_messages_own_time(backend: Backend) -> None:
    """An event is stamped when its message was sent, not when its segment ended."""
    fed = Fed()
    stream = Stream(middleware(backend, fed, message_events="span,log"))
    await fed.feed(b"data: 1\n\n")
    await asyncio.sleep(0.05)
    await fed.feed(b"data: 2\n\n")
    fed.end()
    await stream.task
    (span,) = backend.spans("SSE")
    first, second = span.events
    assert span.start_time <= first.timestamp < second.timestamp <= span.end_time
    assert second.timestamp - first.timestamp >= 50_000_000
    assert [e.timestamp for e in backend.events("sse.message")] == [
        first.timestamp,
        second.timestamp,
    ]


async def test_a_message_event_is_of_its_own_segment_however_late_it_is_emitted(
    backend: Backend,
) -> None:
    """A segment that waits in the throttle until the next one has begun has its own messages."""
    fed = Fed()
    mw = SSEMiddleware(fed, **backend.providers, message_events="log", segment_seconds=0.01)
    stream = Stream(mw)
    throttle = mw.telemetry._throttle
    with throttle._lock:
        throttle._emitted, throttle._window_start = 10_000, time.monotonic() + 60
        await fed.feed(b"data: first\n\n")
        await asyncio.sleep(0.02)
        await fed.feed(b"data: second\n\n")
        assert backend.spans("SSE") == []
    fed.end()
    await stream.task
    mw.telemetry.export()
    spans = {span.context.span_id: span for span in backend.spans("SSE")}
    first, second = (spans[each.span_id].attributes for each in backend.events("sse.message"))
    # The first message itself may begin a segment, where a busy machine is late with it.
    assert second["sse.segment.index"] == first["sse.segment.index"] + 1
    assert first["sse.segment.messages"] == second["sse.segment.messages"] == 1


async def test_event_ids_are_recorded_only_where_configured(backend: Backend) -> None:
    """``capture_event_id`` adds the id that a message carries."""
    fed = Fed()
    stream = Stream(middleware(backend, fed, capture_event_id=True))
    fed.end(b"id: 41\ndata: x\n\n", b"data: y\n\n", None)
    await stream.task
    (span,) = backend.spans("SSE")
    assert [event.attributes["sse.event.id"] for event in span.events] == ["41", "41"]


async def test_an_unsampled_connection_has_no_later_segments_and_exact_metrics() -> None:
    """Sampling is decided once, at segment 0; metrics and events do not depend on it."""
    backend = Backend(sampler=ALWAYS_OFF)
    fed = Fed()
    stream = Stream(middleware(backend, fed, segment_seconds=0.01))
    for _ in range(3):
        await fed.feed(b"data: x\n\n")
        await asyncio.sleep(0.02)
    fed.end()
    await stream.task
    assert backend.spans() == []
    assert backend.value("sse.server.messages") == 3
    assert len(backend.events("sse.connection.closed")) == 1


class _NoLaterRoots(Sampler):
    """Samples what has a parent, and no root."""

    def __init__(self) -> None:
        self._inner = ParentBased(TraceIdRatioBased(0.0))

    def should_sample(self, *args: Any, **kwargs: Any) -> Any:
        return self._inner.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "no later roots"


async def test_where_a_later_root_is_dropped_the_segments_stay_in_the_first_trace() -> None:
    """A sampled caller's stream is reported to its end even where roots are not sampled."""
    backend = Backend(sampler=_NoLaterRoots())
    fed = Fed()
    stream = Stream(middleware(backend, fed, segment_seconds=0.01), headers=[TRACEPARENT])
    for _ in range(3):
        await fed.feed(b"data: x\n\n")
        await asyncio.sleep(0.02)
    fed.end()
    await stream.task
    spans = backend.spans("SSE")
    assert len(spans) >= 3
    assert {f"{span.context.trace_id:032x}" for span in spans} == {"a" * 32}
    assert {f"{span.parent.span_id:016x}" for span in spans if span.parent} == {"b" * 16}


async def test_an_idle_stream_is_rotated_by_its_own_loop_after_a_collection(
    backend: Backend,
) -> None:
    """A segment that is due on an idle stream ends all the same."""
    fed = Fed()
    stream = Stream(middleware(backend, fed, segment_seconds=0.02))
    await fed.feed(b"data: 1\n\n")
    # On a busy machine that message itself may have come late enough to end a segment.
    before = backend.spans("SSE")
    await asyncio.sleep(0.03)
    assert backend.spans("SSE") == before
    backend.metrics()
    await until(lambda: len(backend.spans("SSE")) > len(before), running=stream.task)
    fed.end()
    await stream.task
    assert len(backend.spans("SSE")) >= len(before) + 2
