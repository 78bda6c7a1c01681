"""ASGI frameworks with a hook of their own, on real servers."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from typing import Any

import blacksheep
import django
import falcon.asgi
import pytest
import quart
from blacksheep.server.application import MountMixin
from blacksheep.server.routing import RouterFiltersMixin
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.base import BaseHandler
from e2e.closes import FRAMEWORKS, UNNOTICED, Server
from e2e.each_close import check
from helpers.backend import Backend
from helpers.django_apps import django_app
from helpers.framework_cases import SSE, Case, case, raw_app, starlette
from helpers.framework_cases import check as check_case
from helpers.litestar_apps import litestar_app
from helpers.otlp import Receiver
from helpers.raw_client import RawClient
from helpers.servers import serve_asgi
from helpers.streams import STREAM, apieces, assert_reported, assert_silent, fetch
from helpers.waiting import until
from lilya.apps import Lilya
from lilya.responses import StreamingResponse
from lilya.routing import Path
from litestar import Litestar, asgi, get, post
from litestar.config.compression import CompressionConfig
from litestar.response import Stream
from litestar.routes import ASGIRoute, HTTPRoute
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.trace import SpanKind
from packaging.version import Version
from quart.asgi import ASGIHTTPConnection
from starlette.routing import Mount

from otel_sse.frameworks import (
    SSEASGIServerInstrumentor,
    SSEBlackSheepInstrumentor,
    SSEDjangoInstrumentor,
    SSEFalconInstrumentor,
    SSELitestarInstrumentor,
    SSEQuartInstrumentor,
    SSEStarletteInstrumentor,
)
from otel_sse.instrumentor import observed_apps

try:
    from litestar.plugins.opentelemetry import OpenTelemetryConfig, OpenTelemetryPlugin
except ImportError:
    # Litestar 2.0 has no plugin for it.
    from litestar.contrib.opentelemetry import OpenTelemetryConfig

    OpenTelemetryPlugin = None

CASES: list[Any] = []
PATCHED = [
    (HTTPRoute, "handle"),
    (ASGIRoute, "handle"),
    (ASGIHandler, "__call__"),
    (BaseHandler, "_get_response_async"),
    (quart.Quart, "asgi_app"),
    (quart.Quart, "full_dispatch_request"),
    (ASGIHTTPConnection, "handle_request"),
    (falcon.asgi.App, "__call__"),
    (falcon.App, "_get_responder"),
    (blacksheep.Application, "__call__"),
    (MountMixin, "__call__"),
    (blacksheep.Router, "get_match"),
    (RouterFiltersMixin, "get_match"),
]
KINDS = (
    SSEASGIServerInstrumentor,
    SSEStarletteInstrumentor,
    SSELitestarInstrumentor,
    SSEDjangoInstrumentor,
    SSEQuartInstrumentor,
    SSEFalconInstrumentor,
    SSEBlackSheepInstrumentor,
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


@pytest.mark.parametrize("server", FRAMEWORKS.values(), ids=FRAMEWORKS)
async def test_each_close_is_reported(server: Server, receiver: Receiver) -> None:
    """See ``each_close``; the server's hook, which is on as well, adds nothing."""
    if server is FRAMEWORKS["django, daphne"] and django.VERSION < (5,):
        # Its handler does not wait for the client's disconnect yet.
        server = dataclasses.replace(server, differs=UNNOTICED)
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


def litestar_in_starlette() -> Any:
    return starlette(Mount("/sub", Litestar([streaming])))


if Version(version("litestar")) >= Version("2.5"):
    # Before that it does not find its routes below the Starlette of today.
    case(CASES, "/sub/rooms/1", "/sub/rooms/{room}")(litestar_in_starlette)


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


@case(CASES, "/rooms/1", "/rooms/<room>")
def quart_app() -> Any:
    app = quart.Quart(__name__)

    @app.get("/rooms/<room>")
    async def rooms(room: str) -> quart.Response:
        return quart.Response(apieces(), content_type=SSE)

    return app


@case(CASES, "/sub/rooms/1", "/sub/rooms/<room>")
def quart_in_starlette() -> Any:
    return starlette(Mount("/sub", quart_app()))


@case(CASES, "/missing", None, status=404)
def quart_error_handler() -> Any:
    """Its handler of an error, which no route matches, answers with a stream."""
    app = quart.Quart(__name__)

    @app.errorhandler(404)
    async def missing(error: Exception) -> quart.Response:
        return quart.Response(apieces(), 404, content_type=SSE)

    return app


@case(CASES, "/rooms/1", "/rooms/{room}")
def falcon_app() -> Any:
    class Rooms:
        async def on_get(self, request: Any, response: Any, room: str) -> None:
            response.content_type, response.stream = SSE, apieces()

    app = falcon.asgi.App()
    app.add_route("/rooms/{room}", Rooms())
    return app


@case(CASES, "/rooms/1", "/rooms/{room}")
def falcon_events() -> Any:
    """By Falcon's own events, which it pings and reads the client's disconnect for."""

    class Rooms:
        async def on_get(self, request: Any, response: Any, room: str) -> None:
            response.sse = self.events()

        async def events(self) -> AsyncIterator[falcon.asgi.SSEvent]:
            for number in range(3):
                yield falcon.asgi.SSEvent(event="tick", event_id=str(number), text="a")

    app = falcon.asgi.App()
    app.add_route("/rooms/{room}", Rooms())
    return app


@case(CASES, "/any", None)
def falcon_sink() -> Any:
    async def sink(request: Any, response: Any) -> None:
        response.content_type, response.stream = SSE, apieces()

    app = falcon.asgi.App()
    app.add_sink(sink)
    return app


@case(CASES, "/rooms/1", "/rooms/{room}")
def blacksheep_app() -> Any:
    app = blacksheep.Application(router=blacksheep.Router())

    @app.router.get("/rooms/{room}")
    async def rooms(room: str) -> blacksheep.Response:
        return blacksheep.Response(200, content=blacksheep.StreamedContent(SSE.encode(), apieces))

    return app


@case(CASES, "/sub/rooms/1", "/sub/rooms/{room}")
def blacksheep_in_blacksheep() -> Any:
    app = blacksheep.Application(router=blacksheep.Router())
    app.mount("/sub", blacksheep_app())
    return app


@case(CASES, "/raw/any", "/raw")
def blacksheep_mount() -> Any:
    app = blacksheep.Application(router=blacksheep.Router())
    app.mount("/raw", raw_app)
    return app


@case(CASES, "/any", None)
def blacksheep_fallback() -> Any:
    async def fallback(request: blacksheep.Request) -> blacksheep.Response:
        return blacksheep.Response(200, content=blacksheep.StreamedContent(SSE.encode(), apieces))

    app = blacksheep.Application(router=blacksheep.Router())
    app.router.fallback = fallback
    return app


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


async def test_contribs_middleware_inside_quart_is_the_parent(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """Put around ``asgi_app``, as Quart recommends."""
    instrument()
    app = quart_app()
    app.asgi_app = OpenTelemetryMiddleware(app.asgi_app, tracer_provider=backend.tracer_provider)
    async with serve_asgi(app) as port:
        await fetch(port, "/rooms/1")
        (stream,) = await until(lambda: backend.spans("SSE"))
    (server,) = [each for each in backend.spans() if each.kind is SpanKind.SERVER]
    assert stream.parent is not None
    assert stream.parent.span_id == server.context.span_id
    assert server.attributes["sse.connection.id"] == stream.attributes["sse.connection.id"]


async def test_a_stream_that_quart_cuts_has_timed_out(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """After ``RESPONSE_TIMEOUT`` it leaves the response without an end."""
    instrument()
    app = quart.Quart(__name__)
    app.config["RESPONSE_TIMEOUT"] = 0.05

    @app.get("/")
    async def silent() -> quart.Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await asyncio.Event().wait()

        return quart.Response(body(), content_type=SSE)

    async with serve_asgi(app) as port:
        client = await RawClient.get(port, "/")
        (stream,) = await until(lambda: backend.spans("SSE"))
        await client.close()
    assert stream.attributes["sse.close.reason"] == "timeout"
    assert stream.attributes["error.type"] == "TimeoutError"


async def test_lilya_is_seen_by_the_server(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """As any framework that no instrumentor knows; its route is unknown."""

    async def rooms(room: str) -> StreamingResponse:
        return StreamingResponse(apieces(), media_type=SSE)

    instrument()
    async with serve_asgi(Lilya(routes=[Path("/rooms/{room}", rooms)])) as port:
        assert (await fetch(port, "/rooms/1")).body == STREAM
    await assert_reported(backend, STREAM, route=None)


async def test_litestars_own_telemetry_is_the_parent(
    backend: Backend, instrument: Callable[..., None]
) -> None:
    """It puts contrib's ASGI middleware around each route."""
    instrument()
    config = OpenTelemetryConfig(tracer_provider=backend.tracer_provider)
    if OpenTelemetryPlugin is None:
        app = Litestar([streaming], middleware=[config.middleware])
    else:
        app = Litestar([streaming], plugins=[OpenTelemetryPlugin(config)])
    async with serve_asgi(app) as port:
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
    assert not observed_apps
    for app, each in apps:
        async with serve_asgi(app) as port:
            await each.ask(port)
    assert_silent(backend)
