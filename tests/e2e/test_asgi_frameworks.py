"""ASGI frameworks with a hook of their own, on real servers."""

import gzip
import signal
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.base import BaseHandler
from e2e.each_close import Server, check
from helpers.backend import Backend
from helpers.django_apps import django_app
from helpers.framework_cases import SSE, Case, case, raw_app, starlette
from helpers.framework_cases import check as check_case
from helpers.litestar_apps import litestar_app
from helpers.otlp import Receiver
from helpers.servers import serve_asgi
from helpers.streams import STREAM, apieces, assert_reported, assert_silent, fetch
from helpers.waiting import until
from litestar import Litestar, asgi, get, post
from litestar.config.compression import CompressionConfig
from litestar.plugins.opentelemetry import OpenTelemetryConfig, OpenTelemetryPlugin
from litestar.response import Stream
from litestar.routes import ASGIRoute, HTTPRoute
from opentelemetry.trace import SpanKind
from starlette.routing import Mount

from otel_sse.frameworks import (
    SSEASGIServerInstrumentor,
    SSEDjangoInstrumentor,
    SSELitestarInstrumentor,
    SSEStarletteInstrumentor,
)

_UVICORN: Final = "uvicorn {app} --port {{port}} --timeout-graceful-shutdown 1"
_HYPERCORN: Final = "hypercorn {app} -b 127.0.0.1:{{port}} --graceful-timeout 1"
_GRANIAN: Final = "granian {app} --interface asgi --port {{port}} --workers-kill-timeout 10"
_DAPHNE: Final = "daphne -p {{port}} {app}"
_GUNICORN: Final = "gunicorn -b 127.0.0.1:{{port}} --graceful-timeout 10 -k asgi {app}"


def on(command: str, app: str, route: str, **options: Any) -> Server:
    """A framework's application on a server."""
    status = -signal.SIGTERM if command is _UVICORN else 0
    return Server(command.format(app=app), route, status=status, **options)


SERVERS: Final = {
    "litestar, uvicorn": on(_UVICORN, "endings_litestar:app", "/stream/{ending}"),
    "django, uvicorn": on(_UVICORN, "endings_django:app", "stream/<ending>"),
    "django, daphne": on(
        _DAPHNE, "endings_django:app", "stream/<ending>", without=("raises-first",)
    ),
    "litestar, granian": on(_GRANIAN, "endings_litestar:app", "/stream/{ending}"),
}
CASES: list[Any] = []
PATCHED = [
    (HTTPRoute, "handle"),
    (ASGIRoute, "handle"),
    (ASGIHandler, "__call__"),
    (BaseHandler, "_get_response_async"),
]
KINDS = (
    SSEASGIServerInstrumentor,
    SSEStarletteInstrumentor,
    SSELitestarInstrumentor,
    SSEDjangoInstrumentor,
)


@pytest.fixture
def instrument(backend: Backend) -> Iterator[Callable[..., None]]:
    """Switches the frameworks' instrumentors on, the servers' too, and off after the test."""

    def on() -> None:
        for kind in KINDS:
            kind().instrument(**backend.providers)

    yield on
    for kind in KINDS:
        if kind().telemetry is not None:
            kind().uninstrument()


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
async def test_each_close_is_reported(server: Server, receiver: Receiver) -> None:
    """See ``each_close``; the server's hook, which is on as well, adds nothing."""
    await check(server, receiver)


case(CASES, "/rooms/1", "/rooms/{room}")(litestar_app)


@get("/rooms/{room:str}")
async def streaming() -> Stream:
    return Stream(apieces(), media_type=SSE)


@case(CASES, "/rooms", "/rooms", method="POST", status=503)
def litestar_post() -> Any:
    @post("/rooms", status_code=503)
    async def posted() -> Stream:
        return Stream(apieces(), media_type=SSE)

    return Litestar([posted])


@case(CASES, "/raw/any", "/raw")
def litestar_mount() -> Any:
    return Litestar([asgi("/raw", is_mount=True, copy_scope=True)(raw_app)])


@case(CASES, "/sub/rooms/1", "/sub/rooms/{room}")
def litestar_in_starlette() -> Any:
    return starlette(Mount("/sub", Litestar([streaming])))


case(CASES, "/rooms/1", "rooms/<room>")(django_app)


@case(CASES, "/sub/rooms/1", "/sub/rooms/<room>")
def django_in_starlette() -> Any:
    return starlette(Mount("/sub", django_app()))


@case(CASES, "/rooms/1", "rooms/<room>")
def django_in_a_copied_scope() -> Any:
    app = django_app()

    async def copying(scope: Any, receive: Any, send: Any) -> None:
        await app(dict(scope), receive, send)

    return copying


@pytest.mark.parametrize("case", CASES)
async def test_a_stream_is_reported_and_unmodified(
    case: Case, backend: Backend, instrument: Callable[..., None]
) -> None:
    """The response is the same byte for byte as without us, and is reported once: exact counts,
    the whole route template, one span, one opened and one closed event.
    """
    await check_case(case, backend, instrument)


async def test_what_litestar_compresses_is_counted_before_that(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """Its hook is inside of that middleware."""
    instrument()
    config = CompressionConfig("gzip", minimum_size=1)
    async with serve_asgi(Litestar([streaming], compression_config=config)) as port:
        reply = await fetch(port, "/rooms/1", "Accept-Encoding: gzip")
    assert (reply.headers["content-encoding"], reply.stream) == ("gzip", STREAM)
    await assert_reported(backend, STREAM, route="/rooms/{room}")


async def test_what_django_compresses_is_counted_as_it_is_sent(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """Its hook is outside of that middleware: the bytes are the coded ones, and no message is
    made up from them.
    """
    instrument()
    async with serve_asgi(django_app("django.middleware.gzip.GZipMiddleware")) as port:
        reply = await fetch(port, "/rooms/1", "Accept-Encoding: gzip")
        await until(lambda: backend.spans("SSE rooms/<room>"))
    # A member of its own for each part.
    assert gzip.decompress(reply.body) == STREAM
    assert backend.value("sse.server.io") == len(reply.body)
    assert backend.value("sse.server.messages") == 0


async def test_litestars_own_telemetry_is_the_parent(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """Its plugin puts contrib's ASGI middleware around each route."""
    instrument()
    config = OpenTelemetryConfig(tracer_provider=backend.tracer_provider)
    async with serve_asgi(Litestar([streaming], plugins=[OpenTelemetryPlugin(config)])) as port:
        await fetch(port, "/rooms/1")
        (stream,) = await until(lambda: backend.spans("SSE"))
    servers = [each for each in backend.spans() if each.kind is SpanKind.SERVER]
    assert stream.parent is not None
    assert [each.context.span_id for each in servers] == [stream.parent.span_id]


async def test_uninstrument_leaves_nothing(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """Every attribute is what it was, and an application from before passes its streams through."""
    before = [vars(owner)[name] for owner, name in PATCHED]
    instrument()
    assert all(
        vars(owner)[name] is not each for (owner, name), each in zip(PATCHED, before, strict=True)
    )
    apps = [(each.values[0].build(), each.values[0]) for each in CASES]
    for kind in KINDS:
        kind().uninstrument()
    assert [vars(owner)[name] for owner, name in PATCHED] == before
    for app, each in apps:
        async with serve_asgi(app) as port:
            await each.ask(port)
    assert_silent(backend)
