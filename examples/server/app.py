"""The application: its parts, put together from the settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from server import coding
from server.broker import Broker, MemoryBroker
from server.errors import Errors
from server.limits import Limits
from server.meters import Meters
from server.settings import Settings
from server.status import add_status
from server.stream import Streams

SETTINGS: Final = web.AppKey("settings", Settings)
STREAMS: Final = web.AppKey("streams", Streams)
LIMITS: Final = web.AppKey("limits", Limits)


def build(settings: Settings, meters: Meters | None = None) -> web.Application:
    meters = meters or Meters()
    errors = Errors(meters)
    limits = Limits(settings, errors, meters)
    broker = _broker(settings, errors, meters)
    streams = Streams(settings, broker, limits, errors, meters)
    # JSON may write six bytes for one.
    app = web.Application(client_max_size=6 * settings.max_message_bytes + 4096)
    if settings.content_coding:
        coding.install()
    if settings.proxy:
        app.middlewares.append(_behind(settings.proxy))
    app[SETTINGS], app[STREAMS], app[LIMITS] = settings, streams, limits
    app.router.add_get("/events", streams.events, allow_head=False)
    app.router.add_options("/events", streams.preflight)
    app.router.add_post("/publish", streams.publish)
    app.router.add_get("/healthz", streams.healthz)
    app.router.add_get("/readyz", streams.readyz)
    add_status(app, settings)

    async def running(_: web.Application) -> AsyncIterator[None]:
        await broker.start()
        sweeper = asyncio.create_task(limits.sweep())
        yield
        sweeper.cancel()
        await broker.close()

    app.cleanup_ctx.append(running)
    return app


def _broker(settings: Settings, errors: Errors, meters: Meters) -> Broker:
    if not settings.redis_url:
        return MemoryBroker(settings, meters)
    # Only who has more than one process needs redis-py.
    from server.redis_broker import RedisBroker

    return RedisBroker(settings, errors, meters)


def _behind(proxy: str) -> Middleware:
    """A proxy adds the address of its own peer at the end; what is before that anybody may say."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        forwarded = request.headers.getall("X-Forwarded-For", ())
        if forwarded and request.remote == proxy:
            request = request.clone(remote=forwarded[-1].rpartition(",")[2].strip())
        return await handler(request)

    return middleware
