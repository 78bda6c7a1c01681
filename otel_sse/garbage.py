"""The thread that collects garbage. The frame that it interrupts may hold any lock, an SDK's too,
so what garbage has to tell waits for a thread of its own.
"""

import gc
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final

Tell = Callable[[], None]

_collecting: int | None = None
_waiting: Final[deque[Tell]] = deque()
# Whenever so many more wait, another thread is tried: the last one may not have started, or is a
# forked child's parent's.
_TRY: Final = 64


def watch() -> None:
    """From now on it is known when garbage is collected."""
    if _note not in gc.callbacks:
        gc.callbacks.append(_note)


def is_collected() -> bool:
    """Whether this thread is collecting garbage."""
    return _collecting == get_ident()


def later(tell: Tell) -> None:
    """Calls ``tell`` soon, in another thread."""
    _waiting.append(tell)
    if len(_waiting) % _TRY == 1:
        in_thread(_tell)


def in_thread(work: Callable[..., None], *args: Any) -> bool:
    """Starts a thread where any lock may be held: not by threading, which has locks, too. Whether
    there was one.
    """
    try:
        start_new_thread(work, args)
    except RuntimeError:  # no threads any more: the exit hooks are next
        return False
    return True


def _note(phase: str, _: Any) -> None:
    global _collecting
    _collecting = get_ident() if phase == "start" else None


def _tell() -> None:
    try:
        while True:
            _waiting.popleft()()
    except IndexError:
        pass
