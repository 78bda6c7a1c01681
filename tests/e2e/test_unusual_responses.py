"""Responses of unusual shapes: each stream is seen, and counted or reported as bytes alone."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from helpers.aiohttp_apps import aiohttp_app
from helpers.asgi import TRACEPARENT
from helpers.backend import Backend
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import Reply, fetch
from helpers.waiting import until
from opentelemetry.sdk.trace import ReadableSpan
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route, Router

from otel_sse import SSEMiddleware
from otel_sse.servers import aiohttp as aiohttp_server
from otel_sse.servers import sanic as sanic_server
from otel_sse.servers import tornado as tornado_server

Instrument = Callable[..., None]
MESSAGES = 3


async def messages() -> AsyncIterator[bytes]:
    for number in range(MESSAGES):
        yield b"data: %d\n\n" % number
        await asyncio.sleep(0)


async def events(request: Request) -> Response:
    return StreamingResponse(messages(), media_type="text/event-stream")


async def read(app: Any, backend: Backend, path: str = "/events", *headers: str) -> Any:
    """The attributes of the span of the one stream that ``app`` serves."""
    async with serve_asgi(app) as port:
        await fetch(port, path, *headers)
        await until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    assert backend.value("sse.server.active_connections") == 0
    return span.attributes


# Content coding below the hook.


async def encoded(request: Request) -> Response:
    """As a proxy passes on what it has received."""

    async def body() -> AsyncIterator[bytes]:
        compress = zlib.compressobj(wbits=31)
        async for message in messages():
            yield compress.compress(message) + compress.flush(zlib.Z_SYNC_FLUSH)
        yield compress.flush()

    headers = {"content-encoding": "gzip"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


GZIP = Middleware(GZipMiddleware, minimum_size=0, exclude_content_types=())


@pytest.mark.parametrize(
    "route",
    [Route("/events", encoded), Route("/events", events, middleware=[GZIP])],
    ids=["proxy", "route"],
)
async def test_an_encoded_body_is_bytes_alone(
    route: Route, instrument: Instrument, backend: Backend
) -> None:
    """What is not decoded has no messages, and is never stalled for the lack of them."""
    instrument(stall_seconds=0.001)
    found = await read(Starlette(routes=[route]), backend, "/events", "Accept-Encoding: gzip")
    assert found["sse.messages"] == 0
    assert found["sse.io"] > 0
    assert found["sse.close.reason"] == "completed"
    assert "sse.time_to_first_message" not in found
    assert backend.value("sse.server.stalled_connections") == 0
    assert backend.events("sse.connection.stalled") == []


@pytest.mark.parametrize("coding", ["identity", "Identity"])
async def test_identity_is_no_coding(coding: str, instrument: Instrument, backend: Backend) -> None:
    """Its messages are counted."""

    async def plain(request: Request) -> Response:
        headers = {"content-encoding": coding}
        return StreamingResponse(messages(), media_type="text/event-stream", headers=headers)

    instrument()
    found = await read(Starlette(routes=[Route("/events", plain)]), backend)
    assert found["sse.messages"] == MESSAGES


async def read_aiohttp(handler: Any, backend: Backend) -> tuple[Reply, ReadableSpan]:
    """The reply to a request that ``handler`` answers, and the span of its stream."""
    app = web.Application()
    app.router.add_get("/events", handler)
    async with serve_aiohttp(app) as port:
        reply = await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    return reply, span


async def test_an_aiohttp_body_that_the_application_encodes(
    instrument: Instrument, backend: Backend
) -> None:
    """As a proxy's, it is bytes alone."""

    async def handler(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(zlib.compress(b"data: 1\n\n", wbits=31))
        return response

    instrument()
    _, span = await read_aiohttp(handler, backend)
    assert span.attributes["sse.messages"] == 0
    assert span.attributes["sse.io"] > 0


# Headers.


def raw(headers: Any, body: Any = b"data: x\n\n") -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": headers()}
        await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body"})

    return app


@pytest.mark.parametrize(
    ("headers", "streams"),
    [
        ([(b"content-type", b"application/json, text/event-stream")], 1),
        ([(b"content-type", b"text/event-stream, application/json")], 0),
        ([(b"content-type", b"text/plain"), (b"Content-Type", b"text/event-stream")], 1),
        ([(b"content-type", b"text/event-stream"), (b"content-type", b"text/plain")], 0),
        ([(b"content-type", b"text/event-stream, */*")], 1),
        ([(b"content-type", b'text/event-stream; a="x, text/plain"')], 1),
    ],
)
async def test_the_last_media_type_counts(
    headers: list[tuple[bytes, bytes]], streams: int, backend: Backend
) -> None:
    """Of a list, and of several headers, as browsers do."""
    app = SSEMiddleware(raw(lambda: headers), **backend.providers)
    async with serve_asgi(app, http="h11") as port:
        await fetch(port, "/events")
    assert len(backend.spans("SSE")) == streams


async def test_the_last_media_type_of_an_aiohttp_response_counts(
    instrument: Instrument, backend: Backend
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.headers.add("Content-Type", "text/event-stream")
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        return response

    instrument()
    _, span = await read_aiohttp(handler, backend)
    assert span.attributes["sse.messages"] == 1


async def test_headers_given_as_an_iterator(backend: Backend) -> None:
    """Sanic gives one. It can be read once, so the server gets a list in its place."""
    app = SSEMiddleware(
        raw(lambda: iter([(b"content-type", b"text/event-stream"), (b"x-mine", b"1")])),
        **backend.providers,
    )
    async with serve_asgi(app) as port:
        reply = await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    assert reply.headers["x-mine"] == "1"
    assert reply.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_kind_of_bytes_counts(kind: Any, backend: Backend) -> None:
    """Also a view that is released as soon as it has been sent."""
    view = kind(b"data: x\n\n")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def release(message: Any) -> None:
            await send(message)

        await raw(lambda: [(b"content-type", b"text/event-stream")], view)(scope, receive, release)

    found = await read(SSEMiddleware(app, **backend.providers), backend)
    assert found["sse.messages"] == 1
    assert found["sse.io"] == 9


async def test_two_writers_of_one_response(instrument: Instrument, backend: Backend) -> None:
    """Tasks that write by turns: every message counts once."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def write(name: int) -> None:
            for number in range(50):
                await response.write(b"data: %d-%d\n\n" % (name, number))
                await asyncio.sleep(0)

        await asyncio.gather(write(1), write(2))
        return response

    instrument()
    reply, span = await read_aiohttp(handler, backend)
    assert reply.body.count(b"\n\n") == span.attributes["sse.messages"] == 100
    assert backend.value("sse.server.active_connections") == 0


async def test_a_response_that_another_requests_task_writes(
    instrument: Instrument, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream belongs to its own request, whichever task writes it."""
    waiting: asyncio.Queue[tuple[web.Request, web.StreamResponse]] = asyncio.Queue()
    done = asyncio.Event()

    async def subscriber(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await waiting.put((request, response))
        await done.wait()
        return response

    async def publisher(request: web.Request) -> web.StreamResponse:
        other, response = await waiting.get()
        await response.prepare(other)
        await response.write(b"data: 1\n\n")
        await response.write_eof()
        done.set()
        return web.Response()

    app = web.Application()
    app.router.add_get("/subscribe", subscriber)
    app.router.add_post("/publish", publisher)
    instrument()
    async with serve_aiohttp(app) as port:
        reading = asyncio.create_task(fetch(port, "/subscribe"))
        await fetch(port, "/publish", method="POST")
        reply = await reading
        await until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    assert reply.body == b"data: 1\n\n"
    assert span.attributes["http.route"] == "/subscribe"
    assert span.attributes["sse.messages"] == 1
    assert backend.value("sse.server.active_connections") == 0
    assert caplog.records == []


async def test_a_request_that_a_middleware_has_cloned(
    instrument: Instrument, backend: Backend
) -> None:
    """As one does that sets the address which a proxy names: the stream is that request's."""

    @web.middleware
    async def cloning(request: web.Request, handler: Any) -> web.StreamResponse:
        answer: web.StreamResponse = await handler(request.clone(remote="192.0.2.7"))
        return answer

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        return response

    app = web.Application(middlewares=[cloning])
    app.router.add_get("/events", handler)
    instrument()
    async with serve_aiohttp(app) as port:
        await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    assert span.attributes["client.address"] == "192.0.2.7"
    assert span.attributes["sse.messages"] == 1


async def test_a_request_whose_headers_are_a_plain_mapping(
    instrument: Instrument, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """As an application's own kind of aiohttp request may have them: its parent is known."""

    class Plain(web.Request):
        @property
        def headers(self) -> Any:
            return {"traceparent": TRACEPARENT[1].decode()}

    async def handler(request: web.Request) -> web.StreamResponse:
        plain = Plain(
            request._message,
            request._payload,
            request._protocol,
            request._payload_writer,
            request._task,
            request._loop,
            client_max_size=0,
        )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(plain)
        await response.write(b"data: 1\n\n")
        return response

    instrument()
    async with serve_aiohttp(aiohttp_app("/events", handler)) as port:
        await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" in TRACEPARENT[1].decode()
    assert caplog.records == []


@pytest.mark.parametrize("server", [aiohttp_server, sanic_server, tornado_server])
def test_headers_are_read_from_any_mapping(server: Any) -> None:
    """A framework's own gives all values of a header, a plain one the one that it has."""
    assert server._getter.get({"traceparent": "x"}, "traceparent") == ["x"]
    assert server._getter.get({}, "traceparent") is None
    assert server._getter.keys({"traceparent": "x"}) == ["traceparent"]


# Routes.


class HostedRoute(Route):
    """A route with an attribute that only Starlette's Host has, as FastHTML's has."""

    host = "example.org"


class Passing:
    """Middleware of an application below a mount."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class Foreign:
    """An application with an attribute ``routes`` that holds something else."""

    def __init__(self, routes: Any) -> None:
        self.routes = routes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = await events(Request(scope))
        await response(scope, receive, send)


class BrokenRoute(Route):
    """A route whose look-up fails once the request has been routed."""

    def matches(self, scope: Any) -> Any:
        if "routed" in scope:
            raise LookupError("not twice")
        match, child = super().matches(scope)
        return match, {**child, "routed": True}


INNER = [Route("/items/{id}/events", events)]


@pytest.mark.parametrize(
    ("routes", "path", "route"),
    [
        ([HostedRoute("/events", events)], "/events", "/events"),
        (
            [Mount("/a", Passing(Starlette(routes=INNER)))],
            "/a/items/7/events",
            "/a/items/{id}/events",
        ),
        (
            [Mount("/a", Passing(Router([Mount("/b", Passing(Router(INNER)))])))],
            "/a/b/items/7/events",
            "/a/b/items/{id}/events",
        ),
        (
            [Mount("/a", Router([Mount("/b", Passing(Router(INNER)))]))],
            "/a/b/items/7/events",
            "/a/b/items/{id}/events",
        ),
        ([Mount("/a", Foreign({"x": 1}))], "/a/events", "/a"),
        ([Mount("/a", Foreign([object()]))], "/a/events", "/a"),
        ([Mount("/a", Foreign(7))], "/a/events", "/a"),
        ([BrokenRoute("/events", events)], "/events", None),
    ],
)
async def test_routes(
    routes: Any,
    path: str,
    route: str | None,
    instrument: Instrument,
    backend: Backend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The template through all mounts; a look-up that fails costs the route, not the stream."""
    instrument()
    found = await read(Starlette(routes=routes), backend, path)
    assert found.get("http.route") == route
    assert found["sse.messages"] == MESSAGES
    assert caplog.records == []


async def test_a_path_that_the_application_changes_in_place(
    instrument: Instrument, backend: Backend
) -> None:
    """As Litestar does below a mount: the route is that of the path as it came."""

    async def rewriting(scope: Any, receive: Any, send: Any) -> None:
        scope["path"] = "/other"
        await (await events(Request(scope)))(scope, receive, send)

    async def other(request: Request) -> Response:
        raise AssertionError("not this one")

    instrument()
    app = Starlette(routes=[Route("/other", other), Mount("/mounted", rewriting)])
    found = await read(app, backend, "/mounted/events")
    assert found["http.route"] == "/mounted"
