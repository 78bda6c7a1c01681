"""Whether a value of a context variable came to this thread by its start alone.

From Python 3.14 on a thread may start with a copy of the context variables of the code that starts
it: with ``-X thread_inherit_context=1``, and by default in builds without a GIL. A pool's thread
keeps what it has inherited for as long as it lives, and serves others meanwhile. Only code that was
given a context on purpose, as by ``asyncio.to_thread``, runs in one that belongs to it.
"""

import sys
import threading
from contextvars import ContextVar
from typing import Any, Final

from otel_sse.process.event_loops import running_loop

INHERITS: Final = bool(getattr(sys.flags, "thread_inherit_context", 0))

_probe: Final[ContextVar[object]] = ContextVar("otel_sse_probe")


def is_inherited(variable: ContextVar[Any], thread: int) -> bool:
    """Whether this thread has inherited the value of ``variable``, which was set in ``thread``.

    Where Python does not show that, the value counts as given on purpose.
    """
    if thread == threading.get_ident():
        return False
    # What the thread started with. The attribute is private; Python 3.14 and 3.15 have it.
    base = getattr(threading.current_thread(), "_context", None)
    if base is None or base.get(variable) is not variable.get():
        return False
    if running_loop() is not None:
        # Each of its tasks has a copy.
        return True
    value = object()
    token = _probe.set(value)
    try:
        return base.get(_probe) is value
    finally:
        _probe.reset(token)
