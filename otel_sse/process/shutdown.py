"""The end of the process: live streams close as ``server_shutdown``, and everything is exported.

A process ends in several ways, and a server announces few of them. So this listens in several
places, and the first one that comes is enough:

::

    a server's signal handler ──► on_server_signal ──► thread: _drain
                                    │ then the                │ exports; lets streams end by
                                    ▼ server's own            │ themselves; half of the kill
                                  handler                     │ timeout, at most 5 s, before the
                                                              │ kill it calls
    SIGTERM's default action ───► on_default_signal ──► thread: _finish, then the default action
    the lifespan's end ─────────► export()                    │
    atexit, multiprocessing ────► _at_exit ─────────────────► _finish
                                                              │
                                  each loop closes its streams, 256 at a time, 1 s for a loop
                                  that does not answer; then metrics, spans and logs are exported

No wait takes longer than ``flush_budget`` in all: an exporter that does not answer delays the end
of the process once, not at each of these places.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any, Final, Protocol

from otel_sse.process.event_loops import (
    LoopTask,
    batched,
    group_by_loop,
    run_and_wait,
    run_in_thread,
)
from otel_sse.process.gc_safety import start_raw_thread
from otel_sse.process.server_facts import kill_timeout
from otel_sse.process.signals import StopSignals

_log = logging.getLogger("otel_sse")

# How long one export may take, in milliseconds.
EXPORT_TIMEOUT_MILLIS: Final = 10_000
# The part of the kill timeout that is reserved for closing and exporting what is still live, and
# its maximum in seconds.
_RESERVED_PART: Final = 0.5
_MAX_RESERVED: Final = 5.0
# Streams that an event loop closes in one call, and the seconds that it has for that.
_BATCH_SIZE: Final = 256
_LOOP_TIMEOUT: Final = 1.0
_POLL: Final = 0.05


class Participant(Protocol):
    """Something whose streams close and whose telemetry is exported at the end of the process."""

    # The process is about to end: a stream that does not end by itself is cut.
    stopping: bool

    @property
    def meter_provider(self) -> object: ...

    def has_live_streams(self) -> bool: ...

    def close_tasks(self) -> Sequence[LoopTask]:
        """For each live stream what closes it, and the loop that has to."""

    def export(self, *, collect: bool) -> None:
        """Exports everything; ``collect``: the metrics too."""


class ShutdownHandler:
    """Observes every way in which the process may end, for all ``participants``."""

    def __init__(self, participants: Callable[[], Sequence[Participant]]) -> None:
        self._participants = participants
        self._signals = StopSignals(self._on_default_signal, self._on_server_signal)
        self._installed = False
        # The process whose exit hooks are registered: a fork inherits some of them.
        self._hooked_pid = 0
        # Seconds by which the end of the process may yet be delayed.
        self._flush_budget = EXPORT_TIMEOUT_MILLIS / 1000
        self._draining = False
        # The interpreter is about to end, and the SDK after us.
        self._exiting = False
        # Held for an export, so that none is under way when the SDK ends.
        self._export_lock = threading.Lock()
        # SIGTERM's default action is pending; and may happen, since everything is exported.
        self._pending_death: threading.Event | None = None
        self._may_die = False

    def install(self) -> None:
        if not self._installed:
            self._installed = True
            atexit.register(self._at_exit)
            self._signals.replace_default()

    def uninstall(self) -> None:
        if self._installed:
            self._installed = False
            atexit.unregister(self._at_exit)
            self._signals.restore()

    def wrap_signal_handlers(self, *, serves: bool = True) -> None:
        """Wraps the handlers that a server, or with ``serves`` false a client's application, has
        installed since the last call; called when a stream opens.
        """
        if not self._installed or threading.current_thread() is not threading.main_thread():
            return
        if self._hooked_pid != os.getpid():
            self._hooked_pid = os.getpid()
            # The SDK may have been set up since: the hook that is registered last runs first.
            atexit.unregister(self._at_exit)
            atexit.register(self._at_exit)
            if multiprocessing.parent_process() is not None:
                # A child of multiprocessing runs no exit hooks but these.
                Finalize(None, self._at_exit, exitpriority=100)
        self._signals.wrap_handlers(interrupts=serves)

    def reset(self) -> None:
        """Starts anew in a forked child."""
        self._draining = self._exiting = self._may_die = False
        self._export_lock = threading.Lock()
        self._pending_death = None
        self._flush_budget = EXPORT_TIMEOUT_MILLIS / 1000

    async def export(self) -> None:
        """Exports everything while the event loop goes on."""
        await run_in_thread(partial(self._run_with_timeout, self._export))

    # --- the ways to end -------------------------------------------------------------------

    def _at_exit(self) -> None:
        self._exiting = True
        self._run_with_timeout(self._finish)
        if self._pending_death is not None:
            self._pending_death.wait(EXPORT_TIMEOUT_MILLIS / 1000)

    def _on_default_signal(self, signum: int, _: FrameType | None) -> None:
        """In place of the default action, which follows when everything is exported, or at once
        where no thread can be started or the signal comes again.

        For a daemon of multiprocessing a second signal means nothing: its parent's exit hooks
        always send one, also where the parent has sent one itself, as hypercorn's does.
        """
        if self._pending_death is None:
            self._pending_death = threading.Event()
            if not start_raw_thread(self._finish_and_die, signum):
                self._may_die = True
        if self._may_die or not multiprocessing.current_process().daemon:
            signal.signal(signum, signal.SIG_DFL)
        if self._may_die:
            os.kill(os.getpid(), signum)

    def _finish_and_die(self, signum: int) -> None:
        self._run_with_timeout(self._finish)
        self._may_die = True
        os.kill(os.getpid(), signum)

    def _on_server_signal(self, handler: Any, signum: int, frame: FrameType | None) -> None:
        """The server is asked to stop: from now on it is the server that cuts a stream."""
        for participant in self._participants():
            participant.stopping = True
        if not self._draining:
            self._draining = True
            start_raw_thread(self._drain, kill_timeout(handler, frame))
        handler(signum, frame)

    def _drain(self, limit: float) -> None:
        """Lets streams end by themselves, but closes them while there is time to export."""
        deadline = time.monotonic() + limit - min(_RESERVED_PART * limit, _MAX_RESERVED)
        self._export()
        live = True
        while time.monotonic() < deadline and not self._exiting:
            before, live = live, any(each.has_live_streams() for each in self._participants())
            if before and not live:
                self._export()
            time.sleep(_POLL)
        if self._exiting:
            return
        self._finish()
        # A server that goes on was not stopped by that signal.
        for participant in self._participants():
            participant.stopping = False
        self._draining = False

    # --- what is done then -----------------------------------------------------------------

    def _finish(self) -> None:
        """Closes what is live and exports everything."""
        for participant in self._participants():
            participant.stopping = True
            for loop, closes in group_by_loop(participant.close_tasks()):
                answers = True
                for batch in batched(closes, _BATCH_SIZE):
                    # A loop that did not answer once is blocked, and time is short.
                    answers = answers and run_and_wait(loop, batch, _LOOP_TIMEOUT)
                    if not answers:
                        for close in batch:
                            close()
        self._export()

    def _export(self) -> None:
        with self._export_lock:
            collected: list[object] = []
            for participant in self._participants():
                # The servers' and the clients' side share a meter provider: one collection.
                provider = participant.meter_provider
                participant.export(collect=provider not in collected)
                collected.append(provider)

    def _run_with_timeout(self, work: Callable[[], None]) -> None:
        """Runs ``work``, and goes on without it once the flush budget is used up."""
        worker = threading.Thread(target=work, name="otel-sse-flush", daemon=True)
        started = time.monotonic()
        try:
            worker.start()
        except RuntimeError:  # the interpreter starts no more threads
            work()
            return
        worker.join(self._flush_budget)
        if worker.is_alive():
            if self._flush_budget:
                _log.warning(
                    "otel_sse: the exporters did not take everything within %d ms",
                    EXPORT_TIMEOUT_MILLIS,
                )
            self._flush_budget = max(0.0, self._flush_budget - (time.monotonic() - started))
