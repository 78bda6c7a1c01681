"""Runs work on the event loops that own it, a portion at a time: a loop has others to serve."""

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

# How much of it is done at a time, and the seconds that are left to others before the next time.
PORTION: Final = 64
_PAUSE: Final = 0.005

T = TypeVar("T")
Work = Callable[[], None]
# An event loop (None where there is none to ask), and what it is to run.
Job = tuple[Any, Work]


class _Trio(NamedTuple):
    """A run of trio, for those who ask asyncio's event loops."""

    token: Any

    def is_running(self) -> bool:
        # One that is over raises a RuntimeError when it is asked for more.
        return True

    def call_soon_threadsafe(self, work: Callable[..., None], *args: Any) -> None:
        self.token.run_sync_soon(work, *args)

    def call_later(self, _: float, work: Callable[..., None], *args: Any) -> None:
        # Others have their turn before it.
        self.token.run_sync_soon(work, *args)


def running_loop() -> Any:
    """The event loop of this thread, asyncio's or trio's; None where there is none."""
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    trio = sys.modules.get("trio")
    if trio is not None:
        with suppress(RuntimeError):
            return _Trio(trio.lowlevel.current_trio_token())
    return None


async def aside(work: Work) -> None:
    """Has a thread do ``work`` while the event loop goes on; an unknown loop waits."""
    loop = running_loop()
    if isinstance(loop, _Trio):
        await sys.modules["trio"].to_thread.run_sync(work)
    elif loop is not None:
        await loop.run_in_executor(None, work)
    else:
        work()


def runs(loop: Any) -> bool:
    """Whether there is a loop, and it runs: one that does not would keep what it is given."""
    return loop is not None and bool(loop.is_running())


def by_loop(jobs: Iterable[Job]) -> list[tuple[Any, list[Work]]]:
    """Each loop, with all the work that is its."""
    found: dict[Any, list[Work]] = {}
    for loop, work in jobs:
        found.setdefault(loop, []).append(work)
    return list(found.items())


def portions(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """``items`` in lists of at most ``size``."""
    rest = iter(items)
    while portion := list(islice(rest, size)):
        yield portion


def hand(jobs: Iterable[Job]) -> None:
    """Has every job done soon, by its own loop if that runs; returns at once."""
    for loop, works in by_loop(jobs):
        _soon(loop, _turn, loop, deque(works))


def _turn(loop: Any, works: "deque[Work]") -> None:
    for _ in range(min(PORTION, len(works))):
        works.popleft()()
    if works:
        loop.call_later(_PAUSE, _turn, loop, works)


def run_on(loop: Any, portion: Sequence[Work], seconds: float) -> bool:
    """Has ``loop`` do a portion; whether it was done within that time. Not for its own thread."""
    done = threading.Event()

    def run() -> None:
        try:
            for work in portion:
                work()
        finally:
            done.set()

    return _soon(loop, run) and done.wait(seconds)


def _soon(loop: Any, work: Callable[..., None], *args: Any) -> bool:
    """Has ``loop`` call ``work``, if it runs; whether it does."""
    try:
        if not runs(loop):
            return False
        loop.call_soon_threadsafe(work, *args)
    except RuntimeError:  # closed meanwhile
        return False
    return True
