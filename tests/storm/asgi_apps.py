"""Builds a plan's application for ASGI servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import sse_starlette
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from storm.plans import Plan
from storm.script import SSE, Handled, Script

try:
    from otel_sse import SSEMiddleware
except ImportError:  # the process without otel_sse

    def SSEMiddleware(app: Any, **_: Any) -> Any:
        return app


PATH = "/events"


class Probe:
    """An ASGI application whose messages the script records as it sends them."""

    def __init__(self, app: Any, script: Script) -> None:
        self.app = app
        self.script = script

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def recorded(message: Any) -> None:
            body = bytes(message.get("body", b""))
            kind = message["type"].rpartition(".")[2]
            if kind == "body" and not message.get("more_body", False):
                kind = "last"
            outcome = "interrupted"
            try:
                await send(message)
                outcome = "done"
            except BaseException as error:
                outcome = type(error).__name__
                raise
            finally:
                self.script.sends.append((kind, body, outcome))

        await self.app(scope, receive, recorded)


def background(script: Script) -> BackgroundTask | None:
    return BackgroundTask(script.background) if script.plan.background != "none" else None


# --- responses ----------------------------------------------------------------------------------


def respond(script: Script) -> Any:
    """The response of an endpoint that returns one: an ASGI application."""
    plan = script.plan
    source: Any = script.sync_items() if plan.source == "sync" else script.items()
    options: dict[str, Any] = {"status_code": plan.status, "background": background(script)}
    if plan.app == "json":
        return JSONResponse({"ok": True}, **options)
    if plan.app == "text":
        return StreamingResponse(source, media_type="text/plain", **options)
    if plan.app == "sse-starlette":
        return sse_starlette.EventSourceResponse(source, **options)
    if plan.app == "sender":
        send_stream, receive_stream = anyio.create_memory_object_stream[bytes](1)

        async def sender() -> None:
            async with send_stream:
                async for chunk in script.items():
                    await send_stream.send(chunk)

        return sse_starlette.EventSourceResponse(
            receive_stream, data_sender_callable=sender, **options
        )
    return StreamingResponse(source, media_type=SSE, **options)


async def raw(script: Script, scope: Any, receive: Any, send: Any) -> None:
    """An application without a framework; it never asks what its client does."""
    script.begin()
    plan = script.plan
    headers = [(b"content-type", SSE.encode())]
    start = {"type": "http.response.start", "status": plan.status, "headers": headers}

    async def stream() -> None:
        await send(start)
        async for chunk in script.items():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    if plan.second == "task":
        await asyncio.create_task(stream())
    else:
        await stream()
    if plan.second == "start":
        # As a framework does whose endpoint returns a response after it has streamed itself.
        script.note("second start")
        await send({**start, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})


# --- frameworks ---------------------------------------------------------------------------------


class Middle:
    """A middleware of the pure kinds: it runs the application inside of something."""

    def __init__(self, app: Any, *, kind: str, script: Script, place: str) -> None:
        self.app = app
        self.kind = kind
        self.script = script
        self.place = place

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def passing(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        inner = Sender(send) if self.kind == "object" else passing
        if self.kind in ("span", "baggage", "local", "task"):
            inner = send
        try:
            with self.script.around(self.kind, self.place):
                if self.kind == "task":
                    await asyncio.create_task(self.app(scope, receive, inner))
                else:
                    await self.app(scope, receive, inner)
        except Exception:
            if self.kind != "absorbs":
                raise
            if not started:
                await PlainTextResponse("absorbed", 500)(scope, receive, send)


class Sender:
    """A ``send`` that is an object."""

    def __init__(self, send: Any) -> None:
        self._send = send

    async def __call__(self, message: Any) -> None:
        await self._send(message)


class Base(BaseHTTPMiddleware):
    def __init__(self, app: Any, *, script: Script, place: str) -> None:
        super().__init__(app)
        self.script = script
        self.place = place

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        with self.script.around("base", self.place):
            response: Response = await call_next(request)
            return response


def middleware(kind: str, script: Script, place: str) -> Middleware:
    if kind == "base":
        return Middleware(Base, script=script, place=place)
    if kind == "gzip":
        return Middleware(GZipMiddleware, minimum_size=0, exclude_content_types=())
    if kind == "contrib":
        return Middleware(OpenTelemetryMiddleware)
    return Middleware(Middle, kind=kind, script=script, place=place)


def chain(kinds: tuple[str, ...], script: Script, place: str) -> list[Middleware]:
    return [middleware(kind, script, f"{place} {n}") for n, kind in enumerate(kinds)]


async def handler(request: Request, error: Exception) -> Response:
    return JSONResponse({"handled": type(error).__name__}, 429)


def starlette(script: Script) -> Any:
    plan = script.plan

    async def endpoint(request: Request) -> Any:
        script.begin()
        return Probe(respond(script), script)

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await raw(script, scope, receive, send)

        await Probe(app, script)(scope, receive, send)

    if plan.app == "mounted-raw":
        route: Any = Mount(PATH, mounted)
    else:
        route = Route(
            PATH,
            endpoint,
            methods=["GET", "POST"],
            middleware=chain(plan.route, script, "route"),
        )
    return Starlette(
        routes=[route],
        middleware=chain(plan.middlewares, script, "middleware"),
        exception_handlers={Handled: handler},
    )


def fastapi(script: Script) -> Any:
    plan = script.plan
    # FastAPI's own telemetry is another subject: off, whether otel_sse is there or not.
    app = FastAPI(
        middleware=chain(plan.middlewares, script, "middleware"),
        exception_handlers={Handled: handler},
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    methods = ["GET", "HEAD", "POST"]

    def event(chunk: bytes) -> ServerSentEvent:
        if plan.shape == "commented":
            return ServerSentEvent(raw_data=chunk.decode(), comment="comment")
        name = "tick" if plan.shape == "typed" else None
        return ServerSentEvent(raw_data=chunk.decode().strip(), event=name)

    if plan.app == "native" and plan.source == "sync":

        @app.api_route(PATH, methods=methods, response_class=EventSourceResponse)
        def operation() -> Iterator[ServerSentEvent]:
            script.begin()
            for chunk in script.sync_items():
                yield event(chunk)

    elif plan.app == "native":

        @app.api_route(PATH, methods=methods, response_class=EventSourceResponse)
        async def operation() -> AsyncIterator[ServerSentEvent]:
            script.begin()
            async with contextlib.aclosing(script.items()) as items:  # type: ignore[type-var]
                async for chunk in items:
                    yield event(chunk)

    else:

        class Recorded(StreamingResponse):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await Probe(super().__call__, script)(scope, receive, send)

        @app.api_route(PATH, methods=methods)
        async def endpoint() -> Response:
            script.begin()
            source: Any = script.sync_items() if plan.source == "sync" else script.items()
            return Recorded(
                source, media_type=SSE, status_code=plan.status, background=background(script)
            )

    if plan.route:
        # A route's own middlewares, which FastAPI takes no argument for.
        inner: Any = app.router.routes[-1]
        for each in reversed(chain(plan.route, script, "route")):
            inner.app = each.cls(inner.app, *each.args, **each.kwargs)
    return app


def build(plan: Plan, script: Script) -> Any:
    """The whole application of the plan, with a path of ``PATH`` below its mounts."""
    if plan.app == "raw":

        async def alone(scope: Any, receive: Any, send: Any) -> None:
            async def app(scope: Any, receive: Any, send: Any) -> None:
                await raw(script, scope, receive, send)

            await Probe(app, script)(scope, receive, send)

        app = SSEMiddleware(alone)
    else:
        app = fastapi(script) if plan.app in ("fastapi", "native") else starlette(script)
        for _ in range(plan.mounts):
            app = Starlette(routes=[Mount("/mount", app)])
    for each in reversed(chain(plan.around, script, "around")):
        app = each.cls(app, *each.args, **each.kwargs)
    return app


def path(plan: Plan) -> str:
    slash = "/" if plan.app == "mounted-raw" else ""
    return "/mount" * plan.mounts + PATH + slash


def template(plan: Plan) -> str | None:
    """What `http.route` has to be: the template, where there is one."""
    return None if plan.app == "raw" else "/mount" * plan.mounts + PATH
