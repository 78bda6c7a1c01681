"""Runs work on the event loops that own it, a portion at a time, and flushes between portions.

The batch queue of the SDK holds 2,048 spans and drops what comes on top. Ten thousand segments
that end at once are therefore ended some hundred at a time, each portion exported before the
next one begins.
"""

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
# An asyncio event loop (None where there is none to ask), and what it is to run.
Job = tuple[Any, Callable[[], None]]


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
            by_loop: dict[int, list[Job]] = {}
            for job in jobs:
                by_loop.setdefault(id(job[0]), []).append(job)
            for owned in by_loop.values():
                for portion in portions(owned):
                    _on_loop(portion)
                    self._flush()
        except Exception:
            _log.exception("otel_sse: segments of silent streams could not be told")
        finally:
            self._busy.release()


def _on_loop(portion: Sequence[Job]) -> None:
    done = threading.Event()

    def tend() -> None:
        try:
            for _, work in portion:
                work()
        finally:
            done.set()

    try:
        portion[0][0].call_soon_threadsafe(tend)
    except (AttributeError, RuntimeError):
        return  # not an asyncio loop, or closed: the next message or the end tells it
    done.wait(_PATIENCE)
