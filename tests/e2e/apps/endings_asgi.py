"""Every ending of a stream, in each way in which an ASGI application sends one.

The path is ``/<kind of application>/<ending>``; see ``ENDINGS`` in ``e2e/endings.py``.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import sse_starlette
from e2e.endings import ENDINGS
from fastapi import APIRouter, Depends, FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route

from otel_sse import SSEMiddleware

SSE = "text/event-stream"
PATIENCE = 1.0
# Messages of 256 KiB: more than the buffers of a client that does not read can take.
FLOODS = {"stops-reading": 2**30, "stalled-resets": 2**7, "stalled-stopped": 2**30}
# The task that the server has started for the request.
task: ContextVar["asyncio.Task[Any]"] = ContextVar("task")


def ending_of(scope: Any) -> str:
    ending: str = scope["path"].rpartition("/")[2]
    return ending


def status_of(ending: str) -> int:
    return int(ending) if ending.isdigit() else 200


async def source(ending: str) -> AsyncIterator[str]:
    """The data of a stream that ends so."""
    if ending == "raises-first":
        raise LookupError("on purpose")
    yield "begun"
    if ending == "raises-midway":
        json.loads("{")
    elif ending == "cancelled":
        task.get().cancel()
        await asyncio.Event().wait()
    elif ending == "silent":
        await asyncio.Event().wait()
    elif ending in FLOODS:
        for _ in range(FLOODS[ending]):
            yield "x" * 2**18
            await asyncio.sleep(0.01)
    elif ending in ("closes", "resets"):
        for _ in range(20):
            await asyncio.sleep(0.1)
            yield "more"
    elif ending.startswith("cleanup-"):
        try:
            for _ in range(20):
                await asyncio.sleep(0.1)
                yield "more"
        except (asyncio.CancelledError, GeneratorExit):
            if ending == "cleanup-awaits":
                await asyncio.sleep(0.3)
            elif ending == "cleanup-raises":
                raise LookupError("on purpose, in the clean-up") from None
            elif ending == "cleanup-swallows":
                return
            raise
    elif ending in ("stopped", "endless"):
        while True:
            await asyncio.sleep(0.1)
            yield "more"


async def lines(ending: str) -> AsyncIterator[bytes]:
    async for data in source(ending):
        yield b"data: %s\n\n" % data.encode()


async def raw(scope: Any, receive: Any, send: Any) -> None:
    """An application without any framework, which never asks what the client does."""
    ending = ending_of(scope)
    # As a framework without a hook of its own names its route.
    scope["path_template"] = scope["path"]
    if ending == "raises-before":
        raise LookupError("on purpose")
    headers = [(b"content-type", SSE.encode())]
    await send({"type": "http.response.start", "status": status_of(ending), "headers": headers})

    async def stream() -> None:
        async for chunk in lines(ending):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

    await (asyncio.wait_for(stream(), PATIENCE) if ending == "stops-reading" else stream())
    if ending != "returns":
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def background() -> None:
    raise LookupError("on purpose, in the background")


def task_after(ending: str) -> BackgroundTask | None:
    return BackgroundTask(background) if ending == "background" else None


class Impatient:
    """Gives up on an application whose client takes too long."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await asyncio.wait_for(self.app(scope, receive, send), PATIENCE)


async def streaming_response(request: Request) -> Any:
    ending = ending_of(request.scope)
    if ending == "raises-before":
        raise LookupError("on purpose")
    if ending == "returns":
        return raw
    response = StreamingResponse(
        lines(ending), status_of(ending), media_type=SSE, background=task_after(ending)
    )
    return Impatient(response) if ending == "stops-reading" else response


async def event_source_response(request: Request) -> Response:
    ending = ending_of(request.scope)
    if ending == "raises-before":
        raise LookupError("on purpose")
    timeout = PATIENCE if ending == "stops-reading" else None
    return sse_starlette.EventSourceResponse(
        source(ending), status_of(ending), send_timeout=timeout, background=task_after(ending)
    )


def native(ending: str) -> APIRouter:
    """An operation that yields, which FastAPI makes a stream of."""
    router = APIRouter()

    async def before() -> None:
        if ending == "raises-before":
            raise LookupError("on purpose")

    @router.api_route(
        f"/fastapi/{ending}",
        methods=["GET", "HEAD"],
        response_class=EventSourceResponse,
        status_code=status_of(ending),
        dependencies=[Depends(before)],
    )
    async def operation() -> AsyncIterator[ServerSentEvent]:
        async for data in source(ending):
            yield ServerSentEvent(raw_data=data)

    return router


def fastapi() -> FastAPI:
    app = FastAPI()
    for ending in ENDINGS:
        app.include_router(native(ending.path))
    return app


def starlette(prefix: str, endpoint: Any, *middleware: Middleware) -> Starlette:
    routes = [Route(f"{prefix}/{ending.path}", endpoint) for ending in ENDINGS]
    return Starlette(routes=routes, middleware=middleware)


async def passing(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


PASSING = Middleware(BaseHTTPMiddleware, dispatch=passing)
GZIP = Middleware(GZipMiddleware, minimum_size=0, exclude_content_types=())
APPLICATIONS = {
    "starlette": starlette("/starlette", streaming_response),
    "middleware": starlette("/middleware", streaming_response, PASSING),
    "mounted": Starlette(
        routes=[Mount("/mounted", starlette("", streaming_response, PASSING))],
        middleware=[PASSING],
    ),
    "gzip": starlette("/gzip", streaming_response, GZIP),
    "sse-starlette": starlette("/sse-starlette", event_source_response),
    "fastapi": fastapi(),
    "raw": SSEMiddleware(raw),
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await APPLICATIONS["starlette"](scope, receive, send)
        return
    task.set(asyncio.current_task())
    kind = scope["path"].split("/")[1]
    chosen = APPLICATIONS[kind]
    if (kind, ending_of(scope)) == ("fastapi", "stops-reading"):
        chosen = Impatient(chosen)
    await chosen(scope, receive, send)
