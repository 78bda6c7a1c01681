"""What the server shows of itself: /status as JSON, live as events on /status/events, the dashboard
on /, and /alerts. ``add_status`` adds them to an application.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Final

from aiohttp import web

import otel_sse
from server import thresholds
from server.alerts import Alerts, Webhook
from server.connections import bound_buffers
from server.figures import NoMetricsError
from server.health import DEGRADED, NOT_JUDGED, Condition, Health
from server.refusal import Refusal
from server.sampler import FAILED, Sampler
from server.settings import Settings

# Dashboards that are shown at once; seconds after which one that does not take an event is
# disconnected.
MAX_VIEWERS: Final = 50
_PATIENCE: Final = 30.0
_RETRY_MS: Final = 2000
_PAGE: Final = Path(__file__).resolve().parent / "dashboard"
_FILES: Final = (
    "chart.js",
    "dashboard.css",
    "dashboard.js",
    "elements.js",
    "format.js",
    "icon.svg",
)
_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_status(
    app: web.Application,
    settings: Settings,
    conditions: Callable[[], Iterable[Condition]] = tuple,
) -> None:
    """Adds the routes, and what reads the metrics while the application runs. ``conditions`` gives
    what the application itself knows to be wrong.

    Raises:
        ValueError: the list of thresholds, or a variable of it, is not as it has to be.

    """
    judged = thresholds.load(settings.thresholds, thresholds.own_limits(settings))
    status = _Status(judged, Health(conditions), settings.fleet_url)
    webhook = Webhook(status.alerts, settings.alerts_token, settings.alerts_from)
    app.router.add_get("/", status.page)
    app.router.add_get("/dashboard/{name}", status.file)
    app.router.add_get("/status", status.figures)
    app.router.add_get("/status/events", status.events)
    app.router.add_get("/alerts", webhook.get)
    app.router.add_post("/alerts", webhook.post)
    app.cleanup_ctx.append(status.sampling)
    app.on_shutdown.append(status.stop)


class _Status:
    def __init__(
        self, judged: list[thresholds.Threshold] | None, health: Health, fleet_url: str
    ) -> None:
        self.alerts = Alerts(self._wake)
        self._thresholds = judged
        self._health = health
        self._fleet_url = fleet_url
        self._sampler: Sampler | None = None
        self._why_not = ""
        self._changed = asyncio.Event()
        self._viewers = 0
        self._stopping = False

    async def sampling(self, _: web.Application) -> AsyncIterator[None]:
        """The readings, from the application's start to its end."""
        try:
            self._sampler = Sampler(self.alerts, self._thresholds, self._health, self._fleet_url)
        except NoMetricsError as error:
            self._why_not = str(error)
            self._refusal()
            yield
            return
        task = asyncio.create_task(self._sampler.run(self._wake))
        yield
        task.cancel()
        await asyncio.wait({task})
        self._sampler.close()

    async def stop(self, _: web.Application) -> None:
        """Ends the viewers' streams."""
        self._stopping = True
        self._wake()

    async def page(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(_PAGE / "index.html", headers=_HEADERS)

    async def file(self, request: web.Request) -> web.FileResponse:
        name = request.match_info["name"]
        if name not in _FILES:
            raise web.HTTPNotFound
        return web.FileResponse(_PAGE / name, headers=_HEADERS)

    async def figures(self, _: web.Request) -> web.Response:
        sampler = self._sampler
        if sampler is None:
            raise self._refusal()
        while not (sampler.number or sampler.failed):
            await self._changed.wait()
        if sampler.failed:
            health = sampler.health(self.alerts.active())
            raise Refusal(503, FAILED, _HEADERS, health=health)
        sampler.refresh()
        return web.Response(body=sampler.json, content_type="application/json", headers=_HEADERS)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The status as events, for as long as the page is open."""
        if self._sampler is None:
            raise self._refusal()
        if self._viewers >= MAX_VIEWERS or self._stopping:
            why = f"{self._viewers} dashboards are open: no more at once"
            raise Refusal(503, why, _HEADERS, retry_after=10)
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        self._viewers += 1
        try:
            if request.transport is not None:
                bound_buffers(request.transport)
            await response.prepare(request)
            await self._show(response, self._sampler)
        except asyncio.TimeoutError:
            otel_sse.current().set_close_reason("timeout")
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # The viewer has disconnected.
        finally:
            self._viewers -= 1
        return response

    async def _show(self, response: web.StreamResponse, sampler: Sampler) -> None:
        """Writes what is new, as soon as the viewer has taken what was before: the newest status
        alone, so a slow viewer gets fewer of them, and nothing piles up.
        """
        number, version = 0, -1
        await _write(response, f"retry: {_RETRY_MS}\n\n")
        history = json.dumps([moment.shown for moment in sampler.moments])
        last = sampler.moments[-1] if sampler.moments else None
        await _write(response, _event("history", history))
        while not self._stopping:
            changed = self._changed
            if version != self.alerts.version:
                version = self.alerts.version
                sampler.refresh()
                number = 0
                await _write(response, _event("alerts", json.dumps(self.alerts.last())))
            if number != sampler.number:
                number = sampler.number
                await _write(response, _event("status", sampler.json.decode(), number))
            if sampler.moments and sampler.moments[-1] is not last:
                last = sampler.moments[-1]
                await _write(response, _event("moment", json.dumps(last.shown)))
            await changed.wait()
        otel_sse.current().set_close_reason("server_shutdown")

    def _refusal(self) -> Refusal:
        """Without metrics; what the application knows to be wrong is known all the same."""
        now = time.time()
        found = [Condition(NOT_JUDGED, self._why_not)]
        found += [
            Condition(DEGRADED, f"{each['alert']} is firing.")
            for each in self.alerts.active()
            if each.get("severity") != "info"
        ]
        health = self._health.judge(found, now)
        health["since"] = thresholds.utc(health["since"])
        return Refusal(503, self._why_not, _HEADERS, health=health)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _write(response: web.StreamResponse, text: str) -> None:
    await asyncio.wait_for(response.write(text.encode()), _PATIENCE)


def _event(kind: str, data: str, number: int = 0) -> str:
    return f"event: {kind}\n" + (f"id: {number}\n" if number else "") + f"data: {data}\n\n"
