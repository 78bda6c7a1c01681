"""One event stream, served or read: its counters, its end and its one close.

The end fixes the counts and the duration: the end of the body, a disconnect that the application
does not notice, or the return of the application's call. The close decides on the reason and
records it. It is the return of the call, or the start of a background task: an exception may follow
the end of the body, and is the reason then.

Which thread writes what:

======================================  ==========================================================
field                                   written by
======================================  ==========================================================
``io``, parser, segment, ``due``        the thread that sends or reads the stream, alone: no lock
``last_message``                        the same
numbers in ``counts``                   the same; where streams share them, the thread of their loop
                                        (but see ``telemetry.series`` for finalizers)
``stall_state``                         a collection (to PENDING, SUPPRESSED), then the loop
``disconnected``                        on the server: the loop; at the close: the closing thread
``due`` = CLOSED, ``_ended``            the thread that ends it
membership of the registry, totals      the thread that ends or closes it, under its lock
======================================  ==========================================================

A collection reads all of them on a reader's thread. It may see a message in one counter and not
yet in another; the next collection sees both.

What a message takes is in ``record_chunk``. Its first branch, the fast path, holds for one message
that matches the parser's template, while nothing else is to be done: no segment or stall is due,
the wait is neither slow nor the longest so far, messages are not log events, the type has been
counted before, and the sampler skips the message. Whatever is rarer is reached by one comparison
with ``due`` or ``_wait_threshold``.
"""

from __future__ import annotations

import sys
from functools import partial
from time import perf_counter
from typing import Any, ClassVar, Final

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from otel_sse import semconv
from otel_sse.process import gc_safety
from otel_sse.process.event_loops import running_loop
from otel_sse.stream.close_reason import is_error, root_cause
from otel_sse.stream.info import ClientStreamInfo, ServerStreamInfo
from otel_sse.stream.stalls import CLOSED, Stalls
from otel_sse.telemetry.segment import RecordedMessage
from otel_sse.telemetry.stall_state import StallState
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.opaque import OPAQUE_BODY, OpaqueBody
from otel_sse.wire.parser import EventStreamParser

Chunk = bytes | bytearray | memoryview

_NO_INDEX: Final = sys.maxsize
# Seconds after the end of a stream whose application goes on, after which a collection closes it:
# what the application does then is not the stream's.
CLOSE_TIMEOUT: Final = 10.0


def _call(work: gc_safety.Callback) -> None:
    work()


class Stream(Stalls):
    """Counts from its start to its one close. A role adds how it starts, and why it closes.

    Attributes:
        time_to_first_message: seconds from the request's start; None before it.

    """

    __slots__ = (
        "__weakref__",
        "_completed",
        "_ended",
        "time_to_first_message",
    )

    # What only one role has.
    dropped: dict[str, int] | None = None
    backlog: dict[str, int] | None = None
    # A wait below it is neither slow nor the longest so far; a reader's chunks do not wait.
    _first_wait_threshold: ClassVar[float] = float("inf")
    # Whether the thread of its event loop alone counts.
    _shares_counts: ClassVar[bool] = True

    _parser: EventStreamParser | OpaqueBody

    def __init__(
        self,
        telemetry: Telemetry,
        info: ServerStreamInfo | ClientStreamInfo,
        started: float,
        parent: Context,
        kind: SpanKind,
    ) -> None:
        super().__init__(telemetry, info, started)
        self.last_message = started
        self.time_to_first_message: float | None = None
        self.loop = running_loop()
        self._parser = (
            OPAQUE_BODY
            if info.encoded
            else EventStreamParser(
                capture_id=telemetry.config.capture_event_id,
                final_events=telemetry.config.final_events,
            )
        )
        self.io = 0
        self._wait_threshold = self._first_wait_threshold
        # When it ended, and whether the end of the body had passed.
        self._ended: float | None = None
        self._completed = False
        self.stall_state = StallState.ACTIVE
        self.disconnected = False
        self.start_first_segment(parent, kind)
        self.due = self.segment_due

    def _register(self) -> None:
        """The last step of opening: from now on collections see the stream."""
        self._telemetry.streams.register(self, shares_counts=self._shares_counts)
        self._telemetry.events.opened(self)

    @property
    def comments(self) -> int:
        return self._parser.comments

    def record_chunk(
        self, chunk: Chunk, began: float, ended: float, error: BaseException | None = None
    ) -> None:
        """``chunk`` passed between two monotonic times, in seconds, or ``error`` cancelled it when
        the server had it. It counts although the peer may have disconnected after the first.
        """
        telemetry = self._telemetry
        try:
            wait = ended - began
            counts, series = self.counts, self.series
            if (
                began < self.due
                and wait < self._wait_threshold
                and not telemetry.emits_each_message
                and (kind := self._parser.match_template(chunk)) is not None
                and (index := telemetry.type_indexes.get(kind, _NO_INDEX)) < len(counts.messages)
                and series.skip(began)
            ):
                counts.messages[index] += 1
                counts.wait_time += wait
                size = len(chunk)
                self.io += size
                # Two tasks may send: what began first may end last.
                if began > self.last_message:
                    self.last_message = began
                if self._segment.append(began, wait, size, index):
                    self._rotate_full(began, error)
                return
            if self.due == CLOSED:
                return
            # A clean-up may send while this thread holds a lock of the SDK. It is counted at once.
            freed = gc_safety.in_finalizer(error)
            call_sdk = gc_safety.defer if freed else _call
            parser = self._parser
            comments = parser.comments
            messages = parser.feed(chunk)
            counts.comments += parser.comments - comments
            self.io += len(chunk) if type(chunk) is bytes else memoryview(chunk).nbytes
            counts.wait_time += wait
            slow = wait >= self._wait_threshold and self._on_long_wait(wait)
            if began >= self.due and not freed:
                self._check_due(began, bool(messages))
            for kind, size, event_id in messages:
                index = telemetry.type_indexes.get(kind, _NO_INDEX)
                if index == _NO_INDEX:
                    index = telemetry.event_types.index_of(kind)
                counts.count_message(index)
                sequence = self.sequence
                if not series.skip(began):
                    series.record_sample(began)
                    gap = max(began - self.last_message, 0.0) if sequence else None
                    call_sdk(partial(telemetry.record_message, self, size, gap, wait))
                if not sequence:
                    self.time_to_first_message = first = ended - self.started
                    call_sdk(partial(telemetry.record, semconv.FIRST_MESSAGE, self, first))
                if began > self.last_message:
                    self.last_message = began
                segment = self._segment
                full = segment.append(began, wait, size, index)
                if slow:
                    segment.append_slow(began, wait, size, index)
                if event_id is not None:
                    segment.set_event_id(event_id)
                if telemetry.emits_each_message:
                    number = segment.count - 1
                    message = RecordedMessage(number, began, wait, size, index, event_id)
                    call_sdk(partial(telemetry.spans.emit_message, self, segment, message))
                if full:
                    self._rotate_full(began, error)
            if messages and parser.final:
                self._on_final_message()
        except Exception:
            # What is no bytes is the application's error, which the server may report or pass over.
            if isinstance(chunk, Chunk):
                telemetry.failures.log_failure_once("a message")

    def _rotate_full(self, now: float, error: BaseException | None) -> None:
        # In a finalizer it stays full, until the next message.
        if not gc_safety.in_finalizer(error):
            self.rotate_segment(now)

    def idle(self, now: float) -> float:
        # The messages of an encoded body are unknown, so it is never idle.
        if self._parser is OPAQUE_BODY:
            return 0.0
        # Read once: its own thread may go on, and past ``now``, meanwhile.
        return max(now - self.last_message, 0.0)

    def _on_long_wait(self, wait: float) -> bool:
        """Called for a wait of at least ``_wait_threshold``; returns whether it is a slow one."""
        return False

    def _on_final_message(self) -> None:
        """The last message so far is one by which its protocol ends a stream; a reader's matter."""

    def _end(self, completed: bool) -> bool:
        """Fixes the counts and the duration; any call after the first does nothing."""
        if not self._telemetry.streams.end(self):
            return False
        # What a finalizer has deferred ended when that ran.
        self._ended = gc_safety.deferred_at() or perf_counter()
        self._completed = completed
        self.due = CLOSED
        self._parser.forget_chunk()
        return True

    def is_overdue(self, now: float) -> bool:
        """Whether it ended long ago, without a close."""
        return self._ended is not None and now - self._ended >= CLOSE_TIMEOUT

    def close(
        self, error: BaseException | None = None, *, completed: bool = False, cut: bool = False
    ) -> None:
        """Decides on the close reason and records it; any call after the first does nothing.

        Args:
            error: what left the application, a cancellation too.
            completed: the end of the body has passed.
            cut: the server or the process ends the stream.

        """
        if gc_safety.in_finalizer(error):
            # Called for a frame that is freed: locks may be held.
            gc_safety.defer(partial(self.close, error, completed=completed, cut=cut))
            return
        telemetry = self._telemetry
        try:
            self._end(completed)
            if self._ended is None or not telemetry.streams.close(self):
                return
            try:
                reason, error = self._classify(error, cut)
                cause = root_cause(error) if error is not None and is_error(error) else None
            except Exception:
                # An exception of the application's may raise wherever it is looked at.
                telemetry.failures.log_failure_once("a close reason")
                cause = error if isinstance(error, Exception) else None
                reason = semconv.UNKNOWN if cause is None else semconv.ERROR
            self.disconnected = True
            totals = self._totals(self._ended)
            totals[semconv.CLOSE_REASON] = reason
            if cause is not None and reason in (semconv.ERROR, semconv.TIMEOUT):
                totals[semconv.ERROR_TYPE] = telemetry.error_types.name_of(cause)
            elif self.status >= 500:
                totals[semconv.ERROR_TYPE] = str(self.status)
            telemetry.record_close(self, totals)
            final = {semconv.SEGMENT_FINAL: True, **totals}
            telemetry.spans.end(self, self._segment, self.unix_time(self._ended), final)
        except Exception:
            telemetry.failures.log_failure_once("a close")
        finally:
            self.due = CLOSED
            self._release()

    def _classify(self, error: BaseException | None, cut: bool) -> tuple[str, BaseException | None]:
        """The close reason of this role, and the error that counts."""
        raise NotImplementedError

    def _totals(self, now: float) -> dict[str, Any]:
        """The attributes of the close."""
        totals: dict[str, Any] = {
            semconv.TOTAL_MESSAGES: self.sequence,
            semconv.TOTAL_COMMENTS: self.comments,
            semconv.TOTAL_IO: self.io,
            semconv.TOTAL_DURATION: now - self.started,
        }
        if self.time_to_first_message is not None:
            totals[semconv.TOTAL_FIRST_MESSAGE] = self.time_to_first_message
        return totals

    def _release(self) -> None:
        """Lets go of what belongs to the request: the application may keep the stream's context
        for as long as it likes.
        """
