"""Defers work that the freeing of an object triggers: a finalizer only queues.

A generator, a coroutine or a response that is given up is closed where it is freed: by the garbage
collector in the middle of whatever the thread was doing, where its last reference goes, and in an
interpreter without a GIL at any byte code of the thread that made it. That code may hold any lock,
ours or the SDK's. A close that took a lock there would wait for itself. So a close first asks
``in_finalizer()``, and hands itself to ``defer()``, which runs it in a thread of its own; what can
only be a finalizer's defers without asking.
"""

import gc
import logging
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from threading import get_ident
from time import perf_counter
from typing import Any, Final

from otel_sse.process.fork import run_in_forked_child

_log = logging.getLogger("otel_sse")

Callback = Callable[[], None]

# The thread that is collecting garbage.
_collecting: int | None = None
# Each with the time at which it was deferred, monotonic seconds.
_deferred: Final[deque[tuple[float, Callback]]] = deque()
# That time of what a thread runs at present.
_deferred_at: Final[dict[int, float]] = {}
# For every 64 callbacks that wait another thread is started: the last one may have failed to
# start, or belong to the parent of a forked child.
_RETRY_EVERY: Final = 64
# Errors may form a circle by their contexts.
_MAX_CONTEXTS: Final = 20


def install() -> None:
    """Observes garbage collection from now on."""
    if _on_gc not in gc.callbacks:
        gc.callbacks.append(_on_gc)
        run_in_forked_child(_forget_parent)


def in_finalizer(error: BaseException | None = None) -> bool:
    """Whether this thread may be freeing an object.

    Args:
        error: what has left a frame of the application. A generator or a coroutine that is freed
            gets a GeneratorExit, which is the context of what its clean-up raises. It means
            nothing any more in what has been deferred.

    """
    if _collecting == get_ident():
        return True
    if error is None or deferred_at() is not None:
        return False
    each: BaseException | None = error
    for _ in range(_MAX_CONTEXTS):
        if each is None or isinstance(each, GeneratorExit):
            return each is not None
        each = each.__context__
    return False


def defer(callback: Callback) -> None:
    """Calls ``callback`` soon, in another thread."""
    _deferred.append((perf_counter(), callback))
    if len(_deferred) % _RETRY_EVERY == 1:
        start_raw_thread(run_deferred)


def start_waiting() -> None:
    """Starts a thread for what waits: two that defer at the same moment may each have left that to
    the other.
    """
    if _deferred:
        start_raw_thread(run_deferred)


def deferred_at() -> float | None:
    """When the callback was deferred that this thread runs, monotonic seconds; None outside one."""
    return _deferred_at.get(get_ident()) if _deferred_at else None


def run_deferred() -> None:
    """Calls what waits; to be called where no lock is held."""
    thread = get_ident()
    try:
        while True:
            try:
                _deferred_at[thread], callback = _deferred.popleft()
            except IndexError:
                return
            try:
                callback()
            except Exception:
                # Those behind it are not lost, nor is what an exit hook does next.
                _log.warning("otel_sse: a close that a finalizer deferred failed", exc_info=True)
    finally:
        _deferred_at.pop(thread, None)


def start_raw_thread(work: Callable[..., None], *args: Any) -> bool:
    """Starts a thread where any lock may be held: ``threading`` has locks too, so not by that.

    Returns:
        Whether the thread was started.

    """
    try:
        start_new_thread(work, args)
    except RuntimeError:  # the interpreter starts no more threads: the exit hooks run next
        return False
    return True


def _forget_parent() -> None:
    """What waits at a fork is the parent's, which goes on with it."""
    global _collecting
    _collecting = None
    _deferred.clear()
    _deferred_at.clear()


def _on_gc(phase: str, _: Any, get_ident: Callable[[], int] = get_ident) -> None:
    # The last collections come when the names of this module are gone already.
    global _collecting
    _collecting = get_ident() if phase == "start" else None
