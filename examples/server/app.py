"""The application: its parts, put together from the settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from server import coding
from server.broker import Broker, MemoryBroker
from server.connections import Heads
from server.cors import add_cors
from server.errors import Errors
from server.health import Condition
from server.hosts import is_loopback, only_own
from server.limits import Limits
from server.meters import Meters
from server.settings import Settings
from server.status import add_status
from server.stream import Streams

SETTINGS: Final = web.AppKey("settings", Settings)
STREAMS: Final = web.AppKey("streams", Streams)
LIMITS: Final = web.AppKey("limits", Limits)
HEADS: Final = web.AppKey("heads", Heads)

_log: Final = logging.getLogger("server")


def build(settings: Settings, meters: Meters | None = None) -> web.Application:
    """Raises ValueError where a setting, or the list of thresholds, is not as it has to be."""
    meters = meters or Meters()
    errors = Errors(meters)
    limits = Limits(settings, errors, meters)
    broker = _broker(settings, errors, meters)
    streams = Streams(settings, broker, limits, errors, meters)
    heads = Heads()
    # JSON may write six bytes for one.
    app = web.Application(client_max_size=6 * settings.max_message_bytes + 4096)
    app.middlewares.append(heads.middleware)
    app.middlewares.append(only_own(settings.allowed_hosts, settings.host))
    if settings.content_coding:
        coding.install()
    if settings.proxy:
        app.middlewares.append(_behind(settings.proxy))
    app[SETTINGS], app[STREAMS], app[LIMITS] = settings, streams, limits
    app[HEADS] = heads
    app.router.add_get("/events", streams.events, allow_head=False)
    app.router.add_post("/publish", streams.publish)
    app.router.add_get("/healthz", streams.healthz)
    app.router.add_get("/readyz", streams.readyz)
    add_cors(app, settings.cors_origin)

    def conditions() -> Iterable[Condition]:
        yield from streams.conditions()
        yield from limits.conditions()

    add_status(app, settings, conditions)

    async def running(_: web.Application) -> AsyncIterator[None]:
        await broker.start()
        sweeper = asyncio.create_task(limits.sweep())
        yield
        sweeper.cancel()
        await broker.close()

    app.cleanup_ctx.append(running)
    return app


def warn_of_open_doors(settings: Settings) -> None:
    """Logs what other machines may do without a token."""
    if not is_loopback(settings.host) and not settings.publish_token:
        _log.warning(
            "Every machine that reaches %s may publish: set SSE_SERVER_PUBLISH_TOKEN, or let only "
            "your own network through.",
            settings.host,
        )


def _broker(settings: Settings, errors: Errors, meters: Meters) -> Broker:
    if not settings.redis_url:
        return MemoryBroker(settings, meters)
    # Only where there is more than one process is redis-py needed.
    from server.redis_broker import RedisBroker

    return RedisBroker(settings, errors, meters)


def _behind(proxy: str) -> Middleware:
    """A proxy adds the address of its own peer at the end; any client can send what is before."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        forwarded = request.headers.getall("X-Forwarded-For", ())
        if forwarded and request.remote == proxy:
            request = request.clone(remote=forwarded[-1].rpartition(",")[2].strip())
        return await handler(request)

    return middleware
