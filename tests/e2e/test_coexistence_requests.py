"""Unsampled requests, and several requests on one socket, beside other instrumentation."""

import asyncio
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.coexistence import (
    Caller,
    ContribAiohttp,
    ContribAsgi,
    ContribStarlette,
    Http,
    Instrument,
    NoHttp,
    StarlettesOwn,
    Work,
    ask_aiohttp,
    ask_asgi,
    assert_placed,
    base_http_app,
    generating,
    rooms_app,
    starlette_app,
    writing,
)
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import PIECES, STREAM, Reply, parse
from helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_warnings")


async def assert_unsampled(backend: Backend, caller: Caller, route: str) -> None:
    """Metrics and events are whole; of spans there is none."""
    opened, closed = await until(lambda: backend.events("sse.connection.")[1:] and backend.events())
    assert closed.attributes["sse.messages"] == 8
    for event in (opened, closed):
        assert event.trace_id == int(caller.trace_id, 16)
        assert not event.trace_flags.sampled
        assert event.attributes["http.route"] == route
    assert backend.spans() == []
    assert backend.value("sse.server.messages") == 8
    assert backend.value("sse.server.io") == len(STREAM)
    assert backend.value("sse.server.connections") == 1
    assert backend.value("sse.server.active_connections") == 0
    assert backend.value("sse.server.connection.duration", sse__close__reason="completed") == 1


@pytest.mark.parametrize("kind", [NoHttp, ContribAsgi, ContribStarlette])
async def test_a_request_that_is_not_sampled_is_counted_all_the_same(
    kind: type[Http], backend: Backend, instrument: Instrument
) -> None:
    """Where the caller's trace is not sampled there are no spans; metrics and events are exact."""
    http, caller, work = kind(backend), Caller(sampled=False), Work(backend)
    instrument()
    try:
        http.on()
        reply = await ask_asgi(http.build(starlette_app, work), caller)
    finally:
        http.off()
    assert reply.body == STREAM
    await assert_unsampled(backend, caller, "/rooms/{room}")


@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")
@pytest.mark.parametrize("kind", [NoHttp, ContribAiohttp])
@pytest.mark.parametrize("handler", [writing, generating])
async def test_an_aiohttp_request_that_is_not_sampled_is_counted_all_the_same(
    kind: type[Http], handler: Any, backend: Backend, instrument: Instrument
) -> None:
    """The same for aiohttp.web."""
    http, caller, work = kind(backend), Caller(sampled=False), Work(backend)
    instrument()
    try:
        http.on()
        reply = await ask_aiohttp(rooms_app(handler(work)), caller)
    finally:
        http.off()
    assert reply.body == STREAM
    await assert_unsampled(backend, caller, "/rooms/{room}")


async def converse(port: int, callers: list[Caller], *, pipelined: bool) -> list[Reply]:
    """Sends a request for each caller on one socket, all at once or one after another."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    requests = [
        "\r\n".join(["GET /rooms/blue HTTP/1.1", "Host: localhost", *caller.headers, "", ""])
        for caller in callers
    ]
    replies = []
    try:
        for number, request in enumerate(requests):
            if not pipelined:
                writer.write(request.encode())
            elif not number:
                writer.write("".join(requests).encode())
            raw = await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), 60)
            replies.append(parse(raw))
    finally:
        writer.close()
    return replies


async def assert_apart(
    backend: Backend, callers: list[Caller], work: Work, *, makes_spans: bool
) -> None:
    spans = await until(lambda: backend.spans("SSE")[len(callers) - 1 :] and backend.spans("SSE"))
    assert len(spans) == len(callers)
    assert backend.value("sse.server.messages") == 8 * len(callers)
    for caller in callers:
        (connection,) = [span for span in caller.spans(backend) if span.name.startswith("SSE")]
        assert_placed(connection, caller, backend, makes_spans=makes_spans)
        mine = [span for span in work.spans if span.context.trace_id == int(caller.trace_id, 16)]
        assert len(mine) == len(PIECES)
        work.assert_within(connection, mine)


@pytest.mark.parametrize("pipelined", [False, True], ids=["one by one", "pipelined"])
@pytest.mark.parametrize("app", [starlette_app, base_http_app])
@pytest.mark.parametrize("http_implementation", ["h11", "httptools"])
async def test_requests_on_one_socket_do_not_meet(
    app: Any, http_implementation: str, pipelined: bool, backend: Backend, instrument: Instrument
) -> None:
    """A server may start a request within the context of the one before; its stream is in its own
    caller's trace, and so is its work.
    """
    callers, work = [Caller(), Caller(), Caller()], Work(backend)
    instrument()
    built = NoHttp(backend).build(app, work)
    async with serve_asgi(built, http=http_implementation) as port:
        replies = await converse(port, callers, pipelined=pipelined)
    assert [reply.body for reply in replies] == [STREAM] * 3
    await assert_apart(backend, callers, work, makes_spans=False)


@pytest.mark.parametrize("kind", [ContribAsgi, StarlettesOwn])
async def test_requests_on_one_socket_do_not_meet_below_others_spans(
    kind: type[Http], backend: Backend, instrument: Instrument
) -> None:
    """The same where something makes server spans."""
    callers, work = [Caller(), Caller(), Caller()], Work(backend)
    instrument()
    async with serve_asgi(kind(backend).build(starlette_app, work)) as port:
        replies = await converse(port, callers, pipelined=False)
    assert [reply.body for reply in replies] == [STREAM] * 3
    await assert_apart(backend, callers, work, makes_spans=True)


@pytest.mark.filterwarnings("ignore:Inheritance class _InstrumentedApplication")
@pytest.mark.parametrize("pipelined", [False, True], ids=["one by one", "pipelined"])
@pytest.mark.parametrize("kind", [NoHttp, ContribAiohttp])
@pytest.mark.parametrize("handler", [writing, generating])
async def test_aiohttp_requests_on_one_socket_do_not_meet(
    handler: Any, kind: type[Http], pipelined: bool, backend: Backend, instrument: Instrument
) -> None:
    """Aiohttp serves all requests of a socket in one task; nothing of one reaches the next."""
    http, callers, work = kind(backend), [Caller(), Caller(), Caller()], Work(backend)
    instrument()
    try:
        http.on()
        async with serve_aiohttp(rooms_app(handler(work))) as port:
            replies = await converse(port, callers, pipelined=pipelined)
    finally:
        http.off()
    assert [reply.body for reply in replies] == [STREAM] * 3
    makes_spans = http.makes_spans and handler is writing
    await assert_apart(backend, callers, work, makes_spans=makes_spans)
