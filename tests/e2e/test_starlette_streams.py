"""Every way in which Starlette, sse-starlette and FastAPI send an event stream."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import fastapi
import pytest
import sse_starlette
from fastapi.responses import StreamingResponse as FastAPIStreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from helpers.backend import Backend
from helpers.framework_cases import (
    GZIP_ALL,
    GZIPPED,
    SSE,
    Case,
    Instrument,
    case,
    check,
    endpoint,
    mounts_three_deep,
    raw_app,
    starlette,
    starlette_whole_body,
)
from helpers.streams import STREAM, apieces, pieces
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Host, Mount, Route, Router

ASGI: list[Any] = []

case(
    ASGI,
    "/acme/v2/rooms/blue/events/9",
    "/{tenant}/v{version:int}/rooms/{room}/events/{n}",
)(mounts_three_deep)

case(ASGI, "/events", "/events")(starlette_whole_body)


def below_proxy(app: Any) -> Any:
    """The application as a server runs it that knows a path prefix."""

    async def proxied(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/proxy"}, receive, send)

    return proxied


@case(ASGI, "/streams/7", "/streams/{name:int}")
def starlette_streaming_response() -> Any:
    return starlette(Route("/streams/{name:int}", endpoint))


@case(ASGI, "/events", "/events")
def starlette_sync_iterator() -> Any:
    async def sync(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type=SSE)

    return starlette(Route("/events", sync))


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


@case(ASGI, "/events", "/events", **GZIPPED)
def gzip_middleware_that_compresses() -> Any:
    return starlette(Route("/events", endpoint), middleware=[GZIP_ALL])


@case(ASGI, "/sub/events", "/sub/events", **GZIPPED)
def gzip_middleware_of_a_mounted_application() -> Any:
    return starlette(Mount("/sub", starlette(Route("/events", endpoint), middleware=[GZIP_ALL])))


@case(ASGI, "/sub/events", "/sub/events", **GZIPPED)
def gzip_middleware_of_a_mount() -> Any:
    return starlette(Mount("/sub", routes=[Route("/events", endpoint)], middleware=[GZIP_ALL]))


async def library_events() -> AsyncIterator[sse_starlette.ServerSentEvent]:
    yield sse_starlette.ServerSentEvent(comment="hello")
    for number in range(4):
        yield sse_starlette.ServerSentEvent(data=f"{number}\nx", event="tick", id=str(number))
    yield sse_starlette.ServerSentEvent(data="done", retry=10)


@case(ASGI, "/events/1", "/events/{n}")
def sse_starlette_response() -> Any:
    async def events(request: Request) -> Response:
        return sse_starlette.EventSourceResponse(library_events())

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


@case(ASGI, "/rooms/1/events?n=20", "/rooms/{room}/events")
def fastapi_native() -> Any:
    app = fastapi.FastAPI()
    app.get("/rooms/{room}/events", response_class=EventSourceResponse)(native_events)
    return app


@case(ASGI, "/events", "/events", method="POST")
def fastapi_native_sync_post() -> Any:
    app = fastapi.FastAPI()
    app.post("/events", response_class=EventSourceResponse)(native_sync_events)
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
    inner.get("/events", response_class=EventSourceResponse)(native_events)
    outer = fastapi.APIRouter(prefix="/tenants/{tenant}")
    outer.get("/events", response_class=EventSourceResponse)(native_events)
    outer.include_router(inner, prefix="/inner")
    return outer


ROUTERS = "/api/v1/tenants/{tenant}/inner/rooms/{room}/events"


@case(ASGI, "/api/v1/tenants/a/inner/rooms/b/events", ROUTERS)
def fastapi_include_router() -> Any:
    app = fastapi.FastAPI()
    app.get("/api/v1/other", response_class=EventSourceResponse)(native_events)
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
    sub.get("/events", response_class=EventSourceResponse)(native_events)
    app = fastapi.FastAPI()
    app.mount("/sub/{n}", sub)
    return app


@case(ASGI, "/proxy/rooms/1/events", "/rooms/{room}/events")
def fastapi_root_path() -> Any:
    app = fastapi.FastAPI()
    app.get("/rooms/{room}/events", response_class=EventSourceResponse)(native_events)
    return below_proxy(app)


@case(ASGI, "/events", "/events", **GZIPPED)
def fastapi_native_compressed() -> Any:
    app = fastapi.FastAPI(middleware=[GZIP_ALL])
    app.get("/events", response_class=EventSourceResponse)(native_events)
    return app


class AnswerError(Exception):
    """An error whose handler answers with a stream."""


async def answer(request: Request, error: Exception) -> Response:
    return StreamingResponse(apieces(), media_type=SSE)


async def failing(request: Request, call_next: Any = None) -> Response:
    raise AnswerError


async def answering(request: Request, call_next: Any) -> Response:
    return Response(STREAM, media_type=SSE)


async def again(request: Request, call_next: Any) -> Response:
    """The stream once more, as middleware does that changes its headers or its body."""
    response = await call_next(request)
    return StreamingResponse(response.body_iterator, headers=dict(response.headers))


async def library_answering(request: Request, call_next: Any) -> Response:
    return sse_starlette.EventSourceResponse(library_events())


@case(ASGI, "/events", "/events")
def a_middlewares_response_around_a_stream() -> Any:
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=again)]
    return starlette(Route("/events", endpoint), middleware=middleware)


@case(ASGI, "/events", None)
def a_middleware_answers() -> Any:
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=answering)] * 2
    return starlette(Route("/events", endpoint), middleware=middleware)


@case(ASGI, "/events", None)
def a_middleware_answers_by_sse_starlette() -> Any:
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=library_answering)]
    return starlette(Route("/events", endpoint), middleware=middleware)


@case(ASGI, "/events", "/events")
def the_handler_of_an_endpoints_error_answers() -> Any:
    return starlette(Route("/events", failing), exception_handlers={AnswerError: answer})


@case(ASGI, "/events", None)
def the_handler_of_a_middlewares_error_answers() -> Any:
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=failing)]
    handlers = {Exception: answer}
    return starlette(Route("/events", endpoint), middleware=middleware, exception_handlers=handlers)


@pytest.mark.parametrize("case", ASGI)
async def test_a_stream_below_a_starlette_router_is_reported_and_unmodified(
    case: Case, backend: Backend, instrument: Instrument
) -> None:
    """The response is the same byte for byte as without us, and is reported once: exact counts,
    the whole route template, one span, one opened and one closed event.
    """
    await check(case, backend, instrument)
