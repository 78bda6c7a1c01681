"""Every way in which Sanic sends an event stream, on its own server and by ASGI."""

import asyncio
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.framework_cases import SSE, Case, Instrument, case, check
from helpers.sanic_apps import TYPED, sanic_app, serve_sanic, start_stream
from helpers.servers import serve_asgi
from helpers.streams import PIECES, STREAM, assert_silent, fetch
from sanic import Blueprint, Request, Sanic
from sanic.exceptions import SanicException
from sanic.response import HTTPResponse, ResponseStream, raw, text
from sanic.server.protocols.base_protocol import SanicProtocol
from sanic.touchup import TouchUp
from sanic.views import HTTPMethodView

from otel_sse.frameworks import SSESanicInstrumentor

SANIC: list[Any] = []


def serve(kind: str) -> Any:
    return serve_sanic if kind == "native" else lambda app: serve_asgi(app, lifespan="on")


async def send_pieces(request: Request, **_: Any) -> None:
    response = await start_stream(request)
    for piece in PIECES:
        await response.send(piece)
        await asyncio.sleep(0)


@case(SANIC, "/events", "/events")
def respond_and_send() -> Any:
    return sanic_app("/events", send_pieces)


@case(SANIC, "/events", "/events")
def send_and_end() -> Any:
    async def handler(request: Request) -> None:
        response = await start_stream(request)
        await response.send(b"")
        for piece in PIECES[:-1]:
            await response.send(piece)
        await response.send(PIECES[-1], end_stream=True)

    return sanic_app("/events", handler)


@case(SANIC, "/events", "/events")
def send_and_eof() -> Any:
    async def handler(request: Request) -> HTTPResponse:
        response = await request.respond(headers={"Content-Type": "Text/EVENT-stream;x=y"})
        for piece in PIECES:
            await response.send(piece)
        await response.eof()
        return response

    return sanic_app("/events", handler)


@case(SANIC, "/events", "/events")
def text_of_a_stream() -> Any:
    async def handler(request: Request) -> HTTPResponse:
        return text(STREAM.decode(), content_type=SSE)

    return sanic_app("/events", handler)


@case(SANIC, "/events", "/events")
def synchronous_handler() -> Any:
    def handler(request: Request) -> HTTPResponse:
        return raw(STREAM, content_type=SSE)

    return sanic_app("/events", handler)  # type: ignore[arg-type]


@case(SANIC, "/events", "/events")
def response_stream() -> Any:
    async def stream(response: Any) -> None:
        for piece in PIECES:
            await response.write(piece)

    async def handler(request: Request) -> ResponseStream:
        return ResponseStream(stream, content_type=SSE)

    return sanic_app("/events", handler)


@case(SANIC, "/events", "/events")
def declared_length() -> Any:
    async def handler(request: Request) -> None:
        response = await start_stream(request, headers={"content-length": str(len(STREAM))})
        for piece in PIECES:
            await response.send(piece)

    return sanic_app("/events", handler)


@case(SANIC, "/events", "/events", method="POST", body=b"{}")
def answer_to_a_post() -> Any:
    return sanic_app("/events", send_pieces)


@case(SANIC, "/events", "/events", status=503)
def error_status() -> Any:
    async def handler(request: Request) -> None:
        response = await start_stream(request, status=503)
        for piece in PIECES:
            await response.send(piece)

    return sanic_app("/events", handler)


@case(SANIC, "/events", "/events", status=418)
def exception_that_a_handler_answers_by_a_stream() -> Any:
    class Teapot(SanicException):
        quiet = True

    async def handler(request: Request) -> None:
        raise Teapot

    app = sanic_app("/events", handler)

    @app.exception(Teapot)
    async def answer(request: Request, error: Exception) -> HTTPResponse:
        return HTTPResponse(STREAM, status=418, content_type=SSE)

    return app


@case(SANIC, "/events", "/events")
def sent_by_another_task() -> Any:
    async def handler(request: Request) -> None:
        await asyncio.create_task(send_pieces(request))

    return sanic_app("/events", handler)


@case(SANIC, "/events", "/events")
def middleware_that_makes_it_a_stream() -> Any:
    async def handler(request: Request) -> HTTPResponse:
        return text(STREAM.decode())

    app = sanic_app("/events", handler)

    @app.on_response
    async def typed(_: Request, response: HTTPResponse) -> None:
        response.content_type = SSE

    return app


@case(SANIC, "/events", "/events")
def middleware_that_answers() -> Any:
    app = sanic_app("/events", send_pieces)

    @app.on_request
    async def answer(request: Request) -> HTTPResponse:
        return raw(STREAM, **TYPED)

    return app


@case(SANIC, "/rooms/blue/7", "/rooms/<room:str>/<number:int>")
def parameters() -> Any:
    return sanic_app("/rooms/<room>/<number:int>", send_pieces)


@case(SANIC, "/v1/api/events/7", "/v1/api/events/<number:int>")
def blueprint_of_a_version() -> Any:
    blueprint = Blueprint("api", url_prefix="/api", version=1)
    blueprint.add_route(send_pieces, "/events/<number:int>")
    app = sanic_app()
    app.blueprint(blueprint)
    return app


@case(SANIC, "/views/1", "/views/<number:int>")
def class_based_view() -> Any:
    class View(HTTPMethodView):
        async def get(self, request: Request, number: int) -> None:
            await send_pieces(request)

    app = sanic_app()
    app.add_route(View.as_view(), "/views/<number:int>")
    return app


@pytest.mark.parametrize("kind", ["native", "asgi"])
@pytest.mark.parametrize("case", SANIC)
async def test_a_stream_of_sanic_is_reported_and_unmodified(
    case: Case, kind: str, backend: Backend, instrument: Instrument
) -> None:
    """However Sanic is made to send a body: same bytes, exact counts, whole route."""
    await check(case, backend, instrument, serve(kind))


async def other(request: Request, kind: str) -> HTTPResponse:
    if kind == "raises":
        raise LookupError
    if kind.isdigit():
        return HTTPResponse(status=int(kind), headers={"content-type": SSE})
    return text("text", content_type=SSE if kind == "stream" else "text/plain")


@pytest.mark.parametrize("server", ["native", "asgi"])
@pytest.mark.parametrize(
    ("method", "kind"),
    [("GET", "text"), ("GET", "204"), ("GET", "304"), ("GET", "raises"), ("HEAD", "stream")],
)
async def test_what_is_no_stream_is_unmodified_and_not_reported(
    method: str, kind: str, server: str, backend: Backend, instrument: Instrument
) -> None:
    """The same bytes, and no span, metric or event."""
    replies = []
    for switch in (lambda: None, instrument):
        switch()
        async with serve(server)(sanic_app("/<kind:str>", other)) as port:
            replies.append(await fetch(port, f"/{kind}", method=method))
    plain, seen = replies
    assert seen.raw == plain.raw
    assert_silent(backend)


async def test_what_sanic_compiles_at_its_start_is_patched_after_that(backend: Backend) -> None:
    """Also when another application starts in the same process; without us the methods are what
    Sanic has made of its own.
    """
    instrumentor = SSESanicInstrumentor()
    instrumentor.instrument(**backend.providers)
    try:
        for _ in range(2):
            async with serve_sanic(sanic_app("/events", send_pieces)) as port:
                assert (await fetch(port, "/events")).body == STREAM
    finally:
        instrumentor.uninstrument()
    assert len(backend.spans("SSE")) == 2
    for name in ("handle_request", "handle_exception"):
        assert vars(Sanic)[name].__code__.co_filename == name
        assert not hasattr(vars(Sanic)[name], "__wrapped__")
    for owner, name in [(Sanic, "__call__"), (SanicProtocol, "abort"), (TouchUp, "run")]:
        assert vars(owner)[name].__module__.startswith("sanic.")
        assert not hasattr(vars(owner)[name], "__wrapped__") or owner is TouchUp
