"""Why a stream closes, and where the reason is recorded."""

import asyncio
import builtins
import concurrent.futures
import sys
import threading
from types import SimpleNamespace
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from helpers.asgi import START, AppError, Fed, Stream, http_scope, middleware
from helpers.backend import Backend
from helpers.waiting import until
from opentelemetry.trace import StatusCode

import otel_sse
from otel_sse import SSEWSGIMiddleware
from otel_sse.stream.close_reason import classify_close, resolve_error


def close(reason: str) -> Any:
    return lambda: otel_sse.current().set_close_reason(reason)


class Abort(BaseException):
    """An application's own, which ``except Exception`` does not catch."""


class Unprintable(Exception):
    """As of SDKs that read an error's body when it is printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Unreadable(Exception):
    """One that looks like a group, and raises."""

    @property
    def exceptions(self) -> Any:
        raise RuntimeError("no members")


CLOSES = [
    # what the application does; reason, error.type
    ([None], "completed", None),
    ([AppError()], "error", f"{AppError.__module__}.AppError"),
    ([ValueError()], "error", "ValueError"),
    ([TimeoutError()], "timeout", "TimeoutError"),
    ([asyncio.TimeoutError()], "timeout", None),
    ([concurrent.futures.TimeoutError()], "timeout", None),
    ([close("timeout"), None], "timeout", None),
    ([close("server_shutdown"), None], "server_shutdown", None),
    ([close("completed"), AppError()], "completed", None),
    ([close("error"), AppError()], "error", f"{AppError.__module__}.AppError"),
    ([SystemExit()], "server_shutdown", None),
    ([asyncio.CancelledError()], "unknown", None),
    ([Abort()], "error", f"{__name__}.Abort"),
    ([Unprintable()], "error", f"{__name__}.Unprintable"),
    ([Unreadable()], "error", f"{__name__}.Unreadable"),
]


@pytest.mark.parametrize(
    ("disconnected", "cut_first", "cut", "reason"),
    [
        (True, False, True, "client_disconnect"),
        (True, False, False, "client_disconnect"),
        (True, True, True, "server_shutdown"),
        (True, True, False, "client_disconnect"),
        (False, False, True, "server_shutdown"),
        (False, False, False, "unknown"),
    ],
)
def test_what_came_first_is_the_reason(
    disconnected: bool, cut_first: bool, cut: bool, reason: str
) -> None:
    """A peer that disconnects has done so, unless the server had begun to cut the stream."""
    found = classify_close(
        None, reason=None, completed=False, disconnected=disconnected, cut_first=cut_first, cut=cut
    )
    assert found == reason


@pytest.mark.parametrize(("does", "reason", "error_type"), CLOSES)
async def test_a_close_has_its_reason_everywhere(
    does: list[Any], reason: str, error_type: str | None, backend: Backend
) -> None:
    """Span, event and duration report the same reason; the status is ERROR exactly where there is
    an error.type; the exception reaches the server unchanged.
    """
    fed = Fed()
    mw = middleware(backend, fed)
    raised: list[BaseException] = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        try:
            await mw(scope, receive, send)
        except BaseException as error:
            raised.append(error)

    stream = Stream(server)
    await fed.feed(b"data: 1\n\n")
    fed.end(*does)
    await stream.task
    assert raised == [each for each in does if isinstance(each, BaseException)]
    (span,) = backend.spans("SSE")
    (closed,) = backend.events("sse.connection.closed")
    ((duration, point),) = backend.points("sse.server.connection.duration")
    if isinstance(does[0], (asyncio.TimeoutError, concurrent.futures.TimeoutError)):
        error_type = duration["error.type"]
        assert error_type.endswith("TimeoutError")
    for attributes in (span.attributes, closed.attributes, duration):
        assert attributes["sse.close.reason"] == reason
        assert attributes.get("error.type") == error_type
        assert attributes["http.response.status_code"] == 200
    assert point.count == 1
    failed = error_type is not None
    assert (span.status.status_code is StatusCode.ERROR) is failed
    assert (closed.severity_text == "ERROR") is (reason == "error")
    assert backend.value("sse.server.active_connections") == 0


async def test_a_disconnect_is_no_error_and_ends_the_counting(backend: Backend) -> None:
    """After the disconnect nothing counts, and what is sent still reaches the server."""
    app_done = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.body", "body": b"data: 2\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        app_done.set()

    stream = Stream(middleware(backend, app))
    await until(lambda: backend.value("sse.server.messages") == 1, running=stream.task)
    stream.disconnected.set()
    await stream.task
    assert app_done.is_set()
    assert stream.body == b"data: 1\n\ndata: 2\n\n"
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "client_disconnect"
    assert span.attributes["sse.messages"] == 1
    assert span.status.status_code is StatusCode.UNSET
    assert backend.value("sse.server.messages") == 1


@pytest.mark.parametrize(("more", "reason"), [(True, "client_disconnect"), (False, "completed")])
async def test_a_peer_that_disconnects_while_a_chunk_is_sent_has_that_chunk(
    more: bool, reason: str, backend: Backend
) -> None:
    """The chunk counts, and if it is the last one the stream is complete: servers that close the
    connection behind the end of the body give ``http.disconnect`` from within that send.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        disconnected = asyncio.ensure_future(receive())
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": more})
        assert disconnected.done()

    stream = Stream(middleware(backend, app))
    stream.blocked = asyncio.Event()
    await until(lambda: stream.sent, running=stream.task)
    stream.blocked.set()
    stream.blocked = asyncio.Event()
    await until(lambda: len(stream.sent) == 2, running=stream.task)
    stream.disconnected.set()
    asyncio.get_running_loop().call_later(0.02, stream.blocked.set)
    await stream.task
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == reason
    assert span.attributes["sse.messages"] == 1
    assert backend.value("sse.server.messages") == 1


class Channel:
    """A server's ends: in the last send it reports a disconnect. It may show a transport, which is
    ``closing`` then.
    """

    def __init__(self, closing: bool | None) -> None:
        self._gone = asyncio.Event()
        self.transport = None
        if closing is not None:
            self.transport = SimpleNamespace(
                get_write_buffer_size=lambda: 0,
                is_closing=lambda: closing and self._gone.is_set(),
            )

    def disconnect(self) -> None:
        self._gone.set()

    async def receive(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            self.disconnect()
            await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("closing", "reason"),
    [(None, "completed"), (False, "completed"), (True, "client_disconnect")],
    ids=["no transport", "open", "closing"],
)
async def test_a_last_send_that_is_cancelled_by_a_disconnect(
    closing: bool | None, reason: str, backend: Backend
) -> None:
    """Some servers announce their own end of the stream so; where the transport is closing, the
    client has disconnected first.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        sending = asyncio.ensure_future(
            send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": False})
        )
        await receive()
        sending.cancel()
        await asyncio.wait([sending])

    channel = Channel(closing)
    await middleware(backend, app)(http_scope(), channel.receive, channel.send)
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == reason
    assert span.attributes["sse.messages"] == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [(AppError(), "error"), (asyncio.CancelledError(), "client_disconnect")],
    ids=["error", "cancelled"],
)
async def test_a_closing_transport_explains_a_cancellation_and_no_error(
    error: BaseException, reason: str, backend: Backend
) -> None:
    """Nobody has noticed the disconnect: an error did not come of it, a cancellation did."""
    channel = Channel(closing=True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        channel.disconnect()
        raise error

    with pytest.raises(type(error)):
        await middleware(backend, app)(http_scope(), channel.receive, channel.send)
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == reason


async def test_returning_in_the_middle_of_the_body_is_unknown(
    backend: Backend,
) -> None:
    """Frameworks do that when their peer has disconnected, for which there is other evidence."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})

    await Stream(middleware(backend, app)).task
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "unknown"


@pytest.mark.parametrize(
    "broken_by",
    [BrokenPipeError(32, "Broken pipe"), TimeoutError(110, "timed out"), OSError("closed")],
    ids=repr,
)
async def test_a_send_that_finds_the_peer_gone_is_a_disconnect(
    broken_by: OSError, backend: Backend
) -> None:
    """The OSError of a send, with a number or without, and what a framework makes of it, is a
    disconnect; the message of that send does not count.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        try:
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        except OSError:
            raise RuntimeError("the framework's own error") from None

    async def broken(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise broken_by

    mw = middleware(backend, app)
    with pytest.raises(RuntimeError):
        await mw(http_scope(), None, broken)  # type: ignore[arg-type]
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "client_disconnect"
    assert span.attributes["sse.messages"] == 0
    assert span.status.status_code is StatusCode.UNSET


async def test_an_error_of_the_applications_is_reported_whatever_the_framework_calls_it(
    backend: Backend,
) -> None:
    """Starlette makes a ClientDisconnect of any OSError, also of an upstream's that refused."""
    from starlette.requests import ClientDisconnect
    from starlette.responses import StreamingResponse

    async def body() -> Any:
        yield b"data: 1\n\n"
        raise ConnectionRefusedError(111, "the upstream refused")

    app = StreamingResponse(body(), media_type="text/event-stream")
    stream = Stream(middleware(backend, app), asgi={"version": "3.0", "spec_version": "2.4"})
    with pytest.raises(ClientDisconnect):
        await stream.task
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "error"
    assert span.attributes["error.type"] == "ConnectionRefusedError"


async def test_a_message_counts_when_its_send_is_cancelled_and_not_when_it_fails(
    backend: Backend,
) -> None:
    """The server has the bytes of a cancelled send; those of a failed one went nowhere."""
    fed = Fed()
    stream = Stream(middleware(backend, fed))
    await fed.feed(b"data: 1\n\n")
    stream.blocked = asyncio.Event()
    fed.queue.put_nowait(b"data: 2\n\n")
    await until(lambda: len(stream.sent) == 3, running=stream.task)
    stream.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream.task
    assert backend.value("sse.server.messages") == 2


@pytest.mark.parametrize("status", [500, 503])
async def test_a_server_error_status_is_the_error_type(status: int, backend: Backend) -> None:
    """A stream answered with 5xx has its status code for error.type, whatever its reason."""
    fed = Fed(status=status)
    stream = Stream(middleware(backend, fed))
    fed.end()
    await stream.task
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "completed"
    assert span.attributes["error.type"] == str(status)
    assert span.status.status_code is StatusCode.ERROR


async def test_the_text_of_an_exception_is_not_asked_for(backend: Backend) -> None:
    """It may take long, and the event loop would stand still."""
    asked: list[Any] = []

    class Slow(Exception):
        def __str__(self) -> str:
            asked.append(self)
            return ""

    fed = Fed()
    stream = Stream(middleware(backend, fed))
    fed.end(Slow())
    with pytest.raises(Slow):
        await stream.task
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "error"
    assert asked == []


@pytest.mark.parametrize("raised", [SystemExit("bad job"), KeyboardInterrupt()], ids=repr)
def test_an_exit_in_a_thread_of_a_servers_pool_is_an_error(
    raised: BaseException, backend: Backend
) -> None:
    """It ends that request alone, and the server goes on."""

    def app(_: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        yield b"data: 1\n\n"
        raise raised

    def serve() -> None:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        with pytest.raises(type(raised)):
            list(SSEWSGIMiddleware(app, **backend.providers)(environ, lambda *_: None))
        served.append(True)

    served: list[bool] = []
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert served
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "error"
    assert span.attributes["error.type"] == type(raised).__name__


@pytest.mark.skipif(sys.version_info < (3, 11), reason="has no groups of exceptions")
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([Abort()], "error"),
        ([Abort(), AppError()], "error"),
        ([asyncio.CancelledError()], "unknown"),
        ([asyncio.CancelledError(), AppError()], "unknown"),
    ],
    ids=repr,
)
async def test_a_group_is_an_error_where_none_of_it_is_a_cancellation(
    members: list[BaseException], reason: str, backend: Backend
) -> None:
    """What a task of a group raises while it is being cancelled is its clean-up's."""
    group: Any = getattr(builtins, "BaseExceptionGroup", None)
    fed = Fed()
    stream = Stream(middleware(backend, fed))
    fed.end(group("in tasks", members))
    with pytest.raises(group):
        await stream.task
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == reason


class EmptyError(ConnectionError):
    """An error that is false."""

    def __len__(self) -> int:
        return 0


def test_a_cause_that_is_false_is_one() -> None:
    """What was raised from the send's error comes of that, whatever was handled beside it."""
    send_error, error = EmptyError(), RuntimeError()
    error.__context__ = ValueError()
    error.__cause__ = send_error
    assert resolve_error(error, disconnected=False, cut=False, send_error=send_error) == (
        None,
        True,
    )
