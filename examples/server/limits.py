"""Which clients are let in, and which are disconnected: limits of number, time and memory."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import psutil

from server.errors import Errors
from server.health import REFUSING, Condition
from server.meters import Meters
from server.outlet import Outlet
from server.recent import Recent
from server.settings import MIB, Settings

SWEEP_SECONDS: Final = 1.0
_REASONS: Final = {
    "memory": "memory was short",
    "connections": "all connections were taken",
    "connections_per_client": "their address had all that one may have",
}
# In an emergency, the part of the connections that are behind that is cut: the worst ones.
CUT: Final = 10


class Refused(Exception):
    """A client is not let in. Its text has ``rate limit``, by which the error is classed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"rate limit: {reason}")


class MemoryExhausted(MemoryError):
    """The process has more than it is meant to."""


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(psutil.Process().memory_info().rss)


class Limits:
    """The connections of this process, by client address."""

    def __init__(
        self,
        settings: Settings,
        errors: Errors,
        meters: Meters,
        memory: Callable[[], int] = resident,
    ) -> None:
        self._settings = settings
        self._errors = errors
        self._meters = meters
        self._memory = memory
        self._outlets: dict[Outlet, None] = {}
        self._clients: Counter[str] = Counter()
        # Memory is short, and no client is let in.
        self.short = False
        self._refused = Recent()
        errors.cleanup = self._clean_up
        meters.observe_queues(lambda: [each.bytes for each in self.outlets])

    @property
    def outlets(self) -> list[Outlet]:
        """Oldest first."""
        return list(self._outlets)

    def limited(self, limit: str) -> None:
        """Counts a connection that is ended by a limit."""
        self._meters.limited.add(1, {"limit": limit})

    @contextmanager
    def admitted(self, outlet: Outlet, client: str) -> Iterator[None]:
        """The time of a connection.

        Raises:
            Refused: there are too many already.

        """
        reason = self._objection(client)
        if reason:
            self._refused.add(reason)
            self._meters.rejected.add(1, {"reason": reason})
            error = Refused(reason)
            self._errors.handle(error, "let a client in")
            raise error
        self._outlets[outlet] = None
        self._clients[client] += 1
        try:
            yield
        finally:
            del self._outlets[outlet]
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    def full(self) -> str | None:
        """Why no client at all would be let in; None where one would be."""
        if self.short:
            return "memory"
        if len(self._outlets) >= self._settings.max_connections:
            return "connections"
        return None

    def _objection(self, client: str) -> str | None:
        reason = self.full()
        if reason:
            return reason
        if self._clients[client] >= self._settings.max_connections_per_client:
            return "connections_per_client"
        return None

    def conditions(self) -> Iterable[Condition]:
        """What is wrong: no client, or not every client, is let in."""
        settings = self._settings
        texts = {
            "memory": f"Memory is above its limit of {settings.memory_limit_mb:,} MB: "
            "no client is let in.",
            "connections": f"All {settings.max_connections:,} connections are taken: "
            "no client is let in.",
        }
        full = self.full()
        if full:
            yield Condition(REFUSING, texts[full])
        refused = self._refused.counts()
        if refused:
            reasons = ", ".join(f"{_REASONS[each]} ({count:,})" for each, count in refused.items())
            yield Condition(
                REFUSING, f"{refused.total():,} clients were refused in the last minute: {reasons}."
            )

    async def sweep(self) -> None:
        """Enforces the limits, once a second, until it is cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                self.enforce()
            except Exception as error:
                self._errors.handle(error, "enforce the limits")

    def enforce(self) -> None:
        now = time.monotonic()
        for outlet in self.outlets:
            if now - outlet.last > self._settings.idle_seconds:
                outlet.expire("idle")
            elif now - outlet.started > outlet.lifetime:
                outlet.expire("age")
            outlet.cut_if_late(now)
        limit = self._settings.memory_limit_mb * MIB
        used = self._memory() if limit else 0
        was, self.short = self.short, used > limit
        if self.short and (not was or self._behind()):
            error = MemoryExhausted(f"{used / MIB:.0f} MiB of {limit / MIB:.0f} MiB are used")
            self._errors.handle(error, "check memory")

    def _behind(self) -> list[Outlet]:
        """Those whose clients do not keep up, the worst first; others have messages for the time
        of a batch, which is no reason to lose any.
        """
        now = time.monotonic()
        behind = (each for each in self._outlets if each.waited(now) > SWEEP_SECONDS)
        return sorted(behind, key=lambda each: -each.bytes)

    def _clean_up(self) -> None:
        """Drops all that waits for the clients that are behind, and cuts the worst of them."""
        behind = self._behind()
        for number, outlet in enumerate(behind):
            if number * CUT < len(behind):
                outlet.shed("memory")
            else:
                outlet.drop_all("memory")
        gc.collect()
