"""Builds a plan's application for aiohttp.web."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp_sse
from aiohttp import web
from opentelemetry.instrumentation import aiohttp_server as contrib
from storm.asgi_apps import PATH
from storm.plans import Plan
from storm.script import SSE, Handled, Script


def middleware(kind: str, script: Script, place: str) -> Any:
    if kind == "contrib":
        return contrib.create_aiohttp_middleware()

    @web.middleware
    async def passing(request: web.Request, handler: Any) -> Any:
        try:
            with script.around(kind, place):
                if kind == "task":
                    return await asyncio.create_task(handler(request))
                return await handler(request)
        except web.HTTPException:
            raise
        except Handled:
            return web.json_response({"handled": True}, status=429)
        except Exception:
            if kind != "absorbs":
                raise
            return web.Response(status=500, text="absorbed")

    return passing


async def write(script: Script, response: web.StreamResponse, chunk: bytes) -> None:
    """Writes, and records how that went."""
    outcome = "interrupted"
    try:
        await response.write(chunk)
        outcome = "done"
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        script.sends.append(("body", chunk, outcome))


async def respond(script: Script, request: web.Request) -> web.StreamResponse:
    plan = script.plan
    script.begin()
    if plan.app == "aiohttp-json":
        return web.json_response({"ok": True}, status=plan.status)
    response: web.StreamResponse
    if plan.app == "aiohttp-sse":
        response = aiohttp_sse.EventSourceResponse(status=plan.status)
    else:
        response = web.StreamResponse(status=plan.status)
        response.content_type = SSE if plan.app == "aiohttp" else "text/plain"
    await response.prepare(request)
    if plan.app == "aiohttp-sse":
        async with response:
            async for chunk in script.items():
                await write(script, response, chunk)
    else:
        async for chunk in script.items():
            await write(script, response, chunk)
        await response.write_eof()
    return response


def build(plan: Plan, script: Any) -> web.Application:
    """The application; ``script`` stands for that of the request that comes."""

    async def endpoint(request: web.Request) -> web.StreamResponse:
        running = script.current_script
        running.busy = True
        try:
            return await respond(running, request)
        finally:
            running.busy = False

    kinds = plan.middlewares
    places = [middleware(kind, script, f"middleware {n}") for n, kind in enumerate(kinds)]
    app = web.Application(middlewares=places)
    app.router.add_route("*", PATH, endpoint)
    for _ in range(plan.mounts):
        outer = web.Application()
        outer.add_subapp("/mount", app)
        app = outer
    return app
