"""Runs work on the event loops that own it, a portion at a time: a loop has others to serve."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

# How much of it is done at a time, and the seconds that are left to others before the next time.
PORTION: Final = 64
_PAUSE: Final = 0.005

T = TypeVar("T")
Work = Callable[[], None]
# An asyncio event loop (None where there is none to ask), and what it is to run.
Job = tuple[Any, Work]


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The asyncio event loop of this thread; None where it is another's, or there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def runs(loop: Any) -> bool:
    """Whether there is a loop, and it runs: one that does not would keep what it is given."""
    return loop is not None and bool(loop.is_running())


def by_loop(jobs: Iterable[Job]) -> list[tuple[Any, list[Work]]]:
    """Each loop, with all the work that is its."""
    found: dict[int, tuple[Any, list[Work]]] = {}
    for loop, work in jobs:
        found.setdefault(id(loop), (loop, []))[1].append(work)
    return list(found.values())


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
