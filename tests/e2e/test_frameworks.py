"""Every way in which a framework sends an event stream, on a real server and a real socket."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import aiohttp_sse
import fastapi
import pytest
import sse_starlette
from aiohttp import web
from fastapi.responses import StreamingResponse as FastAPIStreamingResponse
from fastapi.sse import EventSourceResponse as FastAPIEventSourceResponse
from fastapi.sse import ServerSentEvent
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.servers import AIOHTTP_SSE_3, serve_aiohttp, serve_asgi
from helpers.streams import (
    PIECES,
    STREAM,
    Reply,
    apieces,
    assert_silent,
    assert_told,
    fetch,
    parse,
    pieces,
)
from helpers.waiting import until
from litestar import Litestar, get
from litestar.response import ServerSentEvent as LitestarServerSentEvent
from litestar.response.sse import ServerSentEventMessage
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Host, Mount, Route, Router

from otel_sse import SSEMiddleware

SSE = "text/event-stream"
Instrument = Callable[..., None]


@dataclasses.dataclass(frozen=True)
class Case:
    """An application, a request to it, and what has to be told of that."""

    build: Callable[[], Any]
    path: str
    route: str | None
    method: str = "GET"
    headers: tuple[str, ...] = ()
    host: str = "localhost"
    body: bytes = b""
    status: int = 200
    coding: str | None = None

    async def ask(self, port: int) -> Reply:
        reply = await fetch(
            port,
            self.path,
            *self.headers,
            method=self.method,
            host=self.host,
            body=self.body,
        )
        assert reply.status == self.status, reply.raw
        assert reply.headers.get("content-encoding") == self.coding
        return reply


ASGI: list[Any] = []
AIOHTTP: list[Any] = []


def case(cases: list[Any], path: str, route: str | None, **options: Any) -> Any:
    """Adds what the decorated function builds to the cases, under its name."""

    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        cases.append(pytest.param(Case(build, path, route, **options), id=build.__name__))
        return build

    return add


# --- Starlette ---------------------------------------------------------------------------------


async def endpoint(request: Request) -> Response:
    return StreamingResponse(apieces(), media_type=SSE)


async def raw_app(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application without any framework."""
    assert scope["type"] == "http"
    headers = [(b"content-type", SSE.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in PIECES:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


def below_proxy(app: Any) -> Any:
    """The application as a server runs it that is told of a path prefix."""

    async def proxied(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/proxy"}, receive, send)

    return proxied


def starlette(*routes: Any, **options: Any) -> Starlette:
    return Starlette(routes=[*routes], **options)


@case(ASGI, "/streams/7", "/streams/{name:int}")
def starlette_streaming_response() -> Any:
    return starlette(Route("/streams/{name:int}", endpoint))


@case(ASGI, "/events", "/events")
def starlette_sync_iterator() -> Any:
    async def sync(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type=SSE)

    return starlette(Route("/events", sync))


@case(ASGI, "/events", "/events")
def starlette_whole_body() -> Any:
    async def whole(request: Request) -> Response:
        return Response(STREAM, media_type=SSE)

    return starlette(Route("/events", whole))


@case(ASGI, "/events", "/events", method="POST", body=b'{"stream": true}')
def starlette_post() -> Any:
    async def post(request: Request) -> Response:
        assert await request.json() == {"stream": True}
        return StreamingResponse(apieces(), media_type=SSE)

    return starlette(Route("/events", post, methods=["POST"]))


@case(ASGI, "/events", "/events")
def media_type_with_parameter_and_odd_case() -> Any:
    async def odd(request: Request) -> Response:
        headers = {"content-type": "Text/Event-Stream ; Charset=UTF-8"}
        return StreamingResponse(apieces(), headers=headers)

    return starlette(Route("/events", odd))


@case(ASGI, "/events", "/events", status=503)
def starlette_server_error() -> Any:
    async def failing(request: Request) -> Response:
        return StreamingResponse(apieces(), status_code=503, media_type=SSE)

    return starlette(Route("/events", failing))


@case(
    ASGI,
    "/acme/v2/rooms/blue/events/9",
    "/{tenant}/v{version:int}/rooms/{room}/events/{n}",
)
def mounts_three_deep() -> Any:
    rooms = Mount("/rooms/{room}", routes=[Route("/events/{n}", endpoint)])
    versions = Mount("/v{version:int}", routes=[Route("/events", endpoint), rooms])
    return starlette(Mount("/{tenant}", routes=[versions]))


@case(ASGI, "/outer/inner/events", "/outer/inner/events")
def applications_in_applications() -> Any:
    inner = starlette(Route("/events", endpoint))
    middle = starlette(Mount("/inner", inner))
    return starlette(Route("/outer", endpoint), Mount("/outer", middle))


@case(ASGI, "/raw/any/where", "/raw")
def raw_application_below_a_mount() -> Any:
    return starlette(Mount("/raw", raw_app))


@case(ASGI, "/acme/raw/", "/{tenant}/raw")
def raw_application_below_two_mounts() -> Any:
    return starlette(Mount("/{tenant}", routes=[Mount("/raw", raw_app)]))


@case(ASGI, "/events", "/events")
def application_mounted_at_the_root() -> Any:
    return starlette(Mount("/", starlette(Route("/events", endpoint))))


@case(ASGI, "/events", None)
def raw_application_mounted_at_the_root() -> Any:
    # A mount at the root has no template of its own.
    return starlette(Mount("/", raw_app))


@case(ASGI, "/rooms/1", "/rooms/{room}", host="eu.example.org")
def host_route() -> Any:
    inside = Router([Route("/rooms/{room}", endpoint)])
    return starlette(Host("{region}.example.org", inside), Route("/rooms/{other}", endpoint))


@case(ASGI, "/api/rooms/1", "/api/rooms/{room}", host="eu.example.org:8000")
def host_route_below_a_mount() -> Any:
    inside = Router([Route("/rooms/{room}", endpoint)])
    return starlette(Mount("/api", routes=[Host("eu.example.org", inside)]))


@case(ASGI, "/anything", None, host="eu.example.org")
def raw_application_below_a_host() -> Any:
    return starlette(Host("eu.example.org", raw_app))


@case(ASGI, "/events", "/events")
def bare_router() -> Any:
    return Router([Route("/events", endpoint)])


@case(ASGI, "/events", "/events", method="POST")
def second_route_of_the_same_path() -> Any:
    async def wrong(request: Request) -> Response:
        raise AssertionError

    routes = [
        Route("/events", wrong, methods=["GET"]),
        Route("/{name}", endpoint, methods=["PUT"]),
        Route("/events", endpoint, methods=["POST"]),
    ]
    return starlette(*routes)


@case(ASGI, "/proxy/api/events", "/api/events")
def root_path_of_a_proxy() -> Any:
    return below_proxy(starlette(Mount("/api", routes=[Route("/events", endpoint)])))


@case(ASGI, "/events", "/events")
def base_http_middleware() -> Any:
    async def dispatch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-seen"] = "yes"
        return response

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=dispatch)] * 2
    return starlette(Route("/events", endpoint), middleware=middleware)


@case(ASGI, "/events", "/events", headers=("Accept-Encoding: gzip",))
def gzip_middleware() -> Any:
    return starlette(Route("/events", endpoint), middleware=[Middleware(GZipMiddleware)])


GZIP_ALL = Middleware(GZipMiddleware, minimum_size=0, exclude_content_types=())
GZIPPED = {"headers": ("Accept-Encoding: gzip",), "coding": "gzip"}


@case(ASGI, "/events", "/events", **GZIPPED)
def gzip_middleware_that_compresses() -> Any:
    return starlette(Route("/events", endpoint), middleware=[GZIP_ALL])


@case(ASGI, "/sub/events", "/sub/events", **GZIPPED)
def gzip_middleware_of_a_mounted_application() -> Any:
    return starlette(Mount("/sub", starlette(Route("/events", endpoint), middleware=[GZIP_ALL])))


@case(ASGI, "/sub/events", "/sub/events", **GZIPPED)
def gzip_middleware_of_a_mount() -> Any:
    return starlette(Mount("/sub", routes=[Route("/events", endpoint)], middleware=[GZIP_ALL]))


# --- sse-starlette and FastAPI -----------------------------------------------------------------


async def told_events() -> AsyncIterator[sse_starlette.ServerSentEvent]:
    yield sse_starlette.ServerSentEvent(comment="hello")
    for number in range(4):
        yield sse_starlette.ServerSentEvent(data=f"{number}\nx", event="tick", id=str(number))
    yield sse_starlette.ServerSentEvent(data="done", retry=10)


@case(ASGI, "/events/1", "/events/{n}")
def sse_starlette_response() -> Any:
    async def events(request: Request) -> Response:
        return sse_starlette.EventSourceResponse(told_events())

    return starlette(Route("/events/{n}", events))


async def native_events(n: int = 3) -> AsyncIterator[ServerSentEvent]:
    """An operation of FastAPI's own event streams."""
    yield ServerSentEvent(comment="hello")
    for number in range(n):
        yield ServerSentEvent(data={"n": number}, event="tick", id=str(number))
        await asyncio.sleep(0)
    yield ServerSentEvent(raw_data="[DONE]")


def native_sync_events() -> Iterator[ServerSentEvent]:
    for number in range(3):
        yield ServerSentEvent(data=number)


NATIVE = {"response_class": FastAPIEventSourceResponse}


@case(ASGI, "/rooms/1/events?n=20", "/rooms/{room}/events")
def fastapi_native() -> Any:
    app = fastapi.FastAPI()
    app.get("/rooms/{room}/events", **NATIVE)(native_events)
    return app


@case(ASGI, "/events", "/events", method="POST")
def fastapi_native_sync_post() -> Any:
    app = fastapi.FastAPI()
    app.post("/events", **NATIVE)(native_sync_events)
    return app


@case(ASGI, "/events", "/events", method="POST", body=b"{}", headers=("Content-Type: a/json",))
def fastapi_streaming_response() -> Any:
    app = fastapi.FastAPI()

    @app.post("/events")
    async def events() -> Response:
        return FastAPIStreamingResponse(apieces(), media_type=SSE)

    return app


def nested_routers() -> fastapi.APIRouter:
    """A router in a router, both with prefixes and parameters."""
    inner = fastapi.APIRouter(prefix="/rooms/{room}")
    inner.get("/events", **NATIVE)(native_events)
    outer = fastapi.APIRouter(prefix="/tenants/{tenant}")
    outer.get("/events", **NATIVE)(native_events)
    outer.include_router(inner, prefix="/inner")
    return outer


ROUTERS = "/api/v1/tenants/{tenant}/inner/rooms/{room}/events"


@case(ASGI, "/api/v1/tenants/a/inner/rooms/b/events", ROUTERS)
def fastapi_include_router() -> Any:
    app = fastapi.FastAPI()
    app.get("/api/v1/other", **NATIVE)(native_events)
    app.include_router(nested_routers(), prefix="/api/v1")
    return app


@case(ASGI, "/two/tenants/a/events", "/two/tenants/{tenant}/events")
def fastapi_router_included_twice() -> Any:
    app = fastapi.FastAPI()
    router = nested_routers()
    app.include_router(router, prefix="/one")
    app.include_router(router, prefix="/two")
    return app


@case(ASGI, "/p/raw/x", "/p/raw")
def fastapi_mount_in_an_included_router() -> Any:
    router = fastapi.APIRouter()
    router.mount("/raw", raw_app)
    app = fastapi.FastAPI()
    app.include_router(router, prefix="/p")
    return app


@case(ASGI, "/p/plain/1", "/p/plain/{n}")
def fastapi_plain_route_in_an_included_router() -> Any:
    router = fastapi.APIRouter()
    router.add_route("/plain/{n}", endpoint)
    app = fastapi.FastAPI()
    app.include_router(router, prefix="/p")
    return app


@case(ASGI, "/api/7" + ROUTERS.replace("{", "").replace("}", ""), "/api/{version}" + ROUTERS)
def fastapi_application_mounted_in_starlette() -> Any:
    sub = fastapi.FastAPI()
    sub.include_router(nested_routers(), prefix="/api/v1")
    return starlette(Mount("/api/{version}", sub))


@case(ASGI, "/sub/1/events", "/sub/{n}/events")
def fastapi_application_mounted_in_fastapi() -> Any:
    sub = fastapi.FastAPI()
    sub.get("/events", **NATIVE)(native_events)
    app = fastapi.FastAPI()
    app.mount("/sub/{n}", sub)
    return app


@case(ASGI, "/proxy/rooms/1/events", "/rooms/{room}/events")
def fastapi_root_path() -> Any:
    app = fastapi.FastAPI()
    app.get("/rooms/{room}/events", **NATIVE)(native_events)
    return below_proxy(app)


@case(ASGI, "/events", "/events", **GZIPPED)
def fastapi_native_compressed() -> Any:
    app = fastapi.FastAPI(middleware=[GZIP_ALL])
    app.get("/events", **NATIVE)(native_events)
    return app


# --- aiohttp -----------------------------------------------------------------------------------

TYPED = {"Content-Type": SSE}


def aiohttp_app(path: str, handler: Any, **options: Any) -> web.Application:
    app = web.Application(**options)
    app.router.add_route("*", path, handler)
    return app


async def write_pieces(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=TYPED)
    await response.prepare(request)
    for piece in PIECES:
        await response.write(piece)
        await asyncio.sleep(0)
    return response


@case(AIOHTTP, "/rooms/1/events", "/rooms/{room}/events")
def write() -> Any:
    return aiohttp_app("/rooms/{room}/events", write_pieces)


@case(AIOHTTP, "/events", "/events", method="POST", body=b"{}")
def write_to_a_post() -> Any:
    return aiohttp_app("/events", write_pieces)


@case(AIOHTTP, "/events", "/events")
def write_other_buffers() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "Text/EVENT-stream;charset=utf-8"})
        await response.prepare(request)
        for piece in PIECES:
            await response.write(bytearray(piece))
        for piece in PIECES:
            await response.write(memoryview(piece))
        return response

    return aiohttp_app("/events", handler)


@case(AIOHTTP, "/events", "/events")
def writer_that_prepare_gives() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=TYPED)
        writer = await response.prepare(request)
        assert writer is not None
        for piece in PIECES:
            await writer.write(piece)
        return response

    return aiohttp_app("/events", handler)


@case(AIOHTTP, "/events", "/events")
def write_eof_with_the_last_piece() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=TYPED)
        await response.prepare(request)
        for piece in PIECES[:-1]:
            await response.write(piece)
        await response.write_eof(PIECES[-1])
        return response

    return aiohttp_app("/events", handler)


async def bytes_body(request: web.Request) -> web.StreamResponse:
    response = web.Response(body=STREAM, headers=TYPED)
    if "Accept-Encoding" in request.headers:
        response.enable_compression()
    return response


async def generator_body(request: web.Request) -> web.StreamResponse:
    response = web.Response(body=apieces(), headers=TYPED)
    if "Accept-Encoding" in request.headers:
        response.enable_compression()
    return response


@case(AIOHTTP, "/events", "/events")
def body_of_bytes() -> Any:
    return aiohttp_app("/events", bytes_body)


@case(AIOHTTP, "/events", "/events")
def body_of_an_async_generator() -> Any:
    return aiohttp_app("/events", generator_body)


@case(AIOHTTP, "/events", "/events")
def body_of_text() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=STREAM.decode(), content_type=SSE, charset="utf-8")

    return aiohttp_app("/events", handler)


@case(AIOHTTP, "/events/1", "/events/{n}")
def aiohttp_sse_response() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        async with aiohttp_sse.sse_response(request) as response:
            for number in range(3):
                await response.send(f"{number}\nx", id=str(number), event="tick")
            await response.send("done", retry=10)
        return response

    return aiohttp_app("/events/{n}", handler)


@case(AIOHTTP, "/api/v1/rooms/1/events", "/api/v1/rooms/{room}/events")
def sub_applications() -> Any:
    inner = aiohttp_app(r"/rooms/{room:\d+}/events", write_pieces)
    middle = web.Application()
    middle.add_subapp("/v1/", inner)
    app = web.Application()
    app.add_subapp("/api/", middle)
    return app


@case(AIOHTTP, "/rooms/1", "/rooms/{room}", host="eu.example.org")
def domain_application() -> Any:
    app = web.Application()
    app.add_domain("*.example.org", aiohttp_app("/rooms/{room}", write_pieces))
    return app


seen_by: ContextVar[tuple[str, ...]] = ContextVar("seen_by")


@web.middleware
async def first_middleware(request: web.Request, handler: Any) -> Any:
    token = seen_by.set(("first",))
    try:
        return await handler(request)
    finally:
        seen_by.reset(token)


@web.middleware
async def second_middleware(request: web.Request, handler: Any) -> Any:
    assert seen_by.get() == ("first",)
    response = await handler(request)
    assert response.content_type == SSE
    return response


@case(AIOHTTP, "/events", "/events")
def two_middlewares() -> Any:
    return aiohttp_app("/events", write_pieces, middlewares=[first_middleware, second_middleware])


@case(AIOHTTP, "/sub/events", "/sub/events")
def middlewares_of_a_sub_application() -> Any:
    app = web.Application(middlewares=[first_middleware])
    inner = aiohttp_app("/events", generator_body, middlewares=[second_middleware])
    app.add_subapp("/sub", inner)
    return app


async def compressed_writes(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=TYPED)
    response.enable_compression()
    await response.prepare(request)
    for piece in PIECES:
        await response.write(piece)
    return response


@case(AIOHTTP, "/events", "/events", **GZIPPED)
def compression_of_writes() -> Any:
    return aiohttp_app("/events", compressed_writes)


@case(AIOHTTP, "/events", "/events", headers=("Accept-Encoding: deflate",), coding="deflate")
def compression_by_deflate() -> Any:
    return aiohttp_app("/events", compressed_writes)


@case(AIOHTTP, "/events", "/events", **GZIPPED)
def compression_of_bytes() -> Any:
    return aiohttp_app("/events", bytes_body)


@case(AIOHTTP, "/events", "/events", **GZIPPED)
def compression_of_an_async_generator() -> Any:
    return aiohttp_app("/events", generator_body)


class Streams(web.View):
    async def get(self) -> web.StreamResponse:
        return await write_pieces(self.request)


@case(AIOHTTP, "/views/1", "/views/{n}")
def class_based_view() -> Any:
    app = web.Application()
    app.router.add_view("/views/{n}", Streams)
    return app


@case(AIOHTTP, "/events", "/events", status=418)
def http_exception() -> Any:
    class Teapot(web.HTTPClientError):
        status_code = 418

    async def handler(request: web.Request) -> web.StreamResponse:
        raise Teapot(text=STREAM.decode(), content_type=SSE)

    return aiohttp_app("/events", handler)


@case(AIOHTTP, "/events", "/events", status=503)
def http_server_exception() -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPServiceUnavailable(text=STREAM.decode(), content_type=SSE)

    return aiohttp_app("/events", handler)


# --- any ASGI application ----------------------------------------------------------------------


@get("/rooms/{room:str}")
async def litestar_handler() -> LitestarServerSentEvent:
    async def messages() -> AsyncIterator[Any]:
        yield "plain"
        yield {"data": "a\nb", "event": "tick", "id": 1}
        yield ServerSentEventMessage(comment="still here", data=None)
        yield ServerSentEventMessage(data="done", retry=10)

    return LitestarServerSentEvent(messages(), event_type="told", comment_message="hello")


WRAPPED: list[Any] = []


@case(WRAPPED, "/any", None)
def raw_application() -> Any:
    return raw_app


@case(WRAPPED, "/rooms/1", "/rooms/{room}")
def litestar_application() -> Any:
    return Litestar([litestar_handler])


# --- what is told ------------------------------------------------------------------------------


class Swapped:
    """An ASGI application that can be replaced below its server."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def twice(case: Case, between: Callable[[], Any]) -> tuple[Reply, Reply]:
    """What a new application answers before and after something is switched on. What that gives,
    if anything, wraps the second one.
    """
    replies = []
    if isinstance(case.build(), web.Application):
        for switch in (None, between):
            if switch is not None:
                switch()
            async with serve_aiohttp(case.build()) as port:
                replies.append(await case.ask(port))
    else:
        swapped = Swapped()
        async with serve_asgi(swapped) as port:
            swapped.app = case.build()
            replies.append(await case.ask(port))
            wrap = between()
            swapped.app = wrap(case.build()) if wrap else case.build()
            replies.append(await case.ask(port))
    plain, seen = replies
    return plain, seen


async def check(case: Case, backend: Backend, instrument: Instrument) -> None:
    plain, seen = await twice(case, instrument)
    assert seen.raw == plain.raw
    wanted = {"route": case.route, "method": case.method, "status": case.status}
    await assert_told(backend, seen.stream, **wanted)


@pytest.mark.parametrize("case", ASGI)
async def test_a_stream_below_a_starlette_router_is_told_and_left_alone(
    case: Case, backend: Backend, instrument: Instrument
) -> None:
    """The response is the same byte for byte as without us, and is told once: exact counts, the
    whole route template, one span, one opening and one ending.
    """
    await check(case, backend, instrument)


@pytest.mark.parametrize("case", AIOHTTP)
async def test_a_stream_of_aiohttp_is_told_and_left_alone(
    case: Case, backend: Backend, instrument: Instrument
) -> None:
    """However aiohttp.web is made to write a body: same bytes, exact counts, whole route."""
    await check(case, backend, instrument)


@pytest.mark.parametrize("case", WRAPPED)
async def test_a_stream_of_any_asgi_application_is_told_by_the_middleware(
    case: Case, backend: Backend
) -> None:
    """``SSEMiddleware`` needs no framework: same bytes, exact counts, and a route where the scope
    names one.
    """
    plain, seen = await twice(case, lambda: partial(SSEMiddleware, **backend.providers))
    assert seen.raw == plain.raw
    await assert_told(backend, seen.stream, route=case.route)


async def test_the_middleware_around_an_instrumented_application_counts_once(
    backend: Backend, instrument: Instrument
) -> None:
    """Twice watched is once told, by the outer one, which learns the route from the inner one."""
    instrument()
    app = SSEMiddleware(mounts_three_deep(), **backend.providers)
    async with serve_asgi(app) as port:
        reply = await fetch(port, "/acme/v2/rooms/blue/events/9")
    assert reply.body == STREAM
    await assert_told(backend, STREAM, route="/{tenant}/v{version:int}/rooms/{room}/events/{n}")


async def test_the_middleware_below_an_instrumented_application_counts_once(
    backend: Backend, instrument: Instrument
) -> None:
    """A mounted application that is wrapped by hand is told once, with the mount's route."""
    instrument()
    app = starlette(Mount("/raw", SSEMiddleware(raw_app, **backend.providers)))
    async with serve_asgi(app) as port:
        reply = await fetch(port, "/raw/1")
    assert reply.body == STREAM
    await assert_told(backend, STREAM, route="/raw")


async def test_a_low_level_server_of_aiohttp_is_told(
    backend: Backend, instrument: Instrument
) -> None:
    """``web.Server`` has no application and no routes; its streams are streams all the same."""
    instrument()
    runner = web.ServerRunner(web.Server(write_pieces))  # type: ignore[arg-type]
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        reply = await fetch(runner.addresses[0][1], "/any")
    finally:
        await runner.cleanup()
    assert reply.body == STREAM
    await assert_told(backend, STREAM, route=None)


# --- pings -------------------------------------------------------------------------------------


async def read_past_pings(port: int, path: str, go_on: asyncio.Event) -> Reply:
    """Reads a response of which the rest comes only once two pings have been seen."""
    client = await RawClient.get(port, path, "Connection: close")
    raw = await client.until(b": ping")
    raw += await client.until(b": ping")
    go_on.set()
    raw += await client.reader.read(-1)
    await client.close()
    return parse(raw)


async def test_pings_of_sse_starlette_are_comments(
    backend: Backend, instrument: Instrument
) -> None:
    """What the library's own keep-alive task sends, beside the generator, is counted exactly."""
    go_on = asyncio.Event()

    async def waiting() -> AsyncIterator[Any]:
        yield {"data": "before"}
        await go_on.wait()
        yield {"data": "after", "event": "tick"}

    async def events(request: Request) -> Response:
        return sse_starlette.EventSourceResponse(waiting(), ping=0.02)

    instrument()
    async with serve_asgi(starlette(Route("/events", events))) as port:
        reply = await read_past_pings(port, "/events", go_on)
    assert reply.body.count(b"data: ") == 2
    assert reply.body.count(b": ping") >= 2
    await assert_told(backend, reply.body, route="/events")


async def test_pings_of_native_fastapi_streams_are_comments(
    backend: Backend, instrument: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastAPI inserts its keep-alives in a task of its own; they are counted exactly."""
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.02)
    go_on = asyncio.Event()

    async def events() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(data="before")
        await go_on.wait()
        yield ServerSentEvent(data="after", event="tick")

    app = fastapi.FastAPI()
    app.get("/events", **NATIVE)(events)
    instrument()
    async with serve_asgi(app) as port:
        reply = await read_past_pings(port, "/events", go_on)
    assert reply.body.count(b"data: ") == 2
    assert reply.body.count(b": ping") >= 2
    await assert_told(backend, reply.body, route="/events")


@AIOHTTP_SSE_3
async def test_pings_of_aiohttp_sse_are_comments(backend: Backend, instrument: Instrument) -> None:
    """aiohttp-sse pings from a task of its own; its writes belong to the stream."""
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        async with aiohttp_sse.sse_response(request, ping_interval=0.02) as response:
            await response.send("before")
            await go_on.wait()
            await response.send("after", event="tick")
        return response

    instrument()
    async with serve_aiohttp(aiohttp_app("/events", handler)) as port:
        reply = await read_past_pings(port, "/events", go_on)
    assert reply.body.count(b"data: ") == 2
    assert reply.body.count(b": ping") >= 2
    await assert_told(backend, reply.body, route="/events")


# --- endings below mounts ----------------------------------------------------------------------


class Ending:
    """Streams a message, and then waits for ever or breaks."""

    def __init__(self, breaks: bool) -> None:
        self._breaks = breaks

    async def events(self) -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        if self._breaks:
            raise LookupError
        await asyncio.Event().wait()

    async def endpoint(self, request: Request) -> Response:
        return StreamingResponse(self.events(), media_type=SSE)

    def routes(self) -> list[Any]:
        return [Route("/events", self.endpoint)]

    def mount(self) -> Any:
        return starlette(Mount("/sub", routes=self.routes()))

    def application(self) -> Any:
        return starlette(Mount("/sub", starlette(*self.routes())))

    def gzipped_application(self) -> Any:
        return starlette(Mount("/sub", starlette(*self.routes(), middleware=[GZIP_ALL])))

    def fastapi_application(self) -> Any:
        sub = fastapi.FastAPI()
        sub.add_route("/events", self.endpoint)
        return starlette(Mount("/sub", sub))

    def wrapped_application(self) -> Any:
        sub = starlette(*self.routes(), middleware=[Middleware(PassingOn)])
        return starlette(Mount("/sub", starlette(Mount("/", sub))))


class PassingOn:
    """Middleware that sends in the application's place."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def passing_on(message: Any) -> None:
            await send(message)

        await self.app(scope, receive, passing_on)


BELOW = pytest.mark.parametrize(
    "build",
    [
        Ending.mount,
        Ending.application,
        Ending.gzipped_application,
        Ending.fastapi_application,
        Ending.wrapped_application,
    ],
    ids=lambda build: build.__name__,
)


@BELOW
async def test_a_stream_below_a_mount_ends_when_its_client_leaves(
    build: Any, backend: Backend, instrument: Instrument
) -> None:
    """However many routers and middlewares are between, the ending is told once and in full."""
    instrument()
    async with serve_asgi(build(Ending(breaks=False))) as port:
        client = await RawClient.get(port, "/sub/events")
        await client.until(b"data: 1\n\n")
        await client.close()
        await until(lambda: backend.events("sse.connection.closed"))
    await assert_told(backend, b"data: 1\n\n", route="/sub/events", reason="client_disconnect")


@BELOW
async def test_a_stream_below_a_mount_that_breaks_ends_in_error(
    build: Any, backend: Backend, instrument: Instrument
) -> None:
    """The exception that leaves the generator is the reason, whatever has seen it pass."""
    instrument()
    async with serve_asgi(build(Ending(breaks=True))) as port:
        client = await RawClient.get(port, "/sub/events")
        await client.until(b"data: 1\n\n")
        (closed,) = await until(lambda: backend.events("sse.connection.closed"))
        await client.close()
    assert closed.attributes["sse.close.reason"] == "error"
    assert closed.attributes["error.type"] == "LookupError"
    assert closed.severity_text == "ERROR"
    (span,) = backend.spans("SSE")
    assert span.name == "SSE /sub/events"
    assert not span.status.is_ok
    assert backend.value("sse.server.messages") == 1
    assert backend.value("sse.server.active_connections") == 0


# --- what is not told --------------------------------------------------------------------------

SILENT: list[Any] = []


@case(SILENT, "/events", None, method="HEAD")
def head_of_starlette() -> Any:
    return starlette_whole_body()


@case(SILENT, "/events", None, status=204)
def no_content_of_starlette() -> Any:
    async def empty(request: Request) -> Response:
        return Response(status_code=204, media_type=SSE)

    return starlette(Route("/events", empty))


@case(SILENT, "/events", None, status=304)
def not_modified_of_starlette() -> Any:
    async def unchanged(request: Request) -> Response:
        return Response(status_code=304, media_type=SSE)

    return starlette(Route("/events", unchanged))


@case(SILENT, "/events", None)
def other_stream_of_starlette() -> Any:
    async def other(request: Request) -> Response:
        return StreamingResponse(apieces(), media_type="text/event-stream-like")

    return starlette(Route("/events", other))


@case(SILENT, "/events", None, headers=("Accept: text/event-stream",))
def whole_response_of_starlette() -> Any:
    async def whole(request: Request) -> Response:
        return PlainTextResponse(STREAM)

    return starlette(Route("/events", whole))


@case(SILENT, "/nowhere", None, status=404)
def no_route_of_starlette() -> Any:
    return starlette(Route("/events", endpoint))


@case(SILENT, "/events", None, method="DELETE", status=405)
def no_method_of_starlette() -> Any:
    return starlette(Route("/events", endpoint))


@case(SILENT, "/events", None, method="HEAD")
def head_of_aiohttp() -> Any:
    return body_of_bytes()


@case(SILENT, "/events", None, method="HEAD")
def head_of_aiohttp_that_writes() -> Any:
    return aiohttp_app("/events", write_pieces)


@case(SILENT, "/events", None, status=204)
def no_content_of_aiohttp() -> Any:
    async def empty(request: web.Request) -> web.StreamResponse:
        return web.Response(status=204, headers=TYPED)

    return aiohttp_app("/events", empty)


@case(SILENT, "/events", None, status=304)
def not_modified_of_aiohttp() -> Any:
    async def unchanged(request: web.Request) -> web.StreamResponse:
        return web.Response(status=304, headers=TYPED)

    return aiohttp_app("/events", unchanged)


@case(SILENT, "/events", None)
def other_stream_of_aiohttp() -> Any:
    async def other(request: web.Request) -> web.StreamResponse:
        return web.Response(body=apieces(), content_type="application/octet-stream")

    return aiohttp_app("/events", other)


@case(SILENT, "/nowhere", None, status=404)
def no_route_of_aiohttp() -> Any:
    return aiohttp_app("/events", write_pieces)


@pytest.mark.parametrize("case", SILENT)
async def test_what_is_no_event_stream_is_not_told(
    case: Case, backend: Backend, instrument: Instrument
) -> None:
    """A response of another type, or without a body, passes unseen; the next stream is told."""
    plain, seen = await twice(case, instrument)
    assert seen.raw == plain.raw
    assert_silent(backend)
    async with serve_asgi(starlette(Route("/told", endpoint))) as port:
        reply = await fetch(port, "/told")
    await assert_told(backend, reply.body, route="/told")
