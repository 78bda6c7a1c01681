"""ASGI messages of any kind pass through the middleware unchanged."""

import asyncio
import copy
import gc
import inspect
import pickle
import weakref
from typing import Any
from unittest.mock import AsyncMock

import pytest
from helpers.asgi import START, Fed, Stream, http_scope, middleware
from helpers.asgi_messages import END, MESSAGE, SENDINGS, body, never
from helpers.backend import Backend
from helpers.streams import assert_silent

import otel_sse
from otel_sse import SSEMiddleware
from otel_sse.stream import sharing


async def test_a_server_that_takes_anything_gets_the_very_objects(backend: Backend) -> None:
    """Every object that an application sends, of whatever kind, comes to the server as it is."""
    for sending in SENDINGS.values():

        async def app(scope: Any, receive: Any, send: Any, sending: Any = sending) -> None:
            for message in sending:
                await send(message)

        got: list[Any] = []

        async def take(message: Any, got: list[Any] = got) -> None:
            got.append(message)

        await SSEMiddleware(app, **backend.providers)(http_scope(), never, take)
        assert [id(each) for each in got] == [id(each) for each in sending]
    assert backend.value("sse.server.active_connections") == 0


@pytest.mark.parametrize("kind", ["http", "lifespan", "websocket"])
async def test_a_server_gets_what_the_application_returns(kind: str, backend: Backend) -> None:
    """It ought to return nothing: uvicorn says so of one that does, and closes the connection."""

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        return scope["type"]

    async def around(scope: Any, receive: Any, send: Any) -> Any:
        async def through(message: Any) -> None:
            await send(message)

        same = await observed(scope, receive, send)
        return same, await observed(scope, receive, through)

    observed = middleware(backend, app)
    scope = http_scope(type=kind)
    assert await middleware(backend, around)(scope, never, never) == (kind, kind)


async def test_a_scope_that_has_next_to_nothing_is_served(backend: Backend) -> None:
    """Tests of applications leave out what a server always gives. What is not known is left out."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(END)

    for scope in ({"type": "http"}, {"type": "http", "method": "GET"}):
        got: list[Any] = []

        async def take(message: Any, got: list[Any] = got) -> None:
            got.append(message)

        await SSEMiddleware(app, **backend.providers)(scope, never, take)
        assert got == [START, END]
    unknown, known = backend.spans()
    assert unknown.attributes["http.request.method"] == "_OTHER"
    assert known.attributes["http.request.method"] == "GET"
    assert "url.path" not in {**unknown.attributes, **known.attributes}


async def test_a_scope_can_be_copied_and_pickled(backend: Backend) -> None:
    """A deep copy is of the same request, which is recorded once; a pickle holds nothing of it."""
    pickled: list[Any] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        for message in (START, MESSAGE, END):
            await send(message)

    observed = middleware(backend, inside)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pickled.append(pickle.loads(pickle.dumps(scope)))
        await observed(copy.deepcopy(scope), receive, send)

    await Stream(middleware(backend, app)).task
    (span,) = backend.spans()
    assert span.attributes["sse.messages"] == 1
    await Stream(observed, **pickled[0]).task
    assert len(backend.spans()) == 2


@pytest.mark.filterwarnings("error")
async def test_a_mock_in_place_of_the_server_is_asked_nothing(backend: Backend) -> None:
    """A mock has every attribute, a transport's and a server's: none of them is called, and the
    stream is what the messages make it.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in (START, MESSAGE, END):
            await send(message)
            backend.metrics()

    receive, send = AsyncMock(), AsyncMock()
    await SSEMiddleware(app, **backend.providers)(http_scope(), receive, send)
    assert [call.args[0] for call in send.await_args_list] == [START, MESSAGE, END]
    assert send.mock_calls == send.await_args_list
    assert receive.mock_calls == []
    (span,) = backend.spans()
    assert span.attributes["sse.close.reason"] == "completed"
    gc.collect()


async def test_a_body_message_without_a_body_passes_under_propagate_too(backend: Backend) -> None:
    """ASGI has ``body`` optional: where trace comments are written, none goes into nothing."""
    sending = [START, {"type": "http.response.body", "more_body": True}, MESSAGE]
    sending.append({"type": "http.response.body"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in sending:
            await send(message)

    stream = Stream(SSEMiddleware(app, **backend.providers, propagate=True))
    await stream.task
    first, empty, written, last = stream.sent
    assert [first, empty, last] == [sending[0], sending[1], sending[3]]
    assert written["body"].startswith(b": otel traceparent=00-")
    assert written["body"].endswith(MESSAGE["body"])
    assert backend.value("sse.server.messages") == 1


@pytest.mark.parametrize("media_type", [b"application/json", b"text/event-stream"])
async def test_headers_that_are_read_once_are_the_servers_to_read(
    media_type: bytes, backend: Backend
) -> None:
    """ASGI allows any iterable: one that is exhausted by reading reaches the server whole."""
    headers = [(b"x-a", b"1"), (b"content-type", media_type), (b"set-cookie", b"b=2")]
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert inspect.iscoroutinefunction(send)
        await send({**START, "headers": iter(headers)})
        await send(END)

    async def server(message: Any) -> None:
        got.extend(message.get("headers", ()))

    await SSEMiddleware(app, **backend.providers)(http_scope(), never, server)
    assert got == headers


async def test_a_lifespan_ends_though_nothing_can_be_exported(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server gets the end of the lifespan, and the log what failed."""

    async def fail() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(sharing.shutdown_handler, "export", fail)
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    async def server(message: Any) -> None:
        sent.append(message["type"])

    await middleware(backend, app)({"type": "lifespan"}, never, server)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert "the lifespan's end" in caplog.text


async def test_a_send_that_hides_its_attributes_is_reported(
    backend: Backend,
) -> None:
    """A proxy may raise at every attribute access: its stream is still reported, and
    where hypercorn is asked whether it stops, nothing of that reaches the application.
    """
    fed = Fed()
    fed.end(b"data: x\n\n", None)
    mw = SSEMiddleware(fed, **backend.providers)

    class Proxy:
        def __init__(self, send: Any) -> None:
            self._call = send

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("outside of its context")

        async def __call__(self, message: Any) -> None:
            await self._call(message)

    stream = Stream(lambda scope, receive, send: mw(scope, receive, Proxy(send)))
    await stream.task
    assert stream.body == b"data: x\n\n"
    assert backend.value("sse.server.messages") == 1
    assert backend.value("sse.server.connection.duration", sse__close__reason="completed") == 1


async def test_an_odd_lifespan_message_is_the_servers_to_judge(backend: Backend) -> None:
    """A lifespan's messages reach the server whatever they are."""
    sendings = (None, {}, 7, {"type": 7}, {"type": "lifespan.startup.complete"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in sendings:
            await send(message)

    got: list[Any] = []

    async def take(message: Any) -> None:
        got.append(message)

    await SSEMiddleware(app, **backend.providers)({"type": "lifespan"}, never, take)
    assert got == list(sendings)


async def test_out_of_order_messages_reach_the_server_and_break_nothing(backend: Backend) -> None:
    """What an application sends before the start or after the end is the server's to judge."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": b"early"})
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"Content-Type", b"Text/Event-Stream; charset=utf-8")],
            }
        )
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})
        await send({"type": "http.response.body", "body": b"data: late\n\n"})
        await send({"type": "http.response.trailers", "headers": []})

    stream = Stream(middleware(backend, app))
    await stream.task
    assert len(stream.sent) == 7
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "completed"
    assert span.attributes["sse.messages"] == 1


@pytest.mark.parametrize(("stopping", "reason"), [(True, "server_shutdown"), (False, "error")])
async def test_a_second_start_that_the_server_refuses_while_it_stops(
    stopping: bool, reason: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A framework answers the error of a stream that the server has cut: that is the end of the
    process, and no error of the stream's. Else it is one.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(MESSAGE)
        await send(START)

    async def send(message: Any) -> None:
        sent.append(message)
        if sent.count(START) == 2:
            raise RuntimeError("the response has started")

    sent: list[Any] = []
    for module in ("asgi", "asgi_observer"):
        monkeypatch.setattr(
            f"otel_sse.servers.{module}.is_server_stopping",
            lambda channel: stopping and channel is send,
        )
    with pytest.raises(RuntimeError, match="has started"):
        await middleware(backend, app)(http_scope(), never, send)
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == reason


@pytest.mark.parametrize("body", [bytearray(b"data: x\n\n"), memoryview(b"data: x\n\n")])
async def test_other_kinds_of_bytes_count_too(body: Any, backend: Backend) -> None:
    """Bytearray and memoryview bodies are counted like bytes, and passed on as they are."""
    fed = Fed()
    stream = Stream(middleware(backend, fed))
    fed.end(body, None)
    await stream.task
    assert stream.sent[1]["body"] is body
    assert backend.value("sse.server.messages") == 1
    assert backend.value("sse.server.io") == 9


async def test_what_starts_after_the_application_has_returned_is_no_connection(
    backend: Backend,
) -> None:
    """A task that outlives the application's call answers, and receives: it reaches the server,
    and nothing stays live.
    """
    late = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def answer() -> None:
            await late.wait()
            await send(START)
            received.append(await receive())

        tasks.append(asyncio.ensure_future(answer()))

    received: list[Any] = []
    stream = Stream(SSEMiddleware(app, **backend.providers))
    stream.disconnected.set()
    await stream.task
    late.set()
    await tasks[0]
    assert stream.sent == [START]
    assert received == [{"type": "http.disconnect"}]
    assert backend.value("sse.server.active_connections") == 0
    assert otel_sse.connections() == []


class Held:
    """What an application or a server holds for a request: weak references find out until when."""


class Cycle:
    """What a server's ``send`` and ``receive`` are bound to, as uvicorn's are."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("media_type", [b"application/json", b"text/event-stream"])
async def test_a_task_that_outlives_its_request_keeps_nothing_of_it(
    media_type: bytes, backend: Backend
) -> None:
    """A task has a copy of the context variables, and may keep ``current()``: neither keeps the
    scope, with the body that the application has put there, nor the server's objects.
    """
    stays = asyncio.Event()
    kept: list[Any] = []
    held: weakref.WeakSet[Any] = weakref.WeakSet()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = Held()
        held.add(scope["state"])
        kept.append((asyncio.ensure_future(stays.wait()), otel_sse.current()))
        await receive()
        await send({**START, "headers": [(b"content-type", media_type)]})
        await send(END)

    async def serve() -> None:
        cycle = Cycle()
        held.add(cycle)
        await middleware(backend, app)(http_scope(), cycle.receive, cycle.send)

    await asyncio.ensure_future(serve())
    gc.collect()
    assert list(held) == []
    stays.set()
    await kept[0][0]


@pytest.mark.parametrize("message", [None, {}, 7, [], {"body": b""}], ids=repr)
async def test_what_is_received_is_the_applications_to_judge(
    message: Any, backend: Backend
) -> None:
    """What a server or a test gives in place of an ASGI message comes to the application."""
    got: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.append(await receive())

    async def receive() -> Any:
        return message

    await middleware(backend, app)(http_scope(), receive, never)
    assert got == [message]


async def test_a_text_body_whose_send_is_cancelled_ends_by_the_cancellation(
    backend: Backend,
) -> None:
    """Middleware outside may encode it: that we cannot count it changes nothing."""
    sending = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(body("data: x\n\n"))

    async def send(message: Any) -> None:
        if "body" in message:
            sending.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(middleware(backend, app)(http_scope(), never, send))
    await sending.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "unknown"


async def test_weak_references_to_the_servers_ends_can_be_made(backend: Backend) -> None:
    """As to a server's own methods."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert weakref.WeakMethod(send)() == send
        assert weakref.WeakMethod(receive)() == receive
        await send(START)

    stream = Stream(middleware(backend, app))
    await stream.task
    assert stream.sent == [START]


async def test_a_copied_scope_that_is_used_after_its_request_is_of_a_new_one(
    backend: Backend,
) -> None:
    """An application may call itself with the scope of an earlier request: the stream counts."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(dict(scope))
        for message in (START, MESSAGE, END):
            await send(message)

    mw = middleware(backend, app)
    await Stream(mw).task
    for _ in range(2):
        cycle = Cycle()
        await mw(scopes[-1], cycle.receive, cycle.send)
        assert cycle.sent == [START, MESSAGE, END]
    assert backend.value("sse.server.connections") == 3
    assert backend.value("sse.server.messages") == 3
    assert backend.value("sse.server.active_connections") == 0


async def test_the_innermost_of_two_meter_providers_has_the_stream(backend: Backend) -> None:
    """As on WSGI: it is nearest to the application, and the stream is recorded once."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in (START, MESSAGE, END):
            await send(message)

    other = Backend()
    stream = Stream(middleware(other, middleware(backend, app)))
    await stream.task
    assert stream.sent == [START, MESSAGE, END]
    assert backend.value("sse.server.messages") == 1
    assert backend.value("sse.server.active_connections") == 0
    assert_silent(other)
