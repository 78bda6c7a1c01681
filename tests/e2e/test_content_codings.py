"""A content coding inside of a framework's frame: the stream is read before it is encoded."""

import asyncio
import gc
import inspect
import threading
import time
import types
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar, Final
from wsgiref.util import setup_testing_defaults

import bottle
import flask
import pytest
from django.http import StreamingHttpResponse
from django.middleware.gzip import GZipMiddleware
from django.urls import path
from flask_compress import Compress
from helpers.backend import Backend
from helpers.django_apps import GZip, django_app, django_wsgi_app
from helpers.framework_cases import SSE, Case, case
from helpers.framework_cases import check as check_case
from helpers.raw_client import RawClient
from helpers.servers import serve_asgi, serve_wsgi
from helpers.streams import STREAM, closed, fetch, pieces
from helpers.waiting import until

from otel_sse.frameworks import (
    SSEBottleInstrumentor,
    SSEDjangoInstrumentor,
    SSEFlaskInstrumentor,
    SSEWSGIServerInstrumentor,
)
from otel_sse.servers.content import MAX_HELD

GZIP: Final = "helpers.django_apps.GZip"
GZIPPED: Final[dict[str, Any]] = {"headers": ("Accept-Encoding: gzip",), "coding": "gzip"}
DEFLATED: Final[dict[str, Any]] = {"headers": ("Accept-Encoding: deflate",), "coding": "deflate"}
KINDS: Final = (
    SSEDjangoInstrumentor,
    SSEFlaskInstrumentor,
    SSEBottleInstrumentor,
    SSEWSGIServerInstrumentor,
)
ASGI: list[Any] = []
WSGI: list[Any] = []
CONSUMED: Final = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume:Warning")


@pytest.fixture
def instrument(backend: Backend) -> Iterator[Callable[..., None]]:
    """Switches the frameworks' instrumentors on, and off after the test."""

    def on(**options: Any) -> None:
        for kind in KINDS:
            kind().instrument(**backend.providers, **options)

    yield on
    for kind in KINDS:
        if kind().telemetry is not None:
            kind().uninstrument()


@case(ASGI, "/rooms/1", "rooms/<room>", **GZIPPED)
@case(ASGI, "/threads/1", "threads/<room>", **GZIPPED)
@case(ASGI, "/whole/1", "whole/<room>", **GZIPPED)
@case(ASGI, "/texts/1", "texts/<room>", **GZIPPED)
def django_asgi() -> Any:
    return django_app(GZIP)


case(ASGI, "/decorated/1", "decorated/<room>", **GZIPPED)(django_app)


@case(WSGI, "/rooms/1", "rooms/<room>", **GZIPPED)
@case(WSGI, "/threads/1", "threads/<room>", **GZIPPED)
@case(WSGI, "/whole/1", "whole/<room>", **GZIPPED)
@case(WSGI, "/texts/1", "texts/<room>", **GZIPPED)
def django_wsgi() -> Any:
    return django_wsgi_app(GZIP)


case(WSGI, "/decorated/1", "decorated/<room>", **GZIPPED)(django_wsgi_app)


class OwnCoding:
    """Middleware of an application's own, by Django's interface."""

    def __init__(self, get_response: Callable[..., Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        response = self.get_response(request)
        response.streaming_content = deflated(response.streaming_content)
        response.headers["Content-Encoding"] = "deflate"
        return response


def deflated(parts: Any) -> Iterator[bytes]:
    """Each part in what is sent for it."""
    encoder = zlib.compressobj()
    for part in parts:
        yield encoder.compress(part) + encoder.flush(zlib.Z_SYNC_FLUSH)
    yield encoder.flush()


@case(WSGI, "/threads/1", "threads/<room>", **DEFLATED)
def django_own_middleware() -> Any:
    return django_wsgi_app(f"{__name__}.OwnCoding")


def flask_app(
    body: Callable[[], Any] = pieces, kind: type[flask.Flask] = flask.Flask
) -> flask.Flask:
    app = kind(__name__)

    @app.get("/rooms/<room>")
    def rooms(room: str) -> flask.Response:
        return flask.Response(body(), content_type=SSE)

    return app


def compressing(app: flask.Flask) -> flask.Flask:
    app.config["COMPRESS_MIMETYPES"] = [SSE]
    app.config["COMPRESS_MIN_SIZE"] = 0
    Compress(app)
    return app


@case(WSGI, "/rooms/1", "/rooms/<room>", **DEFLATED)
def flask_compress() -> Any:
    """It keeps what it encodes until its buffer is full."""
    return compressing(flask_app())


@case(WSGI, "/rooms/1", "/rooms/<room>", **DEFLATED)
def flask_compress_whole() -> Any:
    return compressing(flask_app(lambda: STREAM))


def own_function(body: Callable[[], Any]) -> Any:
    app = flask_app(body)

    @app.after_request
    def encode(response: flask.Response) -> flask.Response:
        response.response = deflated(response.iter_encoded())
        response.headers["Content-Encoding"] = "deflate"
        return response

    return app


class Texts:
    """It can be read again."""

    def __iter__(self) -> Iterator[str]:
        return iter(("data: 1\n\n", "data: ü\n\n"))


@case(WSGI, "/rooms/1", "/rooms/<room>", **DEFLATED)
def flask_compress_texts() -> Any:
    return compressing(flask_app(Texts))


class NamedFlask(flask.Flask):
    """Gives the response by its name."""

    def process_response(self, *args: Any) -> flask.Response:
        *context, response = args
        return super().process_response(*context, response=response)


@case(WSGI, "/rooms/1", "/rooms/<room>", **DEFLATED)
def flask_subclass() -> Any:
    return compressing(flask_app(kind=NamedFlask))


@case(WSGI, "/rooms/1", "/rooms/<room>", **DEFLATED)
def flask_own_function() -> Any:
    return own_function(pieces)


def encoding(app: Any) -> Any:
    """WSGI middleware that encodes every response."""

    def encoded(environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: Any, *exc_info: Any) -> Any:
            headers = [*headers, ("Content-Encoding", "deflate")]
            return start_response(status, headers, *exc_info)

        return deflated(app(environ, start))

    return encoded


@case(WSGI, "/rooms/1", "/rooms/<room>", **DEFLATED)
def flask_in_middleware() -> Any:
    app = flask_app()
    app.wsgi_app = encoding(app.wsgi_app)  # type: ignore[method-assign]
    return app


@case(WSGI, "/rooms/1", "/rooms/<room>", **DEFLATED)
def bottle_in_middleware() -> Any:
    app = bottle.Bottle()

    @app.get("/rooms/<room>")  # type: ignore[untyped-decorator]
    def rooms(room: str) -> Iterator[bytes]:
        bottle.response.content_type = SSE
        return pieces()

    return encoding(app)


@case(ASGI, "/both/1", "both/<room>", **GZIPPED)
def django_asgi_both() -> Any:
    return django_app(f"{__name__}.OwnAsyncViews")


@case(WSGI, "/both/1", "both/<room>", **GZIPPED)
def django_both() -> Any:
    return django_wsgi_app(f"{__name__}.OwnAsyncViews")


def call(app: Any, **environ: Any) -> tuple[Any, list[Any]]:
    """What the application returns, and what it has started the response with."""
    started: list[Any] = []
    setup_testing_defaults(environ)
    environ.setdefault("HTTP_HOST", "localhost")
    return app(environ, lambda *args: started.append(args)), started


@CONSUMED
@pytest.mark.parametrize("case", ASGI)
async def test_a_stream_is_read_inside_its_coding(
    case: Case, backend: Backend, instrument: Callable[..., None]
) -> None:
    """Of Django's ASGI handler: the bytes are the same as without us, and exact counts of what they
    hold are reported once, with the route. By an iterator of either kind, or none.
    """
    await check_case(case, backend, instrument)


@CONSUMED
@pytest.mark.parametrize("case", WSGI)
async def test_a_wsgi_stream_is_read_inside_its_coding(
    case: Case, backend: Backend, instrument: Callable[..., None]
) -> None:
    """The same."""
    await check_case(case, backend, instrument, serve_wsgi)


closes: list[threading.Event] = []


def endless() -> Iterator[bytes]:
    """It notes at once that it is closed."""
    closes.append(ended := threading.Event())
    try:
        while True:
            yield b"data: more\n\n"
            time.sleep(0.005)
    finally:
        ended.set()


async def aendless() -> AsyncIterator[bytes]:
    closes.append(ended := threading.Event())
    try:
        while True:
            yield b"data: more\n\n"
            await asyncio.sleep(0.005)
    finally:
        ended.set()


def raising() -> Iterator[bytes]:
    yield b"data: 1\n\n"
    raise LookupError


class Both:
    """An iterator of either kind: Django takes it as a synchronous one."""

    def __init__(self) -> None:
        self.pieces = pieces()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self.pieces)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self.pieces)
        except StopIteration:
            raise StopAsyncIteration from None


def view(body: Callable[[], Any]) -> Any:
    return lambda *_, **__: StreamingHttpResponse(body(), content_type=SSE)


urlpatterns = [
    path("endless/<room>", view(endless)),
    path("aendless/<room>", view(aendless)),
    path("raising/<room>", view(raising)),
    path("both/<room>", view(Both)),
]


class OwnViews(OwnCoding):
    """The same coding, around the views above; of an asynchronous iterator Django's own."""

    def __call__(self, request: Any) -> Any:
        request.urlconf = __name__
        return super().__call__(request)


class OwnAsyncViews(GZip):
    def process_request(self, request: Any) -> None:
        request.urlconf = __name__


ENDLESS: Final = {
    "django": (lambda: django_wsgi_app(f"{__name__}.OwnViews"), "/endless/1", serve_wsgi),
    "django-asgi": (lambda: django_app(f"{__name__}.OwnAsyncViews"), "/aendless/1", serve_asgi),
    "flask": (lambda: own_function(endless), "/rooms/1", serve_wsgi),
}


@pytest.mark.parametrize(("build", "url", "serve"), ENDLESS.values(), ids=ENDLESS)
async def test_what_was_sent_before_a_disconnect_counts(
    build: Any, url: str, serve: Any, backend: Backend, instrument: Callable[..., None]
) -> None:
    """The client closes: the application's iterator is closed at once, as without us, not when
    garbage is collected, and what is counted are messages that the client had asked for.
    """
    instrument()
    async with serve(build()) as port:
        gc.disable()
        try:
            client = await RawClient.get(port, url, "Accept-Encoding: gzip")
            await client.until(b"\r\n\r\n")
            await until(lambda: backend.value("sse.server.messages") >= 3)
            client.reset()
            await until(lambda: backend.spans("SSE"))
            await until(closes[-1].is_set)
        finally:
            gc.enable()
    assert closed(backend) == ("client_disconnect", None)
    (span,) = backend.spans("SSE")
    assert span.attributes is not None
    messages = span.attributes["sse.messages"]
    assert span.attributes["sse.io"] == messages * len(b"data: more\n\n")


@pytest.mark.parametrize("kind", ["django", "flask"])
async def test_what_raises_inside_a_coding_is_an_error(
    kind: str, backend: Backend, instrument: Callable[..., None]
) -> None:
    """With the message that went before."""
    instrument()
    app = own_function(raising) if kind == "flask" else django_wsgi_app(f"{__name__}.OwnViews")
    body, _ = call(app, PATH_INFO="/rooms/1" if kind == "flask" else "/raising/1")
    with pytest.raises(LookupError):
        list(body)
    body.close()
    assert closed(backend) == ("error", "LookupError")
    assert backend.value("sse.server.messages") == 1


async def test_what_a_coding_keeps_is_bounded(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """Flask-Compress keeps what can be compressed well for long: it counts before its end."""
    seen: list[float] = []

    def repeated() -> Iterator[bytes]:
        for _ in range(200):
            yield b"data: %s\n\n" % (b"x" * 1000)
        seen.append(backend.value("sse.server.io"))

    instrument()
    app = compressing(flask_app(repeated))
    body, _ = call(app, PATH_INFO="/rooms/1", HTTP_ACCEPT_ENCODING="deflate")
    sent = zlib.decompress(b"".join(body))
    body.close()
    assert seen[0] > len(sent) - 2 * MAX_HELD
    assert backend.value("sse.server.io") == len(sent)
    assert backend.value("sse.server.messages") == 200


@pytest.mark.parametrize("kind", ["django", "django-asgi", "flask"])
async def test_a_trace_comment_is_written_inside_a_coding(
    kind: str, backend: Backend, instrument: Callable[..., None]
) -> None:
    """Where they are asked for; the stream is what the application sends otherwise."""
    instrument(propagate=True)
    app, url, serve = {
        "django": (django_wsgi_app(GZIP), "/threads/1", serve_wsgi),
        "django-asgi": (django_app(GZIP), "/rooms/1", serve_asgi),
        "flask": (own_function(pieces), "/rooms/1", serve_wsgi),
    }[kind]
    async with serve(app) as port:
        reply = await fetch(port, url, "Accept-Encoding: gzip")
    lines = reply.stream.splitlines(keepends=True)
    comments = [line for line in lines if line.startswith(b": otel traceparent=")]
    assert len(comments) >= 6
    assert b"".join(line for line in lines if line not in comments) == STREAM
    (span,) = await until(lambda: backend.spans("SSE"))
    assert span.attributes is not None
    assert span.attributes["sse.io"] == len(STREAM)


class Keeping(OwnViews):
    """It keeps the response, and encodes nothing."""

    kept: ClassVar[list[Any]] = []

    def __call__(self, request: Any) -> Any:
        response = self.get_response(request)
        self.kept.append(response)
        return response


async def test_without_a_coding_an_iterator_is_the_applications(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """When the response has started, nothing of ours is in its place, for each part to pass."""
    instrument()
    apps = (
        (django_wsgi_app(f"{__name__}.Keeping"), "/threads/1", serve_wsgi),
        (django_app(f"{__name__}.Keeping"), "/rooms/1", serve_asgi),
    )
    for django, url, serve in apps:
        async with serve(django) as port:
            assert (await fetch(port, url)).body == STREAM
        response = Keeping.kept.pop()
        assert type(response._iterator) in (types.GeneratorType, types.AsyncGeneratorType)
    kept: list[flask.Response] = []
    app = flask_app()
    app.after_request(lambda response: kept.append(response) or response)
    async with serve_wsgi(app) as port:
        assert (await fetch(port, "/rooms/1")).body == STREAM
    assert type(kept[0].response) is types.GeneratorType


def test_what_has_no_body_keeps_its_iterator(instrument: Callable[..., None]) -> None:
    """The answer to a HEAD, which Django goes over to leave it out."""
    instrument()
    body, _ = call(
        django_wsgi_app(f"{__name__}.Keeping"), PATH_INFO="/threads/1", REQUEST_METHOD="HEAD"
    )
    assert type(Keeping.kept.pop()._iterator) is types.GeneratorType
    body.close()
    kept: list[flask.Response] = []
    app = flask_app()
    app.after_request(lambda response: kept.append(response) or response)
    body, _ = call(app, PATH_INFO="/rooms/1", REQUEST_METHOD="HEAD")
    assert type(kept[0].response) is types.GeneratorType


def test_middleware_finds_the_iterator_in_what_it_gets(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """A generator is one to it: it may send and throw into it, and every part counts."""

    def answering() -> Iterator[str]:
        got = yield "data: 1\n\n"
        try:
            yield f"data: {got}\n\n"
        except LookupError:
            yield "data: 3\n\n"

    def driving(parts: Any) -> Iterator[str]:
        yield next(parts)
        yield parts.send("2")
        yield parts.throw(LookupError())
        assert next(parts, None) is None

    app = flask_app(answering)

    @app.after_request
    def drive(response: flask.Response) -> flask.Response:
        assert inspect.isgenerator(response.response)
        response.response = driving(response.response)
        response.headers["Content-Encoding"] = "own"
        return response

    instrument()
    body, _ = call(app, PATH_INFO="/rooms/1")
    assert list(body) == [b"data: %d\n\n" % number for number in (1, 2, 3)]
    body.close()
    (span,) = backend.spans("SSE")
    assert span.attributes is not None
    assert (span.attributes["sse.messages"], span.attributes["sse.io"]) == (3, 27)
    assert closed(backend) == ("completed", None)


def test_uninstrument_leaves_nothing(instrument: Callable[..., None]) -> None:
    """Of the hooks for codings."""
    patched = ((GZipMiddleware, "process_response"), (flask.Flask, "process_response"))
    before = [vars(owner)[name] for owner, name in patched]
    instrument()
    assert not any(vars(o)[n] is then for (o, n), then in zip(patched, before, strict=True))
    for kind in KINDS:
        kind().uninstrument()
    assert [vars(owner)[name] for owner, name in patched] == before
