"""Close reasons of streams below mounts."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import fastapi
import pytest
from helpers.backend import Backend
from helpers.framework_cases import (
    GZIP_ALL,
    SSE,
    Instrument,
    starlette,
)
from helpers.raw_client import RawClient
from helpers.servers import serve_asgi
from helpers.streams import (
    assert_reported,
)
from helpers.waiting import until
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route


class Closing:
    """Streams a message, and then waits indefinitely or breaks."""

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
        Closing.mount,
        Closing.application,
        Closing.gzipped_application,
        Closing.fastapi_application,
        Closing.wrapped_application,
    ],
    ids=lambda build: build.__name__,
)


@BELOW
async def test_a_stream_below_a_mount_closes_when_its_client_disconnects(
    build: Any, backend: Backend, instrument: Instrument
) -> None:
    """However many routers and middlewares are between, the close is reported once and in full."""
    instrument()
    async with serve_asgi(build(Closing(breaks=False))) as port:
        client = await RawClient.get(port, "/sub/events")
        await client.until(b"data: 1\n\n")
        await client.close()
        await until(lambda: backend.events("sse.connection.closed"))
    await assert_reported(backend, b"data: 1\n\n", route="/sub/events", reason="client_disconnect")


@BELOW
async def test_a_stream_below_a_mount_that_breaks_ends_in_error(
    build: Any, backend: Backend, instrument: Instrument
) -> None:
    """The exception that leaves the generator is the reason, through whatever it passed."""
    instrument()
    async with serve_asgi(build(Closing(breaks=True))) as port:
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
