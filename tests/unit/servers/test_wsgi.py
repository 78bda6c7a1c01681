"""The observer of a WSGI request: what passes unchanged, and what is recorded."""

import contextvars
import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import flask
import greenlet
import pytest
from bottle import Bottle
from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIHandler
from gevent.pywsgi import WSGIServer
from helpers.backend import Backend
from helpers.streams import PIECES, STREAM, assert_reported, assert_silent
from helpers.waiting import until, wait_until
from opentelemetry import trace

import otel_sse
from otel_sse.frameworks import (
    SSEBottleInstrumentor,
    SSEDjangoInstrumentor,
    SSEFlaskInstrumentor,
    SSEWSGIServerInstrumentor,
)
from otel_sse.servers.observed_app import ObservedApp
from otel_sse.stream.request import Request, current_request

TYPED = [("Content-Type", "text/event-stream")]


def call(app: Any, **environ: Any) -> tuple[Any, list[Any]]:
    """What the application returns, and the arguments and writes that reach the server."""
    seen: list[Any] = []

    def start_response(*args: Any) -> Any:
        seen.append(args)
        return seen.append

    setup_testing_defaults(environ)
    return app(environ, start_response), seen


def streaming(body: Any, backend: Backend, **options: Any) -> Any:
    def app(_: Any, start_response: Any) -> Any:
        start_response("200 OK", TYPED)
        return body

    return otel_sse.SSEWSGIMiddleware(app, **backend.providers, **options)


async def test_every_piece_is_recorded(backend: Backend) -> None:
    """Exact counts of a stream whose chunks are no messages; the bytes are the application's."""
    body, _ = call(streaming(iter(PIECES), backend))
    assert b"".join(body) == STREAM
    body.close()
    await assert_reported(backend, STREAM, route=None)


def test_an_environ_can_be_copied(backend: Backend) -> None:
    """A deep copy is of the same request, which is recorded once."""
    inside = streaming(iter(PIECES), backend)

    def app(environ: Any, start_response: Any) -> Any:
        del environ["wsgi.errors"]
        return inside(copy.deepcopy(environ), start_response)

    body, _ = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers))
    assert b"".join(body) == STREAM
    body.close()
    assert len(backend.spans()) == 1


def test_what_is_known_of_a_request_is_recorded(backend: Backend) -> None:
    """The client, its software, protocol, scheme and method; the path only where a route is known,
    since it may hold anything.
    """
    body, _ = call(
        streaming([b"data: x\n\n"], backend),
        **{"REQUEST_METHOD": "POST", "wsgi.url_scheme": "https", "SERVER_PROTOCOL": "HTTP/1.1"},
        REMOTE_ADDR="192.0.2.7",
        HTTP_USER_AGENT="agent",
        HTTP_LAST_EVENT_ID="7",
    )
    assert list(body) == [b"data: x\n\n"]
    body.close()
    (span,) = backend.spans()
    expected = {
        "http.request.method": "POST",
        "url.scheme": "https",
        "network.protocol.version": "1.1",
        "client.address": "192.0.2.7",
        "user_agent.original": "agent",
        "sse.resumed": True,
        "http.response.status_code": 200,
    }
    attributes = dict(span.attributes or {})
    assert {name: attributes.get(name) for name in expected} == expected
    assert "url.path" not in attributes


@pytest.mark.parametrize(
    ("host", "mount", "path", "reported"),
    [
        ("example.org", "/app", "/internal", 0),
        ("example.org", "", "/app/internal", 0),
        ("example.org", "/app", "/public", 1),
        ("example.org", "/other", "/internal", 1),
        ("example.com", "/app", "/internal", 1),
    ],
)
def test_an_excluded_url_is_scheme_host_mount_and_path(
    host: str, mount: str, path: str, reported: int, backend: Backend
) -> None:
    """As the client has asked for it."""
    app = streaming([b"data: x\n\n"], backend, excluded_urls="^http://example.org/app/internal$")
    body, _ = call(app, HTTP_HOST=host, SCRIPT_NAME=mount, PATH_INFO=path)
    assert list(body) == [b"data: x\n\n"]
    # What is not observed is the application's list itself.
    getattr(body, "close", list)()
    assert len(backend.spans()) == reported


async def test_a_generator_that_starts_at_the_first_next_is_seen(backend: Backend) -> None:
    def app(_: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TYPED)
        yield from PIECES

    body, _ = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers))
    assert b"".join(body) == STREAM
    body.close()
    await assert_reported(backend, STREAM, route=None)


async def test_a_media_type_is_recognised_in_any_case(backend: Backend) -> None:
    def app(_: Any, start_response: Any) -> Any:
        start_response("200 OK", [("CONTENT-TYPE", "Text/Event-STREAM; charset=utf-8")])
        return iter(PIECES)

    body, _ = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers))
    assert b"".join(body) == STREAM
    body.close()
    await assert_reported(backend, STREAM, route=None)


def test_of_several_media_types_the_last_one_counts(backend: Backend) -> None:
    """Headers of one name are one list, as a browser reads them."""

    def app(environ: Any, start_response: Any) -> Any:
        types = environ["types"]
        start_response("200 OK", [("Content-Type", each) for each in types])
        return [b"data: x\n\n"]

    wrapped = otel_sse.SSEWSGIMiddleware(app, **backend.providers)
    for types in (("text/html", "text/event-stream"), ("text/event-stream", "text/html")):
        body, _ = call(wrapped, types=types)
        assert list(body) == [b"data: x\n\n"]
        del body
    wait_until(lambda: backend.spans("SSE"))
    assert len(backend.spans("SSE")) == 1


async def test_what_is_written_is_recorded(backend: Backend) -> None:
    def app(_: Any, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", TYPED)
        for piece in PIECES:
            write(piece)
        return []

    body, seen = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers))
    assert [*body] == []
    body.close()
    assert seen == [("200 OK", TYPED), *PIECES]
    await assert_reported(backend, STREAM, route=None)


def test_what_is_no_stream_passes_untouched(backend: Backend) -> None:
    """The iterable is the application's own object, and nothing is current or recorded."""
    own = [b"plain"]
    inside = []

    def app(_: Any, start_response: Any) -> list[bytes]:
        inside.append(trace.get_current_span())
        start_response("200 OK", [("Content-Type", "text/plain")], None)
        return own

    body, seen = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers))
    assert body is own
    assert seen == [("200 OK", [("Content-Type", "text/plain")], None)]
    assert inside == [trace.INVALID_SPAN]
    assert_silent(backend)


def test_a_server_finds_what_it_looks_at(backend: Backend) -> None:
    """A length only where there is one; a file wrapper as its own type, closed once."""
    sized, _ = call(streaming([b"data: 1\n\n"], backend))
    assert len(sized) == 1
    unsized, _ = call(streaming(iter([b"data: 1\n\n"]), backend))
    assert not hasattr(unsized, "__len__")
    for each in (sized, unsized):
        each.close()

    closed = []

    class File:
        def read(self, _: int = -1) -> bytes:
            return b""

        def close(self) -> None:
            closed.append(self)

    wrapped = FileWrapper(File())
    body, _ = call(streaming(wrapped, backend), **{"wsgi.file_wrapper": FileWrapper})
    assert body is wrapped
    body.close()
    assert len(closed) == 1
    reasons = [each.attributes["sse.close.reason"] for each in backend.spans("SSE")]
    assert reasons == ["client_disconnect", "client_disconnect", "completed"]


LISTED = [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]


def measured_first(body: Any) -> Iterator[bytes]:
    """As eventlet does."""
    assert sum(map(len, body)) == 27
    yield from body


def measured_between(body: Any) -> Iterator[bytes]:
    """As gevent does."""
    for number, chunk in enumerate(body):
        if number == 0:
            assert sum(map(len, body)) == 27
        yield chunk


def peeked(body: Any) -> Iterator[bytes]:
    assert next(iter(body)) == body[0] == LISTED[0]
    yield from body


@pytest.mark.parametrize("read", [1, 2, 4])
@pytest.mark.parametrize("server", [iter, measured_first, measured_between, peeked])
def test_a_list_may_be_gone_over_again(server: Any, read: int, backend: Backend) -> None:
    """It stays one: what measures it or reads in it finds all of it, and what is counted has been
    sent.
    """
    body, _ = call(streaming(LISTED, backend))
    assert isinstance(body, list)
    sending = server(body)
    chunks = [chunk for chunk, _ in zip(sending, range(read), strict=False)]
    assert chunks == LISTED[:read]
    # As where a send fails.
    del sending
    body.close()
    (span,) = backend.spans("SSE")
    # ``zip`` has asked for one more, which was not sent.
    assert span.attributes["sse.messages"] == min(read, 3)
    reason = "completed" if read == 4 else "client_disconnect"
    assert span.attributes["sse.close.reason"] == reason


@pytest.mark.parametrize("propagate", [False, True])
def test_middleware_may_join_a_list(propagate: bool, backend: Backend) -> None:
    """And the length that it has is what it would have without us."""
    body, _ = call(streaming(tuple(LISTED), backend, propagate=propagate))
    assert b"".join(body) == b"".join(body) == b"".join(LISTED)
    body.close()
    assert list(body) == LISTED
    (span,) = backend.spans("SSE")
    assert (span.attributes["sse.messages"], span.attributes["sse.io"]) == (3, 27)
    assert span.attributes["sse.close.reason"] == "completed"


def test_a_list_that_is_never_closed_is_recorded_as_garbage(backend: Backend) -> None:
    body, _ = call(streaming(LISTED, backend))
    assert list(body) == LISTED
    del body
    (span,) = wait_until(lambda: backend.spans("SSE"))
    assert span.attributes["sse.messages"] == 3
    assert span.attributes["sse.close.reason"] == "completed"


class Sized:
    """A body with a length, which the application makes piece by piece."""

    def __init__(self, *makes: Callable[[], bytes]) -> None:
        self.makes = makes
        self.closed = 0

    def __len__(self) -> int:
        return len(self.makes)

    def __iter__(self) -> Iterator[bytes]:
        return (each() for each in self.makes)

    def close(self) -> None:
        self.closed += 1


def test_a_sized_body_runs_in_its_stream(backend: Backend) -> None:
    """Its spans are the stream's children, what it raises is the stream's error, and it is closed
    once.
    """
    tracer = backend.providers["tracer_provider"].get_tracer("application")

    def first() -> bytes:
        with tracer.start_as_current_span("work"):
            return b"data: 1\n\n"

    def second() -> bytes:
        raise LookupError

    sized = Sized(first, second)
    body, _ = call(streaming(sized, backend))
    with pytest.raises(LookupError):
        list(body)
    body.close()
    (stream,), (work,) = backend.spans("SSE"), backend.spans("work")
    assert work.parent.span_id == stream.context.span_id
    assert stream.attributes["sse.messages"] == 1
    assert stream.attributes["error.type"] == "LookupError"
    assert sized.closed == 1
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_sized_body_that_starts_late_and_is_no_stream(backend: Backend) -> None:
    """It passes, piece by piece."""

    def app(_: Any, start_response: Any) -> Any:
        def first() -> bytes:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return b"1"

        return Sized(first, lambda: b"2")

    body, _ = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers))
    assert (len(body), list(body)) == (2, [b"1", b"2"])
    body.close()
    assert_silent(backend)


class Texts:
    """It has no length, and may be gone over again."""

    def __iter__(self) -> Iterator[bytes]:
        return iter(LISTED)


def test_an_iterable_without_a_length_may_be_gone_over_again(backend: Backend) -> None:
    """It counts once."""
    body, _ = call(streaming(Texts(), backend))
    assert list(body) == list(body) == LISTED
    body.close()
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.messages"] == 3


class Reply:
    """An iterable that middleware may know, with headers as its items, as Django's responses."""

    status_code = 200

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def __iter__(self) -> Iterator[bytes]:
        return iter(LISTED)

    def __getitem__(self, name: str) -> str:
        return self.headers[name]

    def __setitem__(self, name: str, value: str) -> None:
        self.headers[name] = value

    def __delitem__(self, name: str) -> None:
        del self.headers[name]

    def __contains__(self, name: str) -> bool:
        return name in self.headers


def test_middleware_finds_the_iterable_in_what_it_gets(backend: Backend) -> None:
    """Its class, attributes and items; it may have some set, and be referred to weakly."""
    body, _ = call(streaming(Reply(), backend))
    assert isinstance(body, Reply)
    assert body.status_code == 200
    assert not hasattr(body, "missing")
    body["X-Mine"] = "1"
    assert ("X-Mine" in body, body["X-Mine"]) == (True, "1")
    del body["X-Mine"]
    assert "X-Mine" not in body
    body.mine = 2
    assert body.mine == 2
    freed: list[Any] = []
    weakref.finalize(body, freed.append, None)
    assert list(body) == LISTED
    body.close()
    del body
    assert freed == [None]

    body, _ = call(streaming(iter(LISTED), backend))
    assert not hasattr(body, "__getitem__")
    body.close()


def test_a_strict_server_takes_our_environ(backend: Backend) -> None:
    """The standard library's check of the application's side, and of the server's."""
    inner = otel_sse.SSEWSGIMiddleware(validator(plain), **backend.providers)
    body, _ = call(
        validator(otel_sse.SSEWSGIMiddleware(inner, **backend.providers)), QUERY_STRING=""
    )
    assert list(body) == [b"plain"]
    body.close()


def plain(_: Any, start_response: Any) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"plain"]


def test_a_server_keeps_the_application(backend: Backend) -> None:
    """Its hooks and its own code may look at it."""
    app = flask.Flask("shop")
    SSEWSGIServerInstrumentor().instrument(**backend.providers)
    try:
        server = WSGIServer(("127.0.0.1", 0), app)
    finally:
        SSEWSGIServerInstrumentor().uninstrument()
    assert type(server.application) is ObservedApp
    assert server.application == app
    assert server.application.name == "shop"
    assert isinstance(server.application, flask.Flask)


def test_the_chunk_that_was_not_sent_does_not_count(backend: Backend) -> None:
    """The server closes before it asks for the next one; the application's clean-up runs."""
    cleaned = []

    def messages() -> Iterator[bytes]:
        try:
            yield b"data: 1\n\n"
            yield b"data: 2\n\n"
        finally:
            cleaned.append(trace.get_current_span())

    body, _ = call(streaming(messages(), backend))
    next(body), next(body)
    body.close()
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.messages"] == 1
    assert span.attributes["sse.close.reason"] == "client_disconnect"
    assert len(cleaned) == 1


def test_text_that_a_server_passes_over_is_no_warning_of_ours(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """WSGI has bytes alone; waitress takes text of which it has nothing to send."""
    pieces: list[Any] = ["data: 1\n\n", *PIECES]
    body, _ = call(streaming(iter(pieces), backend))
    assert list(body) == pieces
    body.close()
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.messages"] > 0
    assert not caplog.records


def test_an_iterable_that_is_never_closed_is_closed_as_garbage(backend: Backend) -> None:
    body, _ = call(streaming(iter(PIECES), backend))
    next(body)
    del body
    wait_until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "client_disconnect"


def test_a_span_that_stays_open_over_a_yield_is_the_parent_of_what_follows(
    backend: Backend,
) -> None:
    """And it is not current for what else the thread serves in between, nor afterwards."""
    tracer = backend.providers["tracer_provider"].get_tracer("application")

    def messages() -> Iterator[bytes]:
        with tracer.start_as_current_span("work"):
            yield b"data: 1\n\n"
            with tracer.start_as_current_span("step"):
                yield b"data: 2\n\n"

    body, _ = call(streaming(messages(), backend))
    current = [trace.get_current_span() for _ in body]
    body.close()
    assert current == [trace.INVALID_SPAN] * 2
    assert trace.get_current_span() is trace.INVALID_SPAN
    (stream,), (work,), (step,) = (backend.spans(name) for name in ("SSE", "work", "step"))
    assert work.parent.span_id == stream.context.span_id
    assert step.parent.span_id == work.context.span_id


def test_a_span_of_the_application_is_not_the_parent_of_its_stream(backend: Backend) -> None:
    """The one around the request is, whatever is current where the response starts."""
    tracer = backend.providers["tracer_provider"].get_tracer("application")

    def app(_: Any, start_response: Any) -> Any:
        with tracer.start_as_current_span("its own"):
            start_response("200 OK", TYPED)
        return [b"data: x\n\n"]

    wrapped = otel_sse.SSEWSGIMiddleware(app, **backend.providers)
    with tracer.start_as_current_span("request"):
        body, _ = call(wrapped)
        list(body)
        body.close()
    (stream,), (request,) = backend.spans("SSE"), backend.spans("request")
    assert stream.parent.span_id == request.context.span_id


def test_a_request_that_is_over_hides_no_stream(backend: Backend) -> None:
    """A thread's context may still have one of an ASGI server, whose frame has ended."""
    over = Request()
    over.finish(None)

    def serve() -> None:
        current_request.set(over)
        body, _ = call(streaming([b"data: x\n\n"], backend))
        list(body)
        body.close()

    contextvars.copy_context().run(serve)
    assert len(backend.spans("SSE")) == 1


def test_nested_frames_record_one_stream(backend: Backend) -> None:
    inner = streaming(iter(PIECES), backend)
    body, _ = call(otel_sse.SSEWSGIMiddleware(inner, **backend.providers))
    assert b"".join(body) == STREAM
    body.close()
    assert len(backend.spans("SSE")) == 1


def around(body: Any) -> Iterator[bytes]:
    """As middleware that handles what fails in a body."""
    try:
        yield from body
    except LookupError:
        yield b"data: handled\n\n"
    finally:
        body.close()


def test_an_error_that_middleware_handles_is_the_streams(backend: Backend) -> None:
    """Between two frames, whether it calls the inner one at once or at the first ``next``: an error
    page of a debugger, or another body.
    """

    def failing() -> Iterator[bytes]:
        yield b"data: 1\n\n"
        raise LookupError

    def at_once(environ: Any, start_response: Any) -> Any:
        return around(streaming(failing(), backend)(environ, start_response))

    def later(environ: Any, start_response: Any) -> Iterator[bytes]:
        yield from around(streaming(failing(), backend)(environ, start_response))

    for app in (at_once, later):
        body, _ = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers))
        assert list(body) == [b"data: 1\n\n", b"data: handled\n\n"]
        body.close()
    assert [
        (each.attributes["error.type"], each.attributes["sse.messages"])
        for each in backend.spans("SSE")
    ] == [("LookupError", 1)] * 2
    assert current_request.get() is None


def test_an_error_that_middleware_answers_is_the_streams(backend: Backend) -> None:
    """One that leaves the application once it has started its stream."""

    def raising(_: Any, start_response: Any) -> Any:
        start_response("200 OK", TYPED)
        raise LookupError

    inner = otel_sse.SSEWSGIMiddleware(raising, **backend.providers)

    def answering(environ: Any, start_response: Any) -> Any:
        try:
            return inner(environ, start_response)
        except LookupError:
            return [b"sorry"]

    body, _ = call(otel_sse.SSEWSGIMiddleware(answering, **backend.providers))
    assert list(body) == [b"sorry"]
    body.close()
    (span,) = backend.spans("SSE")
    assert span.attributes["error.type"] == "LookupError"
    assert current_request.get() is None


async def test_a_stream_in_place_of_another_response(backend: Backend) -> None:
    """As long as nothing has been sent the application may start anew."""

    def app(_: Any, start_response: Any) -> Any:
        start_response("500 Error", [("Content-Type", "text/plain")])
        start_response("200 OK", TYPED, (LookupError, LookupError(), None))
        return iter(PIECES)

    body, _ = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers))
    assert b"".join(body) == STREAM
    body.close()
    await assert_reported(backend, STREAM, route=None)


def test_what_is_returned_unobserved_starts_no_stream(backend: Backend) -> None:
    """Nothing would end it."""

    def app(_: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])

        def body() -> Iterator[bytes]:
            start_response("200 OK", TYPED, (LookupError, LookupError(), None))
            yield b"data: 1\n\n"

        return body()

    body, _ = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers))
    assert list(body) == [b"data: 1\n\n"]
    assert_silent(backend)


@pytest.mark.parametrize("content_type", ["text/plain", "text/event-stream"])
def test_what_a_request_has_started_does_not_keep_its_environ(
    content_type: str, backend: Backend
) -> None:
    """A greenlet or task has a copy of its context variables, and may go on for long."""

    class Upload:
        pass

    kept = []

    def app(_: Any, start_response: Any) -> Any:
        kept.append(contextvars.copy_context())
        start_response("200 OK", [("Content-Type", content_type)])
        return [b"data: 1\n\n"]

    upload = Upload()
    freed = weakref.ref(upload)
    body, _ = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers), upload=upload)
    list(body)
    getattr(body, "close", list)()
    del upload, body
    gc.collect()
    assert freed() is None


def test_a_header_whose_value_is_no_text_hides_no_stream(backend: Backend) -> None:
    """Some servers send any value."""

    def app(_: Any, start_response: Any) -> Any:
        start_response("200 OK", [("X-Count", 5), *TYPED])
        return [b"data: 1\n\n"]

    body, _ = call(otel_sse.SSEWSGIMiddleware(app, **backend.providers))
    assert list(body) == [b"data: 1\n\n"]
    body.close()
    assert len(backend.spans("SSE")) == 1


def test_an_application_may_change_its_context(backend: Backend) -> None:
    """A greenlet may take another one."""

    def app(_: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        greenlet.getcurrent().gr_context = contextvars.copy_context()
        return [b"plain"]

    wrapped = otel_sse.SSEWSGIMiddleware(app, **backend.providers)
    body, _ = greenlet.greenlet(lambda: call(wrapped)).switch()
    assert body == [b"plain"]


def test_the_route_of_a_request_whose_environ_middleware_copies(backend: Backend) -> None:
    """The framework puts what it knows into the copy."""
    app = flask.Flask(__name__)
    app.add_url_rule(
        "/rooms/<name>", "room", lambda name: flask.Response(iter([name]), content_type=TYPED[0][1])
    )

    def copying(environ: Any, start_response: Any) -> Any:
        return app(dict(environ), start_response)

    SSEFlaskInstrumentor().instrument(**backend.providers)
    try:
        outer = otel_sse.SSEWSGIMiddleware(copying, **backend.providers)
        body, _ = call(outer, PATH_INFO="/rooms/1")
        list(body)
        body.close()
    finally:
        SSEFlaskInstrumentor().uninstrument()
    (span,) = backend.spans("SSE")
    assert span.attributes["http.route"] == "/rooms/<name>"


async def test_a_silent_stream_is_reported_as_stalled(backend: Backend) -> None:
    """Without an event loop, while its own thread waits for the application."""
    go = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"data: 1\n\n"
        go.wait(60)
        yield b"data: 2\n\n"

    body, _ = call(streaming(messages(), backend, stall_seconds=0.05))
    reader = threading.Thread(target=lambda: [*body], daemon=True)
    reader.start()
    try:
        await until(lambda: backend.metrics() and backend.events("sse.connection.stalled"))
    finally:
        go.set()
        reader.join()
        body.close()
    (recovered,) = backend.events("sse.connection.recovered")
    assert recovered.attributes["sse.connection.idle"] >= 0.05


@pytest.mark.parametrize(
    ("kind", "patched"),
    [
        (SSEFlaskInstrumentor, [(flask.Flask, "wsgi_app")]),
        (SSEBottleInstrumentor, [(Bottle, "wsgi")]),
        (SSEDjangoInstrumentor, [(WSGIHandler, "__call__"), (BaseHandler, "_get_response")]),
    ],
)
def test_uninstrument_leaves_nothing(kind: Any, patched: Any, backend: Backend) -> None:
    before = [vars(owner)[name] for owner, name in patched]
    kind().instrument(**backend.providers)
    assert all(
        vars(owner)[name] is not then for (owner, name), then in zip(patched, before, strict=True)
    )
    kind().uninstrument()
    assert [vars(owner)[name] for owner, name in patched] == before
