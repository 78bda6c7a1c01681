"""Who is let in, and who has to go: limits of number, of time and of memory."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psutil

from server.errors import Errors
from server.meters import Meters
from server.outlet import Outlet
from server.settings import MIB, Settings

SWEEP_SECONDS: Final = 1.0
# In an emergency, the part of the connections that are behind that is cut: the worst ones.
CUT: Final = 10


class Refused(Exception):
    """A client is not let in. It says ``rate limit``, which is the error's class."""

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
        # Memory is short, and nobody is let in.
        self.short = False
        errors.cleanup = self._clean_up

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

    async def sweep(self) -> None:
        """Looks after the limits, for ever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                self.look()
            except Exception as error:
                self._errors.handle(error, "look after the limits")

    def look(self) -> None:
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
            self._errors.handle(error, "look after memory")

    def _behind(self) -> list[Outlet]:
        """Those whose clients do not keep up, the worst first; others have messages for the time
        of a batch, which is no reason to lose any.
        """
        now = time.monotonic()
        behind = (each for each in self._outlets if each.waited(now) > SWEEP_SECONDS)
        return sorted(behind, key=lambda each: -each.bytes)

    def _clean_up(self) -> None:
        """Throws away all that waits for those who are behind, and cuts the worst of them."""
        behind = self._behind()
        for number, outlet in enumerate(behind):
            if number * CUT < len(behind):
                outlet.shed("memory")
            else:
                outlet.drop_all("memory")
        gc.collect()
