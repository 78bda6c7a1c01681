"""Runs work on the event loops that own it, a portion at a time, with a flush between portions.

The batch queue of the SDK holds 2,048 spans and drops what comes on top. Ten thousand segments
that end at once are therefore ended some hundred at a time, each portion exported before the
next one begins.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

_log = logging.getLogger("otel_sse")

PORTION: Final = 256
# Seconds that a busy event loop is given to take a portion before the next one is tried.
_PATIENCE: Final = 30.0

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


def portions(items: Iterable[T]) -> Iterator[Sequence[T]]:
    """``items`` in lists of at most ``PORTION``."""
    rest = iter(items)
    while portion := list(islice(rest, PORTION)):
        yield portion


class Pacer:
    """At most one thread, alive only while there is work."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._busy = threading.Lock()

    def hand(self, jobs: Sequence[Job]) -> bool:
        """Has every job done by its own loop; returns at once.

        False while earlier jobs are under way: what is due stays due, and the next collection
        finds it again.
        """
        if not jobs or not self._busy.acquire(blocking=False):
            return False
        try:
            threading.Thread(
                target=self._run, args=(jobs,), name="otel-sse-pacer", daemon=True
            ).start()
        except RuntimeError:  # the interpreter is going down: the exit flush takes over
            self._busy.release()
            return False
        return True

    def _run(self, jobs: Sequence[Job]) -> None:
        try:
            for loop, portion in by_loop(jobs):
                run_on(loop, portion, _PATIENCE)
                self._flush()
        except Exception:
            _log.exception("otel_sse: segments of silent streams could not be told")
        finally:
            self._busy.release()


def by_loop(jobs: Iterable[Job]) -> Iterator[tuple[Any, Sequence[Work]]]:
    """The jobs in portions, each with the loop that all of it belongs to."""
    found: dict[int, tuple[Any, list[Work]]] = {}
    for loop, work in jobs:
        found.setdefault(id(loop), (loop, []))[1].append(work)
    for loop, works in found.values():
        for portion in portions(works):
            yield loop, portion


def run_on(loop: Any, portion: Sequence[Work], seconds: float) -> bool:
    """Has ``loop`` do a portion; whether it was done within that time. Not for its own thread."""
    done = threading.Event()

    def run() -> None:
        try:
            for work in portion:
                work()
        finally:
            done.set()

    try:
        if not loop.is_running():
            return False
        loop.call_soon_threadsafe(run)
    except (AttributeError, RuntimeError):
        return False  # not an asyncio loop, or closed
    return done.wait(seconds)
