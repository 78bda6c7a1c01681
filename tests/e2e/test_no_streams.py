"""Responses that are no event stream pass unseen."""

from typing import Any

import pytest
from aiohttp import web
from helpers.aiohttp_apps import TYPED, aiohttp_app
from helpers.backend import Backend
from helpers.framework_cases import (
    SSE,
    Case,
    Instrument,
    body_of_bytes,
    case,
    endpoint,
    starlette,
    starlette_whole_body,
    twice,
    write_pieces,
)
from helpers.servers import serve_asgi
from helpers.streams import (
    STREAM,
    apieces,
    assert_reported,
    assert_silent,
    fetch,
)
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

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
async def test_what_is_no_event_stream_is_not_reported(
    case: Case, backend: Backend, instrument: Instrument
) -> None:
    """A response of another type, or without a body, passes unseen; the next stream is reported."""
    plain, seen = await twice(case, instrument)
    assert seen.raw == plain.raw
    assert_silent(backend)
    async with serve_asgi(starlette(Route("/events", endpoint))) as port:
        reply = await fetch(port, "/events")
    await assert_reported(backend, reply.body, route="/events")
