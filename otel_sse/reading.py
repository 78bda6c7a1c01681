"""One event stream that is read: what a client's hook tells of it."""

from __future__ import annotations

from time import perf_counter, time_ns
from typing import Final

from otel_sse import lifecycle, semconv
from otel_sse.connection import TIMEOUTS, Connection
from otel_sse.current import Request
from otel_sse.mark import Mark, Marks
from otel_sse.opening import Call
from otel_sse.segment import Segment
from otel_sse.semconv import MAX_SENDERS
from otel_sse.telemetry import Telemetry

Errors = tuple[type[BaseException], ...]
_NEVER: Final = float("inf")


class Reading(Connection):
    """Told of every read, and of the one end.

    Args:
        telemetry: where it tells.
        call: what is known of it at the response's headers.
        started: when the request was made, monotonic seconds.
        breaks: what the library raises where the server or the network has cut the stream.
        timeouts: what it raises where a read took too long, beside Python's own.

    """

    __slots__ = (
        "_breaks",
        "_left",
        "_linked",
        "_mark_of_next",
        "_marks",
        "_senders",
        "_timeouts",
        "skewed",
    )

    def __init__(
        self, telemetry: Telemetry, call: Call, started: float, breaks: Errors, timeouts: Errors
    ) -> None:
        self._breaks = breaks
        self._timeouts = timeouts + TIMEOUTS
        self.skewed = 0
        # None once a first message has come without one.
        self._marks: Marks | None = Marks()
        self._mark_of_next: Mark | None = None
        # The senders that the span of a segment links to, and that segment.
        self._senders: set[int] = set()
        self._linked: Segment | None = None
        request = Request()
        request.started = started
        lifecycle.exit_.chain()
        super().__init__(telemetry, call, request)
        # No send waits here.
        self._mark = _NEVER
        # Up to when the time is accounted for: as waiting, or as the reader's own.
        self._left = perf_counter()
        telemetry.connected(self, self._left - started)

    def asked(self) -> None:
        """The reader begins to wait. What it did before is not the stream's silence."""
        self.last += perf_counter() - self._left

    def waited(self) -> None:
        """The wait is over."""
        self._left = perf_counter()

    def received(self, chunk: bytes) -> None:
        """The reader is given ``chunk``."""
        now = perf_counter()
        self.last += now - self._left
        self._left = now
        if self._marks is None:
            self.sent(chunk, now, now)
            return
        try:
            self._take(self._marks, chunk, now)
        except Exception:
            self._telemetry.failed("a mark")

    def _take(self, marks: Marks, chunk: bytes, now: float) -> None:
        """Tells ``chunk`` without its marks, and what they say of the messages behind them."""
        for piece in marks.feed(chunk):
            if isinstance(piece, Mark):
                self._mark_of_next = piece
                continue
            before = self.sequence
            self.sent(piece, now, now)
            if self.sequence > before and self._mark_of_next is not None:
                self._delivered(self._mark_of_next)
                self._mark_of_next = None
        if self.sequence and not marks.found:
            self._marks = None

    def _delivered(self, mark: Mark) -> None:
        took = time_ns() - mark.sent
        if took < 0:
            self.skewed += 1
        else:
            self._telemetry.delivered(self, took / 1e9)
        if self._linked is not self._segment:
            self._linked = self._segment
            self._senders = set()
        if mark.sender.span_id not in self._senders and len(self._senders) < MAX_SENDERS:
            self._senders.add(mark.sender.span_id)
            self._segment.span.add_link(mark.sender)

    def end(
        self, error: BaseException | None = None, *, completed: bool = False, cut: bool = False
    ) -> None:
        if self._marks is not None and (rest := self._marks.rest()):
            now = perf_counter()
            self.sent(rest, now, now)
        super().end(error, completed=completed, cut=cut)

    def _verdict(self, error: BaseException | None, completed: bool, cut: bool) -> str:
        if completed:
            return semconv.COMPLETED
        if isinstance(error, self._timeouts):
            return semconv.TIMEOUT
        if isinstance(error, self._breaks):
            return semconv.DISCONNECTED
        if isinstance(error, Exception):
            return semconv.ERROR
        # Left, closed, cancelled or forgotten by the reader.
        return semconv.CLIENT_CLOSE
