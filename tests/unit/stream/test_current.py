"""The current request: the proxy span, its context, and what the application sets."""

import asyncio
import contextvars
import gc
import logging
import tracemalloc
import types
import weakref
from collections.abc import Generator
from typing import Any

import pytest
from helpers.asgi import START, TRACEPARENT, Fed, Stream, http_scope
from helpers.backend import Backend
from helpers.servers import serve_asgi
from helpers.waiting import until
from opentelemetry import baggage, context, trace
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, NoOpTracer, Span, SpanKind

import otel_sse
from otel_sse import SSEMiddleware
from otel_sse.stream.request_span import RequestSpan

END = {"type": "http.response.body", "body": b"", "more_body": False}


async def run(backend: Backend, app: Any, **scope: Any) -> Stream:
    stream = Stream(SSEMiddleware(app, **backend.providers), **scope)
    await stream.task
    return stream


async def test_what_is_set_before_the_start_holds(backend: Backend) -> None:
    """A handle taken before the response starts records what was set once it has started."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        mine = otel_sse.current()
        mine.record_dropped(2, "warm-up")
        mine.set_close_reason("timeout")
        await send(START)
        mine.record_dropped(3, "late")
        await send(END)
        mine.record_dropped(4, "after")

    await run(backend, app)
    assert backend.value("sse.server.dropped_messages") == 5
    assert backend.spans("SSE")[0].attributes["sse.close.reason"] == "timeout"


async def test_what_is_set_where_no_stream_starts_takes_no_memory(backend: Backend) -> None:
    """Code that streams and other responses share may call it as often as it likes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        mine = otel_sse.current()
        tracemalloc.start()
        for number in range(10_000):
            mine.record_dropped(1, f"{number}")
            mine.set_close_reason("timeout")
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 10_000
        await send(START)
        await send(END)

    await run(backend, app)
    assert backend.value("sse.server.dropped_messages") == 10_000
    assert backend.value("sse.server.dropped_messages", sse__drop__reason="15") == 1
    assert backend.value("sse.server.dropped_messages", sse__drop__reason="_OTHER") == 9_984


async def test_outside_of_a_stream_current_is_a_no_op() -> None:
    """Code that is shared with other callers may call it wherever it runs."""
    otel_sse.current().set_close_reason("completed")
    otel_sse.current().record_dropped(1, "no stream")


async def test_nonsense_is_logged_and_ignored(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown reason or a bad number never raises; the log names what is allowed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        otel_sse.current().set_close_reason("tired")
        otel_sse.current().record_dropped(0, "none")
        otel_sse.current().record_dropped("many")  # type: ignore[arg-type]
        await send(END)

    with caplog.at_level(logging.WARNING, "otel_sse"):
        await run(backend, app)
    assert "client_disconnect" in caplog.text
    assert caplog.text.count("is ignored") == 3
    assert backend.spans("SSE")[0].attributes["sse.close.reason"] == "completed"
    assert backend.value("sse.server.dropped_messages") == 0


@pytest.mark.parametrize("when", ["before", "after"])
async def test_spans_of_another_task(when: str, backend: Backend) -> None:
    """Those of a task that starts after the response are children of the segment. A task that
    started before it keeps the parent that it has without us: none.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started, asked = asyncio.Event(), asyncio.Event()

        async def produce() -> None:
            await started.wait()
            with backend.tracer.start_as_current_span("query"):
                pass
            asked.set()

        if when == "before":
            task = asyncio.create_task(produce())
        await send(START)
        if when == "after":
            task = asyncio.create_task(produce())
        started.set()
        await asked.wait()
        await send(END)
        await task

    await run(backend, app)
    (query,) = backend.spans("query")
    (stream,) = backend.spans("SSE")
    parent = query.parent and query.parent.span_id
    assert parent == (stream.context.span_id if when == "after" else None)


async def test_the_proxy_stands_for_the_parent_span_until_the_stream_starts(
    backend: Backend,
) -> None:
    """Attributes that the application sets go to the server span before, to ours after."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        trace.get_current_span().set_attribute("when", "before")
        assert trace.get_current_span().name == "GET"  # type: ignore[attr-defined]
        await send(START)
        trace.get_current_span().set_attribute("when", "within")
        trace.get_current_span().add_event("application")
        await send(END)

    with backend.tracer.start_as_current_span("GET", kind=SpanKind.SERVER):
        await run(backend, app)
    (http,) = backend.spans("GET")
    (stream,) = backend.spans("SSE")
    assert http.attributes["when"] == "before"
    assert stream.attributes["when"] == "within"
    assert [event.name for event in stream.events] == ["application"]
    assert stream.kind is SpanKind.INTERNAL
    assert stream.parent.span_id == http.context.span_id
    assert http.attributes["sse.connection.id"] == stream.attributes["sse.connection.id"]


async def test_the_proxy_passes_for_the_span_that_records(backend: Backend) -> None:
    """Processors and samplers look whether the parent is a span of the SDK before they read it."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        seen.append(trace.get_current_span())
        await send(END)

    with backend.tracer.start_as_current_span("GET", kind=SpanKind.SERVER):
        await run(backend, app)
    (proxy,) = seen
    assert isinstance(proxy, ReadableSpan)
    assert isinstance(proxy, Span)
    assert isinstance(proxy, RequestSpan)


def test_the_proxy_passes_for_no_span_that_records_nothing() -> None:
    """A tracer without an SDK would return it as its own span, and it may stand for one that
    records later.
    """
    proxy = RequestSpan(NonRecordingSpan(INVALID_SPAN.get_span_context()))
    within = trace.set_span_in_context(proxy)
    assert not isinstance(proxy, NonRecordingSpan)
    assert trace.get_current_span(within) is proxy
    assert NoOpTracer().start_span("none", within) is not proxy


async def test_a_request_that_is_no_stream_shows_others_no_span(backend: Backend) -> None:
    """Other instrumentation inside finds what it would find without us: no current span."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(trace.get_current_span())
        token = context.attach(baggage.set_baggage("k", "v"))
        seen.append(trace.get_current_span().get_span_context().is_valid)
        context.detach(token)
        await send({**START, "headers": [(b"content-type", b"application/json")]})
        seen.append(trace.get_current_span())
        await send(END)

    await run(backend, app)
    assert seen[0] is INVALID_SPAN
    assert seen[1] is False
    assert seen[2] is INVALID_SPAN
    assert backend.spans() == []


async def test_the_current_span_takes_what_an_sdk_span_takes(backend: Backend) -> None:
    """Other libraries hang their own things on the current span, and keep weak references to it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        span: Any = trace.get_current_span()
        span._of_another_library = 1
        assert isinstance(span, Span)
        assert weakref.ref(span)() is span
        await send(END)

    await run(backend, app)
    assert len(backend.spans("SSE")) == 1


async def test_baggage_and_context_of_the_request_survive(backend: Backend) -> None:
    """What is in the parent context stays readable in the application, before and within."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(baggage.get_baggage("tenant"))
        await send(START)
        seen.append(baggage.get_baggage("tenant"))
        await send(END)

    token = context.attach(baggage.set_baggage("tenant", "acme"))
    try:
        await run(backend, app)
    finally:
        context.detach(token)
    assert seen == ["acme", "acme"]


async def test_a_span_that_leaked_from_an_earlier_request_is_no_parent(backend: Backend) -> None:
    """Servers run a kept-alive connection's requests in the context of the first."""
    fed = Fed()
    leaked = backend.tracer.start_span("earlier")
    token = context.attach(trace.set_span_in_context(leaked))
    leaked.end()
    try:
        stream = Stream(SSEMiddleware(fed, **backend.providers), headers=[TRACEPARENT])
    finally:
        context.detach(token)
    fed.end()
    await stream.task
    (span,) = backend.spans("SSE")
    assert f"{span.context.trace_id:032x}" == "a" * 32
    assert span.kind is SpanKind.SERVER


class _First(Sampler):
    """Drops the first trace."""

    def __init__(self) -> None:
        self.asked = 0

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        self.asked += 1
        return (ALWAYS_OFF if self.asked == 1 else ALWAYS_ON).should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "all but the first"


async def test_requests_that_a_client_pipelines_are_each_their_own() -> None:
    """Uvicorn runs each in the context of the one before: none is kept for that, and one that is
    not sampled is not the parent of the rest.
    """
    backend = Backend(sampler=ParentBased(_First()))
    count, kept = 200, 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal kept
        await send({**START, "headers": [*START["headers"], (b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"data: x\n\n"})
        if scope["path"] == "/last":
            gc.collect()
            kept = sum(type(each) is RequestSpan for each in gc.get_objects())

    async with serve_asgi(SSEMiddleware(app, **backend.providers)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        paths = [*["/"] * (count - 1), "/last"]
        writer.write(b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % p.encode() for p in paths))
        for _ in paths:
            await reader.readuntil(b"data: x\n\n")
        writer.close()
        await until(lambda: kept)
    assert kept < count / 2
    assert len(backend.spans("SSE")) == count - 1
    assert {span.parent for span in backend.spans("SSE")} == {None}


async def test_an_unsampled_server_span_is_respected(backend: Backend) -> None:
    """Where the parent span was sampled out, the connection is no trace of its own."""
    fed = Fed()
    carrier = {"traceparent": "00-" + "c" * 32 + "-" + "d" * 16 + "-00"}
    token = context.attach(extract(carrier))
    try:
        with backend.tracer.start_as_current_span("GET", kind=SpanKind.SERVER):
            stream = Stream(SSEMiddleware(fed, **backend.providers))
            fed.end()
            await stream.task
    finally:
        context.detach(token)
    assert backend.spans() == []
    assert backend.value("sse.server.connections") == 1


async def test_the_context_is_as_before_when_the_request_is_over(backend: Backend) -> None:
    """One attach, one detach, in one frame: nothing of ours stays current."""
    fed = Fed()
    fed.end()
    mw = SSEMiddleware(fed, **backend.providers)
    before = context.get_current()

    async def send(message: Any) -> None:
        pass

    await mw(http_scope(), None, send)  # type: ignore[arg-type]
    assert context.get_current() is before
    assert otel_sse.current()._request is None


@pytest.mark.parametrize("nested", [False, True])
def test_a_frame_that_is_freed_in_another_context_leaves_that_alone(
    nested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Garbage is collected wherever that happens to run: in a task of the request's own, too. What
    is current there stays, and nothing is logged.
    """

    async def app(*_: Any) -> None:
        await _pause()

    async def wrapping(scope: Any, receive: Any, send: Any) -> None:
        async def wrapped(message: Any) -> None:
            await send(message)

        await SSEMiddleware(app)(scope, receive, wrapped)

    frame: Any = SSEMiddleware(wrapping if nested else app)(http_scope(), Fed, Fed)
    request = contextvars.copy_context()
    request.run(frame.send, None)
    task = request.run(contextvars.copy_context)
    before = task.run(context.get_current)
    task.run(frame.close)
    assert task.run(context.get_current) is before
    assert caplog.text == ""


@types.coroutine
def _pause() -> Generator[None, None, None]:
    yield
