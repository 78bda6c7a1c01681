"""Errors: their class, their pattern, and what is done about each.

| class              | action                                                                   |
|--------------------|--------------------------------------------------------------------------|
| connection_refused | `retry`, later and later, where nothing can have been done; otherwise    |
|                    | `given_up`; repeated: `circuit_open`, nothing is tried for a while       |
| timeout            | `longer_timeout`: it grows by half                                       |
| rate_limit         | `rate_cut`: the next Retry-After is longer, which cuts the rate to 0.8   |
| memory_exhausted   | `emergency_cleanup`: what waits for slow clients is dropped. In Redis:   |
|                    | `history_halved`                                                         |
| unknown            | `log_and_go_on`                                                          |

Each is logged, unless it is repeated.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

from server.broker import Unavailable
from server.meters import Meters

T = TypeVar("T")
Clock = Callable[[], float]

_log: Final = logging.getLogger("server")

REFUSED: Final = "connection_refused"
TIMEOUT: Final = "timeout"
RATE_LIMIT: Final = "rate_limit"
MEMORY: Final = "memory_exhausted"
UNKNOWN: Final = "unknown"

# More than so many of a class within the window, in seconds.
FREQUENT: Final = 5
REPEATED: Final = 10
WINDOW: Final = 60.0
# An operation is tried so often, as long as that can do no harm.
TRIES: Final = 3


def backoff(number: int, base: float = 0.1, most: float = 2.0) -> float:
    """Seconds before the next try after ``number`` failed ones; by chance up to half less."""
    return min(most, base * 2.0 ** min(number, 32)) * random.uniform(0.5, 1.0)


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.wait_for``, which before Python 3.12 forgets that it was cancelled where the
    work ends at the same time; a task that waits for its caller's end would then never return.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError(f"not within {seconds:g} s")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        elif not task.cancelled():
            task.exception()  # so that asyncio does not log it as never retrieved


def refused(error: BaseException) -> bool:
    """Whether nothing can have been done: the connection or the command was not accepted."""
    return any(
        isinstance(each, ConnectionRefusedError)
        or "Connect call failed" in str(each)
        or type(each).__name__ == "BusyLoadingError"
        for each in _chain(error)
    )


def classify(error: BaseException) -> str:
    """The error's class, by its causes' classes too; libraries have their own of the same names."""
    for each in _chain(error):
        names = {kind.__name__ for kind in type(each).__mro__}
        text = str(each).lower()
        if "MemoryError" in names or broker_is_full(each):
            return MEMORY
        if "rate limit" in text or "max number of clients" in text:
            return RATE_LIMIT
        if "TimeoutError" in names:
            return TIMEOUT
        if "ConnectionError" in names or refused(each):
            return REFUSED
    return UNKNOWN


def broker_is_full(error: BaseException) -> bool:
    """Whether it is Redis's memory that is exhausted, which is not this process's."""
    return any(
        type(each).__name__ == "OutOfMemoryError" or str(each).startswith("OOM ")
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class Patterns:
    """How often a class of errors came within the last minute."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, deque[float]] = {}

    def note(self, kind: str) -> str:
        seen = self._seen.setdefault(kind, deque(maxlen=REPEATED + 1))
        now = self._clock()
        seen.append(now)
        while now - seen[0] > WINDOW:
            seen.popleft()
        if len(seen) > REPEATED:
            return "repeated"
        return "frequent" if len(seen) > FREQUENT else "occasional"


class Breaker:
    """Closed, everything is tried. Open, nothing is. Half-open, one try decides."""

    SECONDS: Final = 5.0

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._until = 0.0
        self.closed = True

    def wait(self) -> float:
        """Seconds until it is half-open; 0 where a try is allowed, and that one is taken."""
        if self.closed:
            return 0.0
        wait = self._until - self._clock()
        if wait > 0:
            return wait
        # The next try has to wait, whether this one succeeds or not.
        self.open()
        return 0.0

    def open(self) -> None:
        self.closed = False
        self._until = self._clock() + self.SECONDS

    def close(self) -> bool:
        """Whether it was open."""
        was, self.closed = self.closed, True
        return not was


class Grown:
    """A number of seconds that errors multiply and time brings back, step by step."""

    CALM: Final = 10.0

    def __init__(
        self, base: float, factor: float, most: float, clock: Clock = time.monotonic
    ) -> None:
        self._base, self._factor, self._most, self._clock = base, factor, most, clock
        self._seconds = base
        self._since = clock()

    @property
    def seconds(self) -> float:
        steps = int((self._clock() - self._since) / self.CALM)
        if steps:
            self._since += steps * self.CALM
            self._seconds = max(self._base, self._seconds / self._factor ** min(steps, 100))
        return self._seconds

    def grow(self) -> None:
        self._seconds = min(self._most, self.seconds * self._factor)
        self._since = self._clock()


class Errors:
    """Sees every error of the process once, counts it, and does what helps."""

    def __init__(self, meters: Meters, clock: Clock = time.monotonic) -> None:
        self._meters = meters
        self._patterns = Patterns(clock)
        self.breaker = Breaker(clock)
        # How long an operation of the broker may take; how long a refused client has to wait.
        self.time_out = Grown(2.0, 1.5, 10.0, clock)
        self.retry_after = Grown(1.0, 1 / 0.8, 60.0, clock)
        # Frees memory of this process; limits.py sets it.
        self.cleanup: Callable[[], None] = lambda: None

    def handle(self, error: BaseException, doing: str, *, retried: bool = False) -> str:
        """Gives the action that was taken. ``retried``: the caller will try again."""
        kind = classify(error)
        pattern = self._patterns.note(kind)
        self._meters.errors.add(1, {"class": kind, "pattern": pattern})
        action = self._recover(error, kind, pattern, retried)
        self._meters.recoveries.add(1, {"action": action})
        if pattern != "repeated":
            _log.warning("%s: %s (%s), so: %s", doing, error or type(error).__name__, kind, action)
        return action

    def _recover(self, error: BaseException, kind: str, pattern: str, retried: bool) -> str:
        if kind == REFUSED:
            if pattern != "repeated":
                return "retry" if retried else "given_up"
            self.breaker.open()
            return "circuit_open"
        if kind == TIMEOUT:
            self.time_out.grow()
            return "longer_timeout"
        if kind == RATE_LIMIT:
            self.retry_after.grow()
            return "rate_cut"
        if kind == MEMORY:
            if broker_is_full(error):
                # The broker has done it: nothing in this process would make room there.
                return "history_halved"
            self.cleanup()
            return "emergency_cleanup"
        return "log_and_go_on"

    def succeeded(self) -> None:
        """The broker can be reached."""
        if self.breaker.close():
            self._meters.recoveries.add(1, {"action": "circuit_closed"})

    async def attempt(self, operation: Callable[[], Coroutine[Any, Any, T]], doing: str) -> T:
        """What the operation gives. It is tried again only where it was refused: what may have
        been done already is not done twice.

        Raises:
            Unavailable: it failed, or is not tried because the circuit is open.

        """
        number = 0
        while True:
            wait = self.breaker.wait()
            if wait:
                raise Unavailable(f"{doing}: the circuit is open", REFUSED, wait)
            try:
                result = await within(self.time_out.seconds, operation())
            except Exception as error:
                number += 1
                again = number < TRIES and refused(error)
                self.handle(error, doing, retried=again)
                if not again:
                    kind = classify(error)
                    wait = self.retry_after.seconds
                    raise Unavailable(f"{doing}: {kind}", kind, wait) from error
            else:
                self.succeeded()
                return result
            await asyncio.sleep(backoff(number))
