"""The end of the process: what is live then ends as ``server_shutdown``, and all is exported.

A process ends in several ways, and a server tells few of them. So this listens in several places,
and whichever comes first is enough: the signal that asks for a stop, the lifespan's end, the exit
hooks of the interpreter and of multiprocessing. A signal handler takes no lock and waits for
nothing, since the frame that it interrupts may hold any lock: it starts a thread.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any, Final

from otel_sse.garbage import in_thread
from otel_sse.loops import aside, by_loop, portions, run_on
from otel_sse.telemetry import FLUSH_MILLIS, Telemetry

_log = logging.getLogger("otel_sse")

# Seconds after which a process that was told to stop is killed, where nobody is known to say so:
# what `docker stop` allows, the least of the usual ones.
_KILLED_AFTER: Final = 10.0
# The part of that time in which the streams that are still live are told, and at most how long.
_TELLING: Final = (0.5, 5.0)
# Streams that an event loop is to end at a time, and the seconds that it is given for that.
_PORTION: Final = 256
_PATIENCE: Final = 1.0
_POLL: Final = 0.05


class Exit:
    """Where the process may end, and what is done then for all of its telemetry."""

    def __init__(self, telemetries: Callable[[], list[Telemetry]]) -> None:
        self._telemetries = telemetries
        self._watching = False
        # Our handler and the one it stands before, by signal.
        self._chained: dict[int, tuple[Any, Any]] = {}
        # The process that has its exit hooks.
        self._hooked = 0
        # Seconds that the end of the process may yet be delayed.
        self._left = FLUSH_MILLIS / 1000
        self._draining = False
        # The interpreter is about to end, and the SDK after us.
        self._ending = False
        # Held for a flush, so that none is under way when the SDK ends.
        self._flushing = threading.Lock()
        # The signal's default action is yet to come; and is due, since everything is exported.
        self._dying: threading.Event | None = None
        self._due = False

    def watch(self) -> None:
        if not self._watching:
            self._watching = True
            atexit.register(self._at_exit)
            if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, self._stand_in)

    def unwatch(self) -> None:
        if self._watching:
            self._watching = False
            atexit.unregister(self._at_exit)
            if _in_main_thread():
                for number, (ours, previous) in self._chained.items():
                    if signal.getsignal(number) is ours:
                        signal.signal(number, previous)
                if signal.getsignal(signal.SIGTERM) == self._stand_in:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._chained.clear()

    def chain(self, *, serves: bool = True) -> None:
        """Puts itself before the handlers that a server has installed since the last call, or a
        client that only reads.
        """
        if not self._watching or not _in_main_thread():
            return
        if self._hooked != os.getpid():
            self._hooked = os.getpid()
            # An SDK may have been set up since: the hook that comes last runs first.
            atexit.unregister(self._at_exit)
            atexit.register(self._at_exit)
            if multiprocessing.parent_process() is not None:
                # A child of multiprocessing runs no exit hooks but these.
                Finalize(None, self._at_exit, exitpriority=100)
        for number in _stop_signals(serves):
            handler = signal.getsignal(number)
            ours, _ = self._chained.get(number, (None, None))
            if not callable(handler) or handler is ours or handler == self._stand_in:
                continue
            # The interpreter and asyncio know their own handlers by identity: let them be.
            if handler is signal.default_int_handler or isinstance(handler, partial):
                continue
            ours = partial(self._announced, handler)
            self._chained[number] = (ours, handler)
            signal.signal(number, ours)
            if _is_a_loops(handler):
                signal.siginterrupt(number, False)

    def reset(self) -> None:
        """Begins anew in a forked child."""
        self._draining = self._ending = self._due = False
        self._flushing = threading.Lock()
        self._dying = None
        self._left = FLUSH_MILLIS / 1000

    async def flush(self) -> None:
        """Exports everything while the event loop goes on."""
        await aside(partial(self._bounded, self._flush))

    # --- the ways to end -------------------------------------------------------------------

    def _at_exit(self) -> None:
        self._ending = True
        self._bounded(self._finish)
        if self._dying is not None:
            self._dying.wait(FLUSH_MILLIS / 1000)

    def _stand_in(self, signum: int, _: FrameType | None) -> None:
        """In place of the default action, which comes when everything is exported, or at once where
        there are no threads any more or somebody insists. Nobody does where a daemon is told twice:
        its parent's exit hooks always ask, also when the parent has asked, as hypercorn's master.
        """
        if self._dying is None:
            self._dying = threading.Event()
            if not in_thread(self._finish_and_kill, signum):
                self._due = True
        if self._due or not multiprocessing.current_process().daemon:
            signal.signal(signum, signal.SIG_DFL)
        if self._due:
            os.kill(os.getpid(), signum)

    def _finish_and_kill(self, signum: int) -> None:
        self._bounded(self._finish)
        self._due = True
        os.kill(os.getpid(), signum)

    def _announced(self, handler: Any, signum: int, frame: FrameType | None) -> None:
        """A server is told to stop. What it cuts from now on is cut by the server."""
        for telemetry in self._telemetries():
            telemetry.stopping = True
        if not self._draining:
            self._draining = True
            in_thread(self._drain, _limit(handler, frame))
        handler(signum, frame)

    def _drain(self, limit: float) -> None:
        """Lets streams end by themselves for a while, but not until somebody kills the process."""
        part, most = _TELLING
        deadline = time.monotonic() + limit - min(part * limit, most)
        self._flush()
        live = True
        while time.monotonic() < deadline and not self._ending:
            before, live = live, any(each.live for each in self._telemetries())
            if before and not live:
                self._flush()
            time.sleep(_POLL)
        if self._ending:
            return
        self._finish()
        # Whoever serves on has not been stopped by that signal.
        for telemetry in self._telemetries():
            telemetry.stopping = False
        self._draining = False

    # --- what is done then -----------------------------------------------------------------

    def _finish(self) -> None:
        """Ends what is live and exports everything."""
        for telemetry in self._telemetries():
            telemetry.stopping = True
            live = telemetry.snapshot()
            for loop, ends in by_loop((each.loop, partial(each.end, cut=True)) for each in live):
                answers = True
                for portion in portions(ends, _PORTION):
                    # A loop that has been waited for once is blocked, and time is short.
                    answers = answers and run_on(loop, portion, _PATIENCE)
                    if not answers:
                        for end in portion:
                            end()
        self._flush()

    def _flush(self) -> None:
        with self._flushing:
            collected: list[Any] = []
            for telemetry in self._telemetries():
                # One collection is of the servers' and of the clients' side.
                provider = telemetry.meter_provider
                telemetry.empty(collect=provider not in collected)
                collected.append(provider)

    def _bounded(self, work: Callable[[], None]) -> None:
        """Runs ``work``, and leaves it alone when it takes longer than an export may."""
        worker = threading.Thread(target=work, name="otel-sse-flush", daemon=True)
        began = time.monotonic()
        try:
            worker.start()
        except RuntimeError:  # no threads any more
            work()
            return
        worker.join(self._left)
        if worker.is_alive():
            if self._left:
                _log.warning(
                    "otel_sse: the exporters did not take everything within %d ms", FLUSH_MILLIS
                )
            self._left = max(0.0, self._left - (time.monotonic() - began))


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _stop_signals(serves: bool) -> Iterator[int]:
    yield signal.SIGTERM
    if not serves:
        # A client may take an interrupt for anything; where it is the end, the exit hooks come.
        return
    yield signal.SIGINT
    if "gunicorn" in sys.modules:
        # Its master passes an interrupt on as this.
        yield signal.SIGQUIT


def _is_a_loops(handler: Any) -> bool:
    return str(getattr(handler, "__module__", "")).partition(".")[0] in ("asyncio", "uvloop")


def _limit(handler: Any, frame: FrameType | None) -> float:
    """Seconds until the streams that are live now are cut or the process is killed.

    uvicorn's handler knows when uvicorn cuts them itself. A forked worker of gunicorn or granian
    has its master on the stack, which kills it in the end.
    """
    while frame is not None:
        master: Any = frame.f_locals.get("self")
        home = type(master).__module__.partition(".")[0]
        config = getattr(master, "cfg", None) if home == "gunicorn" else master
        name = {"gunicorn": "graceful_timeout", "granian": "workers_kill_timeout"}.get(home, "")
        if hasattr(config, name):
            return float(getattr(config, name) or _KILLED_AFTER)
        frame = frame.f_back
    uvicorn = getattr(getattr(handler, "__self__", None), "config", None)
    own = getattr(uvicorn, "timeout_graceful_shutdown", None)
    return _KILLED_AFTER if own is None else float("inf")
