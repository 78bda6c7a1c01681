"""One event stream: its counters, its segments, and its one ending.

A connection is written by its own event loop alone, so its counters need no lock. A collection
reads them from another thread. Everything a message costs is in ``sent``; whatever happens more
rarely is reached from there by one comparison with ``due`` or ``_mark``.
"""

from __future__ import annotations

import random
import secrets
import sys
from collections.abc import Sequence
from functools import partial
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanKind, set_span_in_context

from otel_sse import garbage, semconv, witnesses
from otel_sse.collection import ASKED, LIVELY, QUIET, TOLD
from otel_sse.loops import running_loop
from otel_sse.opening import Call, Opening
from otel_sse.scanner import Scanner
from otel_sse.segment import Segment, Told
from otel_sse.telemetry import Telemetry

if TYPE_CHECKING:
    from otel_sse.current import Request
    from otel_sse.series import Series

_NEVER: Final = float("inf")
_NO_INDEX: Final = sys.maxsize
_AT_ONCE: Final = float("-inf")


class Connection:
    """Built when the response has started; told of sends and witnesses; ended once."""

    __slots__ = (
        "__weakref__ _agent _failure _first _mark _max_wait _origin _parent _path _protocol "
        "_reason _request _scanner _segment _started_unix _telemetry client dropped due first "
        "gone id io last loop messages resumed segment_due send_time series stall stalls "
        "started status transport"
    ).split()

    # Messages that came before they were sent; only a reader can know.
    skewed = 0

    def __init__(self, telemetry: Telemetry, opening: Opening | Call, request: Request) -> None:
        config = telemetry.config
        self._telemetry = telemetry
        self._request: Request | None = request
        self._started_unix = time_ns() - int((perf_counter() - request.started) * 1e9)
        # Monotonic seconds: the request's start, the last message's (or the start's), and how
        # long the first message took.
        self.started = self.last = request.started
        self.first: float | None = None
        self.series: Series = opening.series(telemetry)
        self.client = semconv.text(opening.client) or None  # it is empty behind a Unix socket
        self.status = opening.status
        self.resumed = opening.resumed
        self.transport = opening.transport
        self.loop = running_loop()
        self._scanner = Scanner(capture_id=config.capture_event_id)
        # Messages so far, by the index of their event type.
        self.messages: list[int] = []
        self.dropped: dict[str, int] | None = None
        self.io = 0
        self.send_time = 0.0
        self.stalls = 0
        self._max_wait = 0.0
        # A wait below it is neither slow nor the longest so far.
        self._mark = 0.0
        # How far the telling of a stall has got; see collection.
        self.stall = LIVELY
        # The peer has left, or the connection has ended: nothing counts any more.
        self.gone = request.gone
        # The send that found the peer gone, by what it raised.
        self._failure: OSError | None = None
        # The ending's reason, as the application has said it.
        self._reason = request.reason
        # Random, 16 hexadecimal digits.
        self.id = secrets.token_hex(8)
        self._path = semconv.text(opening.known_path)
        self._agent = opening.user_agent
        self._protocol = opening.protocol
        # The span above segment 0; segment 0; the first of this trace.
        self._parent = self._begin(opening, request)
        self._origin = self._first = self._segment.span.get_span_context()
        recording = self._segment.span.is_recording()
        # When the segment has lasted long enough, and when anything at all has to be looked at.
        self.segment_due = self._next_due(request.started) if recording else _NEVER
        self.due = self.segment_due
        request.connection = self
        request.span = self._segment.span
        for reason, n in (request.dropped or {}).items():
            self.say_dropped(n, reason)
        telemetry.opened(self)

    @property
    def sequence(self) -> int:
        """Messages so far."""
        segment = self._segment
        return segment.before + segment.count

    @property
    def comments(self) -> int:
        return self._scanner.comments

    @property
    def attributes(self) -> dict[str, Any]:
        """Those of all its spans and events; made anew, because a dictionary weighs most."""
        found = {
            **self.series.attributes,
            semconv.CONNECTION_ID: self.id,
            semconv.RESUMED: self.resumed,
            semconv.HTTP_STATUS: self.status,
            semconv.PROTOCOL_VERSION: self._protocol,
            semconv.URL_PATH: self._path,
            semconv.CLIENT_ADDRESS: self.client,
            semconv.USER_AGENT: semconv.text(self._agent),
        }
        return {name: value for name, value in found.items() if value is not None}

    def context(self, span: Span | None = None) -> Context:
        """The context of a record of this connection: of ``span``, or of its current segment."""
        return set_span_in_context(span or self._segment.span)

    def idle(self, now: float) -> float:
        """Seconds without a message, at the monotonic time ``now``."""
        return max(0.0, now - self.last)

    def unix(self, at: float) -> int:
        """Monotonic seconds as Unix nanoseconds."""
        return self._started_unix + int((at - self.started) * 1e9)

    # --- what goes out ---------------------------------------------------------------------

    def sent(self, chunk: bytes | bytearray | memoryview, began: float, ended: float) -> None:
        """``chunk`` was handed to the server between two monotonic times, in seconds; the first was
        before the peer left.
        """
        telemetry = self._telemetry
        try:
            wait = ended - began
            series = self.series
            if (
                began < self.due
                and wait < self._mark
                and series.left
                and began < series.until
                and not telemetry.tells_each
                and (kind := self._scanner.whole(chunk)) is not None
                and (index := telemetry.type_index.get(kind, _NO_INDEX)) < len(self.messages)
            ):
                # One message like the last ones, of which nothing more is told.
                series.left -= 1
                self.messages[index] += 1
                size = len(chunk)
                self.io += size
                self.send_time += wait
                self.last = began
                if self._segment.keep(began, wait, size, index):
                    self._roll(began)
                return
            if self._request is None:
                return
            messages = self._scanner.feed(chunk)
            self.io += len(chunk) if type(chunk) is bytes else memoryview(chunk).nbytes
            self.send_time += wait
            slow = wait >= self._mark and self._waited(wait)
            if began >= self.due:
                self._tend(began, bool(messages))
            for kind, size, event_id in messages:
                index = telemetry.type_index.get(kind, _NO_INDEX)
                if index == _NO_INDEX:
                    index = telemetry.event_type(kind)
                try:
                    self.messages[index] += 1
                except IndexError:
                    self.messages += [0] * (index - len(self.messages)) + [1]
                sequence = self.sequence
                if began < series.until and series.left:
                    series.left -= 1
                else:
                    series.take(began)
                    gap = began - self.last if sequence else None
                    telemetry.sampled(self, size, gap, wait)
                if not sequence:
                    self.first = ended - self.started
                    telemetry.record(semconv.FIRST_MESSAGE, self, self.first)
                self.last = began
                segment = self._segment
                full = segment.keep(began, wait, size, index)
                if slow:
                    segment.keep_slow(began, wait, size, index)
                if event_id is not None:
                    segment.keep_id(event_id)
                if telemetry.tells_each:
                    told = Told(segment.count - 1, began, wait, size, index, event_id)
                    telemetry.message(self, segment, told)
                if full:
                    self._roll(began)
        except Exception:
            telemetry.failed("a message")

    def interrupted(
        self, chunk: bytes | bytearray | memoryview | None, began: float, error: BaseException
    ) -> None:
        """A send of ``chunk`` (None: after the peer had left) raised ``error``."""
        if not isinstance(error, Exception):
            # Cancelled while it waited: the server has the bytes.
            if chunk is not None:
                self.sent(chunk, began, perf_counter())
        elif isinstance(error, OSError) and (error.errno or not isinstance(error, TimeoutError)):
            self._failure = error
            self.gone = True

    def left(self) -> bool:
        """Whether the peer has left, as far as it is known or the server's transport shows it."""
        if not self.gone and self.transport is not None:
            try:
                self.gone = self.transport.is_closing()
            except Exception:
                self._telemetry.failed("a transport")
        return self.gone

    def _waited(self, wait: float) -> bool:
        """Notes a long wait; whether it is a slow send."""
        threshold = self._telemetry.config.slow_send_seconds
        if wait > self._max_wait:
            self._max_wait = wait
            self._mark = min(wait, threshold)
        if wait < threshold:
            return False
        self.stalls += 1
        return True

    def say_reason(self, reason: str) -> None:
        self._reason = reason

    def say_dropped(self, n: int, reason: str) -> None:
        if not self.gone:
            self.dropped = dropped = self.dropped if self.dropped is not None else {}
            reason = self._telemetry.drop_reason(semconv.text(reason))
            dropped[reason] = dropped.get(reason, 0) + n

    # --- segments and stalls ---------------------------------------------------------------

    def tend(self) -> None:
        """Tells what a collection found due; runs on the connection's own loop."""
        if self.gone:
            return
        try:
            now = perf_counter()
            if self.stall in (ASKED, QUIET):
                idle = self.idle(now)
                if idle < self._telemetry.config.stall_seconds:
                    self.stall = LIVELY
                elif self.stall == ASKED:
                    self._telemetry.stalled(self, idle)
                    self.stall = TOLD
            self._tend(now, spoke=False)
        except Exception:
            self._telemetry.failed("a segment")

    def _tend(self, now: float, spoke: bool) -> None:
        if spoke and self.stall:
            if self.stall == TOLD:
                self._telemetry.recovered(self, now - self.last)
            self.stall = LIVELY
        if now >= self.segment_due:
            self._roll(now)
        # A stalled connection waits for its next message.
        self.due = _AT_ONCE if self.stall else self.segment_due

    def _begin(self, opening: Opening | Call, request: Request) -> trace.SpanContext:
        """Starts segment 0; returns the span above it: that of a server's stream changes later."""
        try:
            parent, kind = opening.parent(request)
        except Exception as error:
            # It must not hide the stream. No stranger's header is worth a log.
            if not isinstance(error, UnicodeError):
                self._telemetry.failed("a remote parent")
            parent, kind = request.ambient, SpanKind.SERVER
        self._start(0, parent, kind, self._started_unix)
        enclosing = request.enclosing
        if enclosing.is_recording() and getattr(enclosing, "kind", None) is SpanKind.SERVER:
            enclosing.set_attribute(semconv.CONNECTION_ID, self.id)
        return trace.get_current_span(parent).get_span_context()

    def _home(self) -> Context:
        """Where a segment goes that stays in this trace: beside its first, or below that."""
        beside = self._parent.is_valid and self._first is self._origin
        return set_span_in_context(NonRecordingSpan(self._parent if beside else self._first))

    def _roll(self, now: float) -> None:
        """Ends the segment and starts the next: full, in the same trace; old, in a new one."""
        segment = self._segment
        at = self.unix(now)
        self._telemetry.end_span(self, segment, at)
        links = [Link(segment.span.get_span_context())]
        if segment.index:
            links.append(Link(self._origin))
        index = segment.index + 1
        if now < self.segment_due:
            span = self._start(index, self._home(), SpanKind.INTERNAL, at, links)
        else:
            span = self._start(index, Context(), SpanKind.INTERNAL, at, links)
            self._first = span.get_span_context()
            if not span.is_recording():
                self._first = self._origin
                span = self._start(index, self._home(), SpanKind.INTERNAL, at, links)
            self.segment_due = self.due = self._next_due(now)
        if self._request is not None:
            self._request.span = span

    def _start(
        self, index: int, context: Context, kind: SpanKind, at: int, links: Sequence[Link] = ()
    ) -> Span:
        telemetry = self._telemetry
        before = self.sequence if index else 0
        attributes = {**self.attributes, semconv.SEGMENT_INDEX: index}
        span = telemetry.start_span(self.series, context, kind, at, attributes, links)
        self._segment = Segment(
            span,
            index,
            before,
            keeps=telemetry.keeps,
            every=telemetry.config.message_event_detail == "all",
        )
        return span

    def _next_due(self, now: float) -> float:
        return now + self._telemetry.config.segment_seconds * random.uniform(0.9, 1.1)

    # --- the ending ------------------------------------------------------------------------

    def end(
        self, error: BaseException | None = None, *, completed: bool = False, cut: bool = False
    ) -> None:
        """Ends the connection; any call after the first does nothing.

        Args:
            error: what left the application, a cancellation too.
            completed: the application has written the end of the body to a peer that was there.
            cut: the server or the process ends it.

        """
        telemetry = self._telemetry
        if garbage.is_collected():
            # It is its frame that is freed.
            garbage.later(partial(self.end, error, completed=completed, cut=cut))
            return
        try:
            if not telemetry.leave(self):
                return
            if error is None and not (completed or cut or telemetry.stopping):
                self.left()
            error, self.gone = witnesses.weigh(error, self.gone, self._failure)
            reason = self._verdict(error, completed, cut or telemetry.stopping)
            self.gone = True
            now = perf_counter()
            totals: dict[str, Any] = {
                semconv.CLOSE_REASON: reason,
                semconv.TOTAL_MESSAGES: self.sequence,
                semconv.TOTAL_COMMENTS: self.comments,
                semconv.TOTAL_IO: self.io,
                semconv.TOTAL_DURATION: now - self.started,
            }
            if telemetry.side is semconv.SERVER:
                totals[semconv.TOTAL_MAX_SEND] = self._max_wait
            if self.first is not None:
                totals[semconv.TOTAL_FIRST_MESSAGE] = self.first
            if error is not None and reason in (semconv.ERROR, semconv.TIMEOUT):
                totals[semconv.ERROR_TYPE] = telemetry.error_type(witnesses.innermost(error))
            elif self.status >= 500:
                totals[semconv.ERROR_TYPE] = str(self.status)
            telemetry.closed(self, totals)
            final = {semconv.SEGMENT_FINAL: True, **totals}
            telemetry.end_span(self, self._segment, self.unix(now), final)
        except Exception:
            telemetry.failed("an ending")
        finally:
            # What runs on after the stream is the enclosing span's again. The application may
            # keep its context, and that the request, for as long as it likes.
            request, self._request, self.transport = self._request, None, None
            self.due = _AT_ONCE
            # Its traceback leads back here.
            self._failure = None
            if request is not None and request.enclosing.get_span_context().is_valid:
                request.span = request.enclosing

    def _verdict(self, error: BaseException | None, completed: bool, cut: bool) -> str:
        return witnesses.verdict(
            error, said=self._reason, completed=completed, cut=cut, gone=self.gone
        )
