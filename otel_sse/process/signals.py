"""Observes the signals that ask a process to stop, without changing what they do.

A handler runs between two byte codes of the main thread, which may hold any lock, ours and the
SDK's. So nothing that is called from here takes a lock or waits; it starts a thread.

Two cases, both from the first stream on; before that, nothing is touched:

- A server has installed a handler. It is wrapped: ours runs first and then calls it. The wrapper
  has the attributes of what it wraps, since frameworks find their server by its handler, and equals
  it, since a bound method is found again by ``==``.
- SIGTERM has its default action. Ours stands in its place, since the action would end the process
  at once, and nothing would be exported.

A forked child has no stream: it gets back what was there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, Final

from otel_sse.process.server_facts import is_event_loop_handler, uses_sigquit

_pending_calls: Final[list[Any]] = []
# Below ``signal.getsignal``, which for every handler first raises that it is none of its constants,
# with its representation; and every stream asks for some.
_handler: Final[Any] = getattr(signal.getsignal, "__wrapped__", signal.getsignal)

OnDefault = Callable[[int, "FrameType | None"], None]
OnServer = Callable[[Any, int, "FrameType | None"], None]


class _Wrapper:
    """A handler that calls ``on_server`` with the one that it wraps."""

    def __init__(self, on_server: OnServer, handler: Any) -> None:
        self._on_server = on_server
        self._handler = handler

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self._on_server(self._handler, signum, frame)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def __eq__(self, other: object) -> bool:
        return self is other or bool(self._handler == other)

    def __hash__(self) -> int:
        return hash(self._handler)


class StopSignals:
    """Calls ``on_default`` in place of SIGTERM's default action, and ``on_server`` before the
    handler of a server, with that handler: ``on_server`` has to call it.
    """

    def __init__(self, on_default: OnDefault, on_server: OnServer) -> None:
        self._on_default = on_default
        self._on_server = on_server
        # Our handler and the one that it calls, by signal.
        self._wrapped: dict[int, tuple[Any, Any]] = {}

    def replace_default(self) -> None:
        """Stands in for SIGTERM's default action, where it has that."""
        if in_main_thread() and _handler(signal.SIGTERM) == signal.SIG_DFL:
            _set_handler(signal.SIGTERM, self._on_default)

    def wrap_handlers(self, *, interrupts: bool) -> None:
        """Wraps the handlers that have been installed since the last call.

        Args:
            interrupts: SIGINT too. A client may use it for anything; where it ends the process,
                the exit hooks run.

        """
        if not in_main_thread():
            return
        for number in _stop_signals(interrupts):
            handler = _handler(number)
            ours, _ = self._wrapped.get(number, (None, None))
            if not callable(handler) or handler is ours or handler is self._on_default:
                continue
            # The interpreter and asyncio compare their own handlers by identity: leave those.
            if handler is signal.default_int_handler or isinstance(handler, partial):
                continue
            ours = _Wrapper(self._on_server, handler)
            if not _set_handler(number, ours):
                return
            self._wrapped[number] = (ours, handler)
            if is_event_loop_handler(handler):
                signal.siginterrupt(number, False)

    def restore(self) -> None:
        """Puts back what was there, where ours is still the handler."""
        if in_main_thread():
            for number, (ours, previous) in self._wrapped.items():
                if _handler(number) is ours:
                    signal.signal(number, previous)
            if _handler(signal.SIGTERM) is self._on_default:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._wrapped.clear()


def _set_handler(number: int, handler: Any) -> bool:
    """Whether it could be set: a subinterpreter, such as mod_wsgi's, may not."""
    try:
        signal.signal(number, handler)
    except ValueError:
        return False
    return True


def in_main_thread() -> bool:
    # By its id (Linux), too: once eventlet has patched threading, its object is another one.
    current = threading.current_thread()
    return current is threading.main_thread() or threading.get_native_id() == os.getpid()


def call_in_main_thread(callback: Callable[[], None]) -> None:
    """Has the main thread call ``callback`` soon, between two byte codes, as it calls a signal's
    handler. While it runs none, nothing is called; nothing either in another Python than CPython,
    or from a subinterpreter: the main thread would run ``callback`` in the main one.
    """
    with suppress(ImportError, AttributeError):
        import ctypes

        api = ctypes.pythonapi
        for each in (api.PyInterpreterState_Get, api.PyInterpreterState_Main):
            each.restype = ctypes.c_void_p
        if api.PyInterpreterState_Get() != api.PyInterpreterState_Main():
            return

        def call(_: Any) -> int:
            with suppress(Exception):
                callback()
            return 0

        function = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(call)
        # Kept, since the interpreter does not.
        _pending_calls.append(function)
        # https://docs.python.org/3/c-api/init.html#c.Py_AddPendingCall
        api.Py_AddPendingCall(function, None)


def _stop_signals(interrupts: bool) -> Iterator[int]:
    yield signal.SIGTERM
    if interrupts:
        yield signal.SIGINT
        if uses_sigquit():
            yield signal.SIGQUIT
