"""The telemetry of this process: who shares it, what is live, and how it ends.

Nothing may be lost when the process goes. At exit, and on the SIGTERM that would otherwise kill
it without one, what is still live ends as ``server_shutdown`` and everything is exported. A
forked child begins with nothing.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import threading
import time
from functools import partial
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import metrics

from otel_sse import backlog
from otel_sse.config import load
from otel_sse.connection import Connection
from otel_sse.opening import Opening
from otel_sse.pacer import portions
from otel_sse.semconv import HTTP_ROUTE
from otel_sse.telemetry import FLUSH_MILLIS, Providers, Telemetry

if TYPE_CHECKING:
    from otel_sse.current import Request

_log = logging.getLogger("otel_sse")

_lock = threading.Lock()
# By meter provider; None is the global one, whether it has been set yet or not.
_telemetries: dict[Any, Telemetry] = {}


def obtain(user: object, providers: Providers, options: dict[str, Any]) -> Telemetry:
    """The telemetry of ``providers``, made at the first call; ``release`` gives it back.

    Raises:
        ValueError, TypeError: an option is bad; see ``config.load``.

    """
    config = load(options)
    meter = providers.meter
    key = None if meter is None or meter is metrics.get_meter_provider() else meter
    with _lock:
        telemetry = _telemetries.get(key)
        if telemetry is None:
            telemetry = _telemetries[key] = Telemetry(config, providers)
        telemetry.serve(user, config)
        _exit.watch()
    return telemetry


def release(user: object, telemetry: Telemetry) -> None:
    """Ends what ``obtain`` began for ``user``; live connections are still told to their end."""
    with _lock:
        telemetry.release(user)
        if not any(each.users for each in _telemetries.values()):
            _exit.unwatch()


def open_connection(telemetry: Telemetry, opening: Opening, request: Request) -> Connection:
    """Begins to tell a stream whose response has started."""
    _exit.chain()
    return Connection(telemetry, opening, request)


class ConnectionInfo(NamedTuple):
    """A live connection. ``age`` and ``idle`` (time since its last message) are in seconds,
    ``bytes`` and ``backlog`` in bytes; ``backlog`` is None where it cannot be read.
    """

    id: str
    route: str | None
    client_address: str | None
    age: float
    idle: float
    messages: int
    bytes: int
    backlog: int | None


def connections() -> list[ConnectionInfo]:
    """The live connections of this process, oldest first: a snapshot, safe from any thread."""
    now = time.perf_counter()
    live = [each for telemetry in _all() for each in telemetry.snapshot()]
    return [
        ConnectionInfo(
            id=each.id,
            route=each.series.attributes.get(HTTP_ROUTE),
            client_address=each.client,
            age=now - each.started,
            idle=max(0.0, now - each.last),
            messages=each.sequence,
            bytes=each.io,
            backlog=_backlog(each.transport),
        )
        for each in sorted(live, key=lambda each: each.started)
    ]


def _backlog(transport: Any) -> int | None:
    layers = backlog.read(transport) if transport is not None else None
    return sum(layers.values()) if layers else None


def _all() -> list[Telemetry]:
    return list(_telemetries.values())


def _finish() -> None:
    """Ends what is live and exports everything, in portions that the batch queues can take."""
    for telemetry in _all():
        telemetry.stopping = True
        for portion in portions(telemetry.snapshot()):
            for connection in portion:
                connection.end(cut=True)
            telemetry.flush()
        telemetry.flush(metrics_too=True)


class _Exit:
    """Where the process may end: its exit hooks, and the signals that ask it to stop.

    A server's own handler is chained, which shows that what is cut from then on is cut by the
    server. Where nobody handles SIGTERM, a stand-in for the default action exports first.
    """

    def __init__(self) -> None:
        self._watching = False
        self._chained: dict[int, tuple[Any, Any]] = {}
        # The process that has its finalizer.
        self._finalized = 0

    def watch(self) -> None:
        if not self._watching:
            self._watching = True
            atexit.register(_bounded, _finish)
            if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, self._stand_in)

    def unwatch(self) -> None:
        if self._watching:
            self._watching = False
            atexit.unregister(_bounded)
            if _in_main_thread():
                for number, (ours, previous) in self._chained.items():
                    if signal.getsignal(number) is ours:
                        signal.signal(number, previous)
                if signal.getsignal(signal.SIGTERM) == self._stand_in:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._chained.clear()

    def chain(self) -> None:
        """Puts itself before the handlers that a server has installed since the last call."""
        if not self._watching or not _in_main_thread():
            return
        if self._finalized != os.getpid():
            self._finalized = os.getpid()
            if multiprocessing.parent_process() is not None:
                # A child of multiprocessing runs no exit hooks but these.
                Finalize(None, _bounded, (_finish,), exitpriority=100)
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            ours, _ = self._chained.get(number, (None, None))
            if not callable(handler) or handler is ours or handler == self._stand_in:
                continue
            # The interpreter and asyncio know their own handlers by identity: let them be.
            if handler is signal.default_int_handler or isinstance(handler, partial):
                continue
            ours = _announce(handler)
            self._chained[number] = (ours, handler)
            signal.signal(number, ours)
            signal.siginterrupt(number, False)

    def _stand_in(self, signum: int, _: Any) -> None:
        # A flush in here would wait for locks that the interrupted frame may hold. The thread
        # is no daemon, so the interpreter waits for it and the signal still ends the process.
        signal.signal(signum, signal.SIG_DFL)
        threading.Thread(target=_finish_and_kill, args=(signum,), name="otel-sse-exit").start()


def _announce(handler: Any) -> Any:
    def announced(signum: int, frame: Any) -> None:
        for telemetry in _all():
            telemetry.stopping = True
        handler(signum, frame)

    return announced


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _finish_and_kill(signum: int) -> None:
    _bounded(_finish)
    os.kill(os.getpid(), signum)


def _bounded(work: Any) -> None:
    """Runs ``work``, and leaves it alone when it takes longer than an export may."""
    worker = threading.Thread(target=work, name="otel-sse-flush", daemon=True)
    try:
        worker.start()
    except RuntimeError:  # no threads any more
        work()
        return
    worker.join(FLUSH_MILLIS / 1000)
    if worker.is_alive():
        _log.warning("otel_sse: the exporters did not take everything within %d ms", FLUSH_MILLIS)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for telemetry in _all():
        telemetry.reset()


_exit: Final = _Exit()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
