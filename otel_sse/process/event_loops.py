"""Runs callbacks on the event loops that own them, in batches: a loop has others to serve."""

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from otel_sse.process.gc_safety import start_raw_thread

# Callbacks that run on a loop without a pause: 64 of the most expensive ones, which rotate a span,
# take some 2 ms.
BATCH_SIZE: Final = 64
# Seconds between two batches, for the loop's other work.
_PAUSE: Final = 0.005

T = TypeVar("T")
Callback = Callable[[], None]


class EventLoop(Protocol):
    """The part of an asyncio event loop that is used here."""

    def is_running(self) -> bool: ...

    def call_soon_threadsafe(self, work: Callable[..., Any], *args: Any) -> object: ...

    def call_later(self, delay: float, work: Callable[..., Any], *args: Any) -> object: ...


# An event loop, or None where it is unknown, and what it is to run.
LoopTask = tuple[EventLoop | None, Callback]


class _TrioLoop(NamedTuple):
    """A run of trio, behind the interface of an asyncio event loop."""

    token: Any

    def is_running(self) -> bool:
        # After the run's end, run_sync_soon raises a RuntimeError.
        return True

    def call_soon_threadsafe(self, work: Callable[..., Any], *args: Any) -> None:
        self.token.run_sync_soon(work, *args)

    def call_later(self, delay: float, work: Callable[..., Any], *args: Any) -> None:
        # No delay is needed: trio runs its other tasks first.
        self.token.run_sync_soon(work, *args)


class _AnyThread:
    """In place of the event loop of a stream that has none: a thread for each call."""

    def is_running(self) -> bool:
        return True

    def call_soon_threadsafe(self, work: Callable[..., Any], *args: Any) -> None:
        start_raw_thread(work, *args)

    def call_later(self, delay: float, work: Callable[..., Any], *args: Any) -> None:
        start_raw_thread(work, *args)


any_thread: Final[EventLoop] = _AnyThread()


def running_loop() -> EventLoop | None:
    """The event loop of this thread, asyncio's or trio's; None where there is none."""
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    trio = sys.modules.get("trio")
    if trio is not None:
        with suppress(RuntimeError):
            return _TrioLoop(trio.lowlevel.current_trio_token())
    return None


async def run_in_thread(work: Callback) -> None:
    """Runs ``work`` in a thread of its own while the event loop goes on; an unknown loop waits.

    The loop's executor and trio's limiter belong to the application, which may have shut them down
    or filled them with what never ends. Without a thread ``work`` does not run.
    """
    loop = running_loop()
    if loop is None:
        work()
        return
    done = sys.modules["trio"].Event() if isinstance(loop, _TrioLoop) else asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            _call_soon(loop, done.set)

    if start_raw_thread(run):
        await done.wait()


def is_running(loop: EventLoop | None) -> bool:
    """Whether ``loop`` is known and runs. One that does not run would keep what it is given."""
    return loop is not None and bool(loop.is_running())


def group_by_loop(tasks: Iterable[LoopTask]) -> list[tuple[EventLoop | None, list[Callback]]]:
    """Each loop with all its callbacks."""
    found: dict[EventLoop | None, list[Callback]] = {}
    for loop, callback in tasks:
        found.setdefault(loop, []).append(callback)
    return list(found.items())


def batched(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """``items`` in lists of at most ``size``."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def schedule(tasks: Iterable[LoopTask]) -> None:
    """Has every callback run soon, by its own loop if that runs; returns at once."""
    for loop, callbacks in group_by_loop(tasks):
        _call_soon(loop, _run_batch, loop, deque(callbacks))


def _run_batch(loop: EventLoop, callbacks: "deque[Callback]") -> None:
    for _ in range(min(BATCH_SIZE, len(callbacks))):
        callbacks.popleft()()
    if callbacks:
        loop.call_later(_PAUSE, _run_batch, loop, callbacks)


def run_and_wait(loop: EventLoop | None, callbacks: Sequence[Callback], seconds: float) -> bool:
    """Has ``loop`` run the callbacks, and waits. Not to be called from the loop's own thread.

    Returns:
        Whether they ran within that time.

    """
    if loop is any_thread:
        # This one, too. Where gevent has replaced the threads, another might not run before long.
        for callback in callbacks:
            callback()
        return True
    done = threading.Event()

    def run() -> None:
        try:
            for callback in callbacks:
                callback()
        finally:
            done.set()

    return _call_soon(loop, run) and done.wait(seconds)


def _call_soon(loop: EventLoop | None, work: Callable[..., None], *args: Any) -> bool:
    """Has ``loop`` call ``work``, if it runs; returns whether it does."""
    try:
        if loop is None or not is_running(loop):
            return False
        loop.call_soon_threadsafe(work, *args)
    except RuntimeError:  # closed in the meantime
        return False
    return True


def run_in_parallel(callbacks: Sequence[Callback]) -> None:
    """Runs each in a thread, the last one in this, and waits; in turn where no thread starts."""
    *others, last = callbacks
    threads = []
    for callback in others:
        thread = threading.Thread(target=callback, name="otel-sse-flush", daemon=True)
        try:
            thread.start()
            threads.append(thread)
        except RuntimeError:  # the interpreter starts no more threads
            callback()
    last()
    for thread in threads:
        thread.join()
