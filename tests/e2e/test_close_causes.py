"""Which cause decides on the close reason, where an application gives several."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import sse_starlette
from aiohttp import web
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.streams import closed, fetch
from helpers.waiting import until
from litestar import Litestar
from litestar import get as litestar_get
from litestar.response import Stream as LitestarStream
from starlette.applications import Starlette
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from otel_sse import SSEMiddleware

Instrument = Callable[..., None]


class QuotaError(Exception):
    """An error for which the application has a handler."""


async def pass_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


# FastAPI's own streams: the error comes out of a task, after the end of the body.


async def waited() -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(data=1)
    await asyncio.sleep(0.01)
    raise LookupError


async def timed_out() -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(data=1)
    await asyncio.wait_for(asyncio.Event().wait(), 0.01)


async def before_first() -> AsyncIterator[ServerSentEvent]:
    await asyncio.sleep(0.01)
    raise LookupError
    yield ServerSentEvent(data=1)


def synchronous() -> Iterator[ServerSentEvent]:
    yield ServerSentEvent(data=1)
    raise LookupError


@pytest.mark.parametrize("middlewares", [0, 1, 2])
@pytest.mark.parametrize(
    ("generator", "reason", "error"),
    [
        (waited, "error", "LookupError"),
        (timed_out, "timeout", "TimeoutError"),
        (before_first, "error", "LookupError"),
        (synchronous, "error", "LookupError"),
    ],
)
async def test_an_error_of_fastapis_own_stream(
    generator: Any,
    reason: str,
    error: str,
    middlewares: int,
    instrument: Instrument,
    backend: Backend,
) -> None:
    """It is the reason, though the end of the body was sent before it left the application."""
    app = FastAPI()
    app.get("/events", response_class=EventSourceResponse)(generator)
    for _ in range(middlewares):
        app.middleware("http")(pass_on)
    instrument()
    async with serve_asgi(app) as port:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    found, kind = closed(backend)
    assert found == reason
    assert kind is not None
    # asyncio.TimeoutError has a name of its own before Python 3.11.
    assert kind.endswith(error)


@pytest.mark.parametrize(
    ("error", "reason", "kind"),
    [
        (QuotaError(), "error", f"{__name__}.QuotaError"),
        (TimeoutError(), "timeout", "TimeoutError"),
        (HTTPException(403), "error", "fastapi.exceptions.HTTPException"),
        (LookupError(), "error", "LookupError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_an_error_with_a_handler_is_reported_by_its_own_class(
    error: Exception, reason: str, kind: str, instrument: Instrument, backend: Backend
) -> None:
    """Starlette wraps it in a RuntimeError, since the response has started."""
    app = FastAPI()

    @app.exception_handler(QuotaError)
    @app.exception_handler(TimeoutError)
    async def handle(request: Request, exc: Exception) -> Response:
        return JSONResponse({}, 429)

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield "data: 1\n\n"
            raise error

        return StreamingResponse(body(), media_type="text/event-stream")

    instrument()
    async with serve_asgi(app) as port:
        await fetch_broken(port)
        await until(lambda: backend.spans("SSE"))
    assert closed(backend) == (reason, kind)


async def fetch_broken(port: int) -> None:
    """Reads a stream that its server breaks."""
    client = await RawClient.get(port, "/events")
    await client.reader.read(-1)
    await client.close()


async def test_an_error_that_litestar_wraps(backend: Backend) -> None:
    """Litestar wraps every exception once the response has started."""

    @litestar_get("/events")
    async def events() -> LitestarStream:
        async def body() -> AsyncIterator[str]:
            yield "data: 1\n\n"
            raise QuotaError

        return LitestarStream(body(), media_type="text/event-stream")

    app = SSEMiddleware(Litestar([events]), **backend.providers)
    async with serve_asgi(app) as port:
        await fetch_broken(port)
        await until(lambda: backend.spans("SSE"))
    assert closed(backend) == ("error", f"{__name__}.QuotaError")


# Background tasks run after the stream.


async def failing() -> None:
    raise LookupError("in the background")


def background(kind: str, work: Any) -> Any:
    if kind == "tasks":
        tasks = BackgroundTasks()
        tasks.add_task(work)
        return tasks
    return BackgroundTask(work)


def stream_with(background: Any, response: str) -> Any:
    async def body() -> AsyncIterator[Any]:
        yield "data: 1\n\n" if response == "starlette" else {"data": "1"}

    if response == "starlette":
        return StreamingResponse(body(), media_type="text/event-stream", background=background)
    return sse_starlette.EventSourceResponse(body(), background=background)


@pytest.mark.parametrize("by", ["instrumentor", "middleware"])
@pytest.mark.parametrize("response", ["starlette", "sse-starlette"])
@pytest.mark.parametrize("kind", ["task", "tasks"])
async def test_an_error_of_a_background_task_is_not_the_streams(
    kind: str, response: str, by: str, instrument: Instrument, backend: Backend
) -> None:
    """The stream was completed before it ran."""

    async def events(request: Request) -> Response:
        made: Response = stream_with(background(kind, failing), response)
        return made

    app: Any = Starlette(routes=[Route("/events", events)])
    if by == "instrumentor":
        instrument()
    else:
        app = SSEMiddleware(app, **backend.providers)
    async with serve_asgi(app) as port:
        await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    assert closed(backend) == ("completed", None)


async def test_a_stream_is_closed_before_its_background_task_begins(
    instrument: Instrument, backend: Backend
) -> None:
    """A background task of hours delays neither the span nor the event."""
    running, end = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        running.set()
        await end.wait()

    async def events(request: Request) -> Response:
        made: Response = stream_with(BackgroundTask(work), "starlette")
        return made

    instrument()
    async with serve_asgi(Starlette(routes=[Route("/events", events)])) as port:
        await fetch(port, "/events")
        await running.wait()
        assert closed(backend) == ("completed", None)
        end.set()


# A client that has left while the application goes on.


@pytest.mark.parametrize("mounted", [False, True])
async def test_an_application_that_goes_on_after_its_client_has_left(
    mounted: bool, instrument: Instrument, backend: Backend
) -> None:
    """Its transport shows that: the stream counts no more, and is closed though the application
    never returns.
    """
    stop = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while not stop.is_set():
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
            await asyncio.sleep(0.01)

    app: Any = endless
    if mounted:
        app = Starlette(
            routes=[Mount("/", endless)],
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)] * 2,
        )
        instrument()
    else:
        app = SSEMiddleware(endless, **backend.providers)
    async with serve_asgi(app) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: x\n\n")
        await client.close()
        await until(lambda: backend.value("sse.server.active_connections") == 0)
        counted = backend.value("sse.server.messages")
        await asyncio.sleep(0.1)
        assert backend.value("sse.server.messages") == counted
        stop.set()
        await until(lambda: backend.spans("SSE"))
    assert closed(backend) == ("client_disconnect", None)


async def test_a_silent_application_whose_client_has_left(backend: Backend) -> None:
    """One that neither sends nor receives: a collection finds the closed transport."""
    stop = asyncio.Event()

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
        await stop.wait()

    async with serve_asgi(SSEMiddleware(silent, **backend.providers)) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"data: x\n\n")
        assert backend.value("sse.server.active_connections") == 1
        await client.close()
        await until(lambda: backend.value("sse.server.active_connections") == 0)
        stop.set()
        await until(lambda: backend.spans("SSE"))
    assert closed(backend) == ("client_disconnect", None)


@pytest.mark.parametrize("response", ["starlette", "sse-starlette"])
async def test_clean_up_that_raises_when_the_client_has_left(
    response: str, instrument: Instrument, backend: Backend
) -> None:
    """sse-starlette takes the error out of its task group, and so hides the cancellation."""

    async def body() -> AsyncIterator[str]:
        try:
            yield "data: 1\n\n"
            await asyncio.Event().wait()
        finally:
            raise QuotaError

    async def events(request: Request) -> Response:
        if response == "starlette":
            return StreamingResponse(body(), media_type="text/event-stream")
        return sse_starlette.EventSourceResponse(body())

    app = Starlette(routes=[Route("/events", events)])
    if response == "starlette":
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    instrument()
    async with serve_asgi(app) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"1\r\n" if response == "sse-starlette" else b"1\n\n")
        await client.close()
        await until(lambda: backend.spans("SSE"))
    assert closed(backend) == ("client_disconnect", None)


async def test_a_second_response_is_not_the_streams_error(backend: Backend) -> None:
    """An application that answers once more, as the MCP SDK's legacy SSE does at a stop."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: x\n\n"})
        await PlainTextResponse("done")(scope, receive, send)

    async with serve_asgi(SSEMiddleware(app, **backend.providers)) as port:
        await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    assert closed(backend) == ("completed", None)


# aiohttp


async def test_an_error_after_the_end_of_the_body_in_aiohttp(
    instrument: Instrument, backend: Backend
) -> None:
    """It leaves the handler, so it is the reason."""

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await response.write_eof()
        raise QuotaError

    app = web.Application()
    app.router.add_get("/events", events)
    instrument()
    async with serve_aiohttp(app) as port:
        await fetch(port, "/events")
        await until(lambda: backend.spans("SSE"))
    assert closed(backend) == ("error", f"{__name__}.QuotaError")


async def test_a_handler_that_goes_on_after_the_body_in_aiohttp(
    instrument: Instrument, backend: Backend
) -> None:
    """The stream is over at the end of its body: it is neither active nor growing older."""
    end = asyncio.Event()

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await response.write_eof()
        await end.wait()
        return response

    app = web.Application()
    app.router.add_get("/events", events)
    instrument()
    async with serve_aiohttp(app) as port:
        client = await RawClient.get(port, "/events")
        await client.until(b"0\r\n\r\n")
        await until(lambda: backend.value("sse.server.active_connections") == 0)
        assert backend.spans("SSE") == []
        end.set()
        await until(lambda: backend.spans("SSE"))
        await client.close()
    assert closed(backend) == ("completed", None)
