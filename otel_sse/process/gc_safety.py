"""Defers work that garbage collection triggers.

A generator or a response that is garbage is closed by the collector, in the middle of whatever the
thread was doing: that code may hold any lock, ours or the SDK's. A close that took a lock there
would wait for itself. So a close first asks ``in_gc()``, and hands itself to ``defer()``, which
runs it in a thread of its own.
"""

import gc
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final

Callback = Callable[[], None]

# The thread that is collecting garbage.
_collecting: int | None = None
_deferred: Final[deque[Callback]] = deque()
# For every 64 callbacks that wait another thread is started: the last one may have failed to
# start, or belong to the parent of a forked child.
_RETRY_EVERY: Final = 64


def install() -> None:
    """Observes garbage collection from now on."""
    if _on_gc not in gc.callbacks:
        gc.callbacks.append(_on_gc)


def in_gc() -> bool:
    """Whether this thread is collecting garbage."""
    return _collecting == get_ident()


def defer(callback: Callback) -> None:
    """Calls ``callback`` soon, in another thread."""
    _deferred.append(callback)
    if len(_deferred) % _RETRY_EVERY == 1:
        start_raw_thread(_run_deferred)


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


def _on_gc(phase: str, _: Any) -> None:
    global _collecting
    _collecting = get_ident() if phase == "start" else None


def _run_deferred() -> None:
    try:
        while True:
            _deferred.popleft()()
    except IndexError:
        pass
