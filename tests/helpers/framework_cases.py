"""Applications of each framework that stream, and how each is checked."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route

from helpers.aiohttp_apps import TYPED, aiohttp_app, start_stream
from helpers.backend import Backend
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import (
    PIECES,
    STREAM,
    Reply,
    apieces,
    assert_reported,
    fetch,
)

SSE = "text/event-stream"
Instrument = Callable[..., None]


@dataclasses.dataclass(frozen=True)
class Case:
    """An application, a request to it, and what has to be reported."""

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


def case(cases: list[Any], path: str, route: str | None, **options: Any) -> Any:
    """Adds what the decorated function builds to the cases, under its name."""

    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        cases.append(pytest.param(Case(build, path, route, **options), id=build.__name__))
        return build

    return add


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


def starlette(*routes: Any, **options: Any) -> Starlette:
    return Starlette(routes=[*routes], **options)


GZIP_ALL = Middleware(GZipMiddleware, minimum_size=0, exclude_content_types=())
GZIPPED = {"headers": ("Accept-Encoding: gzip",), "coding": "gzip"}


async def write_pieces(request: web.Request) -> web.StreamResponse:
    response = await start_stream(request)
    for piece in PIECES:
        await response.write(piece)
        await asyncio.sleep(0)
    return response


async def bytes_body(request: web.Request) -> web.StreamResponse:
    response = web.Response(body=STREAM, headers=TYPED)
    if "Accept-Encoding" in request.headers:
        response.enable_compression()
    return response


class Swapped:
    """An ASGI application that can be replaced below its server."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def twice(case: Case, between: Callable[[], Any], serve: Any = None) -> tuple[Reply, Reply]:
    """What a new application answers before and after something is switched on. What that gives,
    if anything, wraps the second one. ``serve`` is its own server, unless it is aiohttp's or ASGI.
    """
    replies = []
    if serve is None and isinstance(case.build(), web.Application):
        serve = serve_aiohttp
    if serve is not None:
        for switch in (None, between):
            if switch is not None:
                switch()
            async with serve(case.build()) as port:
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


async def check(case: Case, backend: Backend, instrument: Instrument, serve: Any = None) -> None:
    plain, seen = await twice(case, instrument, serve)
    assert seen.raw == plain.raw
    wanted = {"route": case.route, "method": case.method, "status": case.status}
    await assert_reported(backend, seen.stream, **wanted)


def mounts_three_deep() -> Any:
    rooms = Mount("/rooms/{room}", routes=[Route("/events/{n}", endpoint)])
    versions = Mount("/v{version:int}", routes=[Route("/events", endpoint), rooms])
    return starlette(Mount("/{tenant}", routes=[versions]))


def starlette_whole_body() -> Any:
    async def whole(request: Request) -> Response:
        return Response(STREAM, media_type=SSE)

    return starlette(Route("/events", whole))


def body_of_bytes() -> Any:
    return aiohttp_app("/events", bytes_body)
