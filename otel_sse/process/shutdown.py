"""The end of the process: live streams close as ``server_shutdown``, and everything is exported.

A process ends in several ways, and a server announces few of them. So this listens in several
places, from the first stream on, and the first one that comes is enough:

::

    a server's signal handler ──► on_server_signal ──► thread: _drain
    hypercorn's own stop ───────► on_server_stop ────►        │ lets streams end by themselves; half
                                                              │ of the time before the kill, at most
                                                              │ 5 s, is reserved for what follows
    uvicorn, before its signal ─► finish() ──► _finish, and then the default action
    SIGTERM's default action ───► on_default_signal ──► thread: _finish, then the default action
    the lifespan's end ─────────► export()                    │
    atexit, multiprocessing ────► _at_exit ─────────────────► _finish
                                                              │
                                  each loop closes its streams, 256 at a time, 1 s for a loop
                                  that does not answer; then metrics, spans and logs are exported

A process that never had a stream has none of this: its signals, its exit hooks and its exporters
are what they were.

Exporters that answer get the time that they need. Those that do not, delay the end of the process
by ``UNANSWERED_SECONDS`` in all, not at each of these places. What the SDK's own exit hooks wait
for after that is not in this module's hands.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, Final, Protocol

from otel_sse.config import Config
from otel_sse.process.event_loops import (
    EventLoop,
    LoopTask,
    batched,
    group_by_loop,
    run_and_wait,
    run_in_thread,
    running_loop,
)
from otel_sse.process.gc_safety import run_deferred, start_raw_thread
from otel_sse.process.server_facts import kill_timeout
from otel_sse.process.server_stops import is_end_observed, observe_server
from otel_sse.process.signals import StopSignals, call_in_main_thread, in_main_thread

_log = logging.getLogger("otel_sse")

# Seconds that exporters which do not answer may delay the end of the process, in all.
UNANSWERED_SECONDS: Final = 5.0
# A flush that takes no longer was answered, also on a busy machine. The SDK does not show which
# ones have failed; they end in an instant, or are retried for longer than this.
_ANSWER_SECONDS: Final = 2.0
# What closing streams may take, in seconds, where no time for exporters remains.
_CLOSE_SECONDS: Final = 0.5
# The part of the time before the kill that is reserved for closing and exporting what is still
# live, and its maximum in seconds.
_RESERVED_PART: Final = 0.5
_MAX_RESERVED: Final = 5.0
# Streams that an event loop closes in one call: as many as the throttle emits between two flushes.
# And the seconds that it has for that.
_BATCH_SIZE: Final = 256
_LOOP_TIMEOUT: Final = 1.0
_POLL: Final = 0.05


class Participant(Protocol):
    """Something whose streams close and whose telemetry is exported at the end of the process."""

    # The process is about to end: a stream that does not end by itself is cut.
    stopping: bool
    # Flushes that have ended: while it grows, the exporters answer.
    flushes: int

    @property
    def shutdown_seconds(self) -> float:
        """From the stop signal until the process is killed."""

    @property
    def meter_provider(self) -> object: ...

    def close_tasks(self) -> Sequence[LoopTask]:
        """For each live stream what closes it, and the loop that has to."""

    def export(self, *, collect: bool) -> None:
        """Exports everything; ``collect``: the metrics too."""

    def discard_pending(self) -> None:
        """Drops what waits for room in the SDK's queues."""


class ShutdownHandler:
    """Observes every way in which the process may end, for all ``participants``."""

    def __init__(self, participants: Callable[[], Sequence[Participant]]) -> None:
        self._participants = participants
        self._signals = StopSignals(self._on_default_signal, self._on_server_signal)
        self._installed = False
        self._start_anew()

    def _start_anew(self) -> None:
        # The process that is observed: one that has had a stream, or whose server has asked for it.
        self._observed_pid = 0
        self._main_thread_asked = False
        # Seconds that exporters which do not answer may yet delay the end of the process.
        self._unanswered_budget = UNANSWERED_SECONDS
        # What drains: None is the process, anything else the event loop of a server.
        self._draining: set[EventLoop | None] = set()
        # The interpreter is about to end, and the SDK after us.
        self._exiting = threading.Event()
        # Held for an export, so that none is under way when the SDK ends.
        self._export_lock = threading.Lock()
        # Batches of streams that were closed.
        self._closed_batches = 0
        # SIGTERM's default action is pending; and may happen, since everything is exported.
        self._pending_death: threading.Event | None = None
        self._may_die = False

    def install(self) -> None:
        """From now on, ``prepare`` prepares."""
        self._installed = True

    def uninstall(self) -> None:
        if self._installed:
            self._installed = False
            self._observed_pid = 0
            atexit.unregister(self._at_exit)
            self._signals.restore()

    def prepare(self, *, serves: bool = True) -> None:
        """Observes the end of this process from now on; called when a stream opens.

        The handlers of signals are wrapped that a server, or with ``serves`` false a client's
        application, has installed since the last call. A server in another thread than the main
        one has that done by the main thread; for a client there nothing is.
        """
        if not self._installed:
            return
        if self._observed_pid != os.getpid():
            self._observed_pid = os.getpid()
            # The SDK is set up by now: the hook that is registered last runs first.
            atexit.unregister(self._at_exit)
            atexit.register(self._at_exit)
            multiprocessing = _multiprocessing()
            if multiprocessing is not None and multiprocessing.parent_process() is not None:
                # A child of multiprocessing runs no exit hooks but these.
                multiprocessing.util.Finalize(None, self._at_exit, exitpriority=100)
        if in_main_thread():
            self._observe_signals(serves)
        elif serves and not self._main_thread_asked:
            # A server in another thread: signals are set in the main thread alone.
            self._main_thread_asked = True
            call_in_main_thread(partial(self._observe_signals, serves))

    def _observe_signals(self, serves: bool) -> None:
        if self._pending_death is None:
            self._signals.replace_default()
        self._signals.wrap_handlers(interrupts=serves)

    def install_in_main_thread(self) -> None:
        """Observes the signals now, for a server whose streams start in threads that may not.

        To be called in the server's main loop, once its own handlers are installed. In another
        thread than the main one it does nothing.
        """
        if in_main_thread():
            self.prepare()

    def observe_server(self, channel: Any) -> None:
        """Observes the stop of the server behind ``channel``, an ASGI ``send``; see
        ``server_stops``.
        """
        if self._installed:
            observe_server(channel, on_stop=self._on_server_stop, before_signal=self.finish)

    def reset(self) -> None:
        """Starts anew in a forked child, which has had no stream yet."""
        atexit.unregister(self._at_exit)
        self._signals.restore()
        self._start_anew()

    async def export(self) -> None:
        """Exports everything while the event loop goes on, if there has been a stream.

        Not where uvicorn's end does so: its tasks, which are cancelled by now, would get the time
        to log their end, which they do not have without us.
        """
        if self._observed_pid == os.getpid() and not is_end_observed():
            await run_in_thread(partial(self._run_bounded, self._export))

    def finish(self) -> None:
        """Closes what is live and exports everything, before a signal ends the process. The event
        loop stands still meanwhile, as it would from now on.
        """
        if self._observed_pid == os.getpid():
            loop = running_loop()
            for participant in self._participants():
                participant.stopping = True
                for other, close in participant.close_tasks():
                    if other == loop:
                        close()
            self._run_bounded(self._finish)

    # --- the ways to end -------------------------------------------------------------------

    def _at_exit(self) -> None:
        if sys.is_finalizing():
            # In a subinterpreter that ends with the process: no thread runs any more, neither ours
            # nor the exporters'.
            return
        self._exiting.set()
        self._run_bounded(self._finish)
        if self._pending_death is not None:
            self._pending_death.wait(UNANSWERED_SECONDS)

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
        multiprocessing = _multiprocessing()
        daemon = multiprocessing is not None and multiprocessing.current_process().daemon
        if self._may_die or not daemon:
            signal.signal(signum, signal.SIG_DFL)
        if self._may_die:
            os.kill(os.getpid(), signum)

    def _finish_and_die(self, signum: int) -> None:
        self._run_bounded(self._finish)
        self._may_die = True
        os.kill(os.getpid(), signum)

    def _on_server_signal(self, handler: Any, signum: int, frame: FrameType | None) -> None:
        """The server is asked to stop: from now on it is the server that cuts a stream."""
        for participant in self._participants():
            participant.stopping = True
        self._start_to_drain(None, kill_timeout(handler, frame, self._shutdown_seconds()))
        handler(signum, frame)

    def _on_server_stop(self, loop: EventLoop | None) -> None:
        """A server of ``loop`` stops, with a signal that this process did not get or without."""
        self._start_to_drain(loop, self._shutdown_seconds())

    def _shutdown_seconds(self) -> float:
        return min(
            (each.shutdown_seconds for each in self._participants()),
            default=Config.shutdown_seconds,
        )

    def _start_to_drain(self, loop: EventLoop | None, limit: float) -> None:
        if loop not in self._draining:
            self._draining.add(loop)
            start_raw_thread(self._drain, loop, limit)

    def _drain(self, loop: EventLoop | None, limit: float) -> None:
        """Lets streams end by themselves, but closes them while there is time to export."""
        wait = limit - min(_RESERVED_PART * limit, _MAX_RESERVED)
        if self._exiting.wait(wait if wait < threading.TIMEOUT_MAX else None):
            return
        self._finish(loop)
        # A server that goes on was not stopped by that signal.
        if loop is None:
            for participant in self._participants():
                participant.stopping = False
        self._draining.discard(loop)

    # --- what is done then -----------------------------------------------------------------

    def _finish(self, only: EventLoop | None = None) -> None:
        """Closes what is live, ``only`` of that event loop if one is given, and exports all."""
        # A reader's last stream may have been given up in this moment.
        run_deferred()
        for participant in self._participants():
            if only is None:
                participant.stopping = True
            for loop, closes in group_by_loop(participant.close_tasks()):
                if only in (None, loop):
                    self._close(loop, closes)
        self._export()

    def _close(self, loop: EventLoop | None, closes: Sequence[Callable[[], None]]) -> None:
        answers = True
        for batch in batched(closes, _BATCH_SIZE):
            # A loop that did not answer once is blocked, and time is short.
            answers = answers and run_and_wait(loop, batch, _LOOP_TIMEOUT)
            if not answers:
                for close in batch:
                    close()
            self._closed_batches += 1

    def _export(self) -> None:
        if self._unanswered_budget <= 0:
            # Another export would only keep the SDK waiting for its end.
            return
        with self._export_lock:
            collected: list[object] = []
            for participant in self._participants():
                # The servers' and the clients' side share a meter provider: one collection.
                provider = participant.meter_provider
                participant.export(collect=provider not in collected)
                collected.append(provider)

    def _run_bounded(self, work: Callable[[], None]) -> None:
        """Runs ``work``, and goes on without it once the exporters have used up the budget."""
        worker = threading.Thread(target=work, name="otel-sse-shutdown", daemon=True)
        try:
            worker.start()
        except RuntimeError:  # the interpreter starts no more threads
            work()
            return
        budget = max(self._unanswered_budget, _CLOSE_SECONDS)
        progress, since = self._progress(), time.monotonic()
        while worker.is_alive() and budget > 0:
            worker.join(_POLL)
            waited = time.monotonic() - since
            if (now := self._progress()) != progress or not worker.is_alive():
                if waited > _ANSWER_SECONDS:
                    budget -= waited
                progress, since = now, time.monotonic()
            elif waited >= budget:
                budget = 0.0
        if worker.is_alive():
            self._give_up()
        else:
            self._unanswered_budget = min(self._unanswered_budget, budget)

    def _progress(self) -> int:
        return self._closed_batches + sum(each.flushes for each in self._participants())

    def _give_up(self) -> None:
        if self._unanswered_budget > 0:
            self._unanswered_budget = 0.0
            _log.warning(
                "otel_sse: the exporters did not answer for %g s; what they have not taken is lost",
                UNANSWERED_SECONDS,
            )
        for participant in self._participants():
            participant.discard_pending()


def _multiprocessing() -> Any:
    """The module, where this process has it, as each child of it has. It is slow to import, for an
    event loop and for a signal handler.
    """
    return sys.modules.get("multiprocessing")
