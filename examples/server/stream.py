"""The endpoints: ``/events`` to read, ``/publish`` to write, ``/healthz`` and ``/readyz`` for the
load balancer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any, Final, TypeVar

from aiohttp import web

import otel_sse
from server import envelope
from server.bearer import bears
from server.broker import LAST, MAX_TYPE, RESERVED, Broker, Id, Unavailable, is_event_type
from server.coding import takes_gzip
from server.connections import BODY_SECONDS, bound_buffers
from server.cors import is_foreign
from server.errors import Errors, within
from server.health import DEGRADED, REFUSING, Condition
from server.limits import Limits, Refused
from server.meters import Meters
from server.outlet import FLUSH_SECONDS, HEARTBEAT, Outlet
from server.recent import Recent
from server.refusal import Refusal
from server.settings import Settings

T = TypeVar("T")

_TOPIC: Final = re.compile(r"[\w.:/-]{1,100}")
MAX_TOPICS: Final = 20
# Streams that a stopping server ends at a time: the loop has others to serve.
_PORTION: Final = 100


class Streams:
    """The handlers, and what they share."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        limits: Limits,
        errors: Errors,
        meters: Meters,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._limits = limits
        self._errors = errors
        self._meters = meters
        self._draining = False
        self._unpublished = Recent()
        self._headers = {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            # Nginx, and other proxies that read it.
            "X-Accel-Buffering": "no",
        }
        text = "".join(f"data: {line}\n" for line in settings.greeting.splitlines())
        self._greeting = f"event: greeting\n{text}\n".encode() if text else b""
        if settings.content_coding:
            self._headers["Vary"] = "Accept-Encoding"

    # --- reading ---------------------------------------------------------------------------

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The messages of ``?topic=``, which may be given again, or of all topics."""
        _only(request.query, ("topic", "last_event_id"), "parameter of /events")
        topics = frozenset(request.query.getall("topic", ()))
        if len(topics) > MAX_TOPICS or not all(map(_TOPIC.fullmatch, topics)):
            raise Refusal(400, f"topic is {_TOPIC.pattern}, at most {MAX_TOPICS} times")
        if self._draining:
            raise Refusal(503, "the server is stopping", retry_after=1)
        # A browser cannot send the header when it first connects.
        resumed = request.headers.get("Last-Event-ID") or request.query.get("last_event_id")
        transport = request.transport
        abort = transport.abort if transport is not None else _nothing
        if transport is not None:
            bound_buffers(transport)
        stream = otel_sse.current()
        outlet = Outlet(self._settings, topics, stream, abort, self._limits.limited)
        response = web.StreamResponse(headers=self._headers)
        accepted = ",".join(request.headers.getall("Accept-Encoding", ()))
        if self._settings.content_coding and takes_gzip(accepted):
            response.enable_compression(web.ContentCoding.gzip)
        try:
            with self._limits.admitted(outlet, request.remote or ""):
                await response.prepare(request)
                await self._serve(response, outlet, Id.parse(resumed))
        except Refused as refused:
            wait = self._errors.retry_after.seconds
            raise Refusal(503, str(refused), retry_after=wait) from None
        except ConnectionError:
            pass  # the client has disconnected
        return response

    async def _serve(self, response: web.StreamResponse, outlet: Outlet, after: Id | None) -> None:
        try:
            greeting = b"" if after else self._greeting
            await response.write(self._retry(1.0) + greeting)
            async with contextlib.aclosing(self._broker.subscribe(outlet, after)) as history:
                while outlet.ended is None:
                    chunk = await self._patiently(_next(history), outlet, response)
                    if chunk is None:
                        break
                    outlet.last = time.monotonic()
                    await response.write(chunk)
            if outlet.ended is not None:
                # What waits may come after what the history had yet to give: the client goes on
                # from the last that it has.
                outlet.skip_to(LAST)
            while (batch := await outlet.take()) is not None:
                if batch is not HEARTBEAT:
                    self._meters.writes += 1
                await response.write(batch)
            # So that not all of them reconnect at once.
            await response.write_eof(self._retry(random.uniform(0.5, 1.5)))
        finally:
            self._broker.unsubscribe(outlet)

    async def _patiently(
        self, work: Coroutine[Any, Any, T], outlet: Outlet, response: web.StreamResponse
    ) -> T | None:
        """The work's result, with heartbeats meanwhile: the broker may be away. None where the
        stream is ended before.
        """
        task = asyncio.create_task(work)
        either: set[asyncio.Future[Any]] = {task, outlet.over}
        seconds = self._settings.heartbeat_seconds
        try:
            while True:
                await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return task.result()
                if outlet.over.done():
                    return None
                await response.write(HEARTBEAT)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _retry(self, factor: float) -> bytes:
        return f"retry: {self._settings.retry_seconds * factor * 1000:.0f}\n\n".encode()

    # --- writing ---------------------------------------------------------------------------

    async def publish(self, request: web.Request) -> web.Response:
        """Takes ``{"topic": ..., "type": ..., "data": ...}``, gives ``{"id": ...}``."""
        if not bears(request, self._settings.publish_token):
            asked = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "Authorization is to be: Bearer, and the token", asked)
        if is_foreign(request, self._settings.cors_origin):
            raise Refusal(403, "pages of that origin may not publish")
        topic, kind, data = self._message(await _json(request))
        packed = await envelope.pack(data, self._settings.compress_from, self._meters)
        try:
            id_ = await self._broker.publish(topic, kind, packed)
        except Unavailable as error:
            self._unpublished.add(error.reason)
            raise Refusal(503, str(error), retry_after=error.retry_after) from None
        return web.json_response({"id": str(id_)})

    def _message(self, body: Any) -> tuple[str, str, str]:
        if not isinstance(body, dict):
            raise Refusal(400, "the body is to be a JSON object")
        _only(body, ("topic", "type", "data"), "key of a message")
        topic, kind = body.get("topic"), body.get("type", "message")
        data = body.get("data")
        if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
            raise Refusal(400, f"topic is to be a text of {_TOPIC.pattern}")
        if not isinstance(kind, str) or not is_event_type(kind):
            raise Refusal(
                400,
                f"type is to be a line of 1 to {MAX_TYPE} printable characters, and none of "
                f"{RESERVED}",
            )
        if not isinstance(data, str):
            raise Refusal(400, "data is to be a text")
        try:
            size = len(f"{kind}{data}".encode())
        except UnicodeEncodeError:
            raise Refusal(400, "type and data are to be Unicode texts") from None
        if size > self._settings.max_message_bytes:
            raise Refusal(413, f"data has {size} of {self._settings.max_message_bytes} bytes")
        return topic, kind, data

    # --- the load balancer -----------------------------------------------------------------

    async def healthz(self, _: web.Request) -> web.Response:
        """200 while the process answers: a reason to restart it would be that this does not."""
        return web.json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """200 where a new client would be served. An unreachable broker is reported, and is no
        reason to take this process out: clients wait on their streams until it is back, and every
        other process has the same broker.
        """
        reason = "the server is stopping" if self._draining else self._limits.full()
        if reason:
            raise Refusal(503, f"no new client is served: {reason}", retry_after=1)
        broker = "ok" if self._broker.reachable else "unavailable"
        return web.json_response({"status": "ready", "broker": broker})

    def conditions(self) -> Iterable[Condition]:
        """What is wrong: the server stops, or messages are not published."""
        if self._draining:
            yield Condition(REFUSING, "The server is stopping: no client is let in.")
        if not self._broker.reachable:
            yield Condition(
                DEGRADED, "Redis cannot be reached: nothing is published, and clients wait."
            )
        failed = self._unpublished.counts()
        if failed:
            classes = ", ".join(f"{each} ({count:,})" for each, count in failed.items())
            count = f"{failed.total():,} messages could not be published in the last minute"
            yield Condition(DEGRADED, f"{count}: {classes}.")

    async def drain(self) -> None:
        """Ends all streams in order: the load balancer learns of it first, then the clients."""
        self._draining = True
        await asyncio.sleep(self._settings.drain_seconds)
        # Those that may take longest come first.
        outlets = sorted(self._limits.outlets, key=lambda each: -each.bytes)
        for number, outlet in enumerate(outlets, 1):
            outlet.end("server_shutdown")
            if not number % _PORTION:
                await asyncio.sleep(0)
        # With very many it may be later than that when the last one is cut.
        deadline = time.monotonic() + FLUSH_SECONDS + 0.5
        over = False
        while self._limits.outlets and not over:
            await asyncio.sleep(0.02)
            over = time.monotonic() > deadline
            for outlet in self._limits.outlets:
                outlet.cut_if_late(time.monotonic())


async def _next(source: AsyncGenerator[bytes, None]) -> bytes | None:
    async for chunk in source:
        return chunk
    return None


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await within(BODY_SECONDS, request.read()))
    except asyncio.TimeoutError:
        raise Refusal(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise Refusal(413, "the body is larger than that of any message") from None
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is to be JSON in UTF-8") from None


def _only(given: Iterable[str], known: tuple[str, ...], what: str) -> None:
    """Refuses a slip of the pen by its name, which would else look as if it had an effect."""
    unknown = [each for each in given if each not in known]
    if unknown:
        raise Refusal(400, f"{unknown[0][:100]!r} is no {what}: {', '.join(known)}")


def _nothing() -> None:
    pass
