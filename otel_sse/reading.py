"""One event stream that is read: what a client's hook tells of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from threading import Lock
from time import perf_counter, time_ns
from typing import Any, Final

from otel_sse import garbage, lifecycle, semconv
from otel_sse.collection import LIVELY, TOLD
from otel_sse.connection import Connection
from otel_sse.current import Request
from otel_sse.mark import Mark, Marks
from otel_sse.opening import Call
from otel_sse.segment import Segment
from otel_sse.semconv import MAX_SENDERS
from otel_sse.telemetry import Telemetry
from otel_sse.witnesses import TIMEOUTS

Errors = tuple[type[BaseException], ...]
_NEVER: Final = float("inf")

# A client that tells its streams itself has this call in hand: those that it calls by are silent.
in_hand: Final[ContextVar[bool]] = ContextVar("otel_sse_in_hand", default=False)


@contextmanager
def taken(hold: bool) -> Iterator[None]:
    """A block in which a call is in hand; or, within such a one, those of somebody else are not."""
    token = in_hand.set(hold)
    try:
        yield
    finally:
        # A coroutine that is garbage is closed in another context.
        with suppress(ValueError):
            in_hand.reset(token)


class Reading(Connection):
    """Told of every read, and of the one end.

    Its silence is told while it waits alone, and by any thread: the reader may have no event loop,
    or be read in another thread than it was begun in. If the wait is over meanwhile, it is held up.

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
        "_lock",
        "_mark_of_next",
        "_marks",
        "_senders",
        "_tended",
        "_timeouts",
        "_waits",
        "skewed",
    )

    def __init__(
        self, telemetry: Telemetry, call: Call, started: float, breaks: Errors, timeouts: Errors
    ) -> None:
        self._lock = Lock()
        self._tended = self._waits = False
        # Up to when the time is accounted for: as waiting, or as the reader's own.
        self._left = perf_counter()
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
        lifecycle.exit_.chain(serves=False)
        super().__init__(telemetry, call, request)
        if self.loop is None:
            self.loop = _anywhere
        # No send waits here.
        self._mark = _NEVER
        telemetry.record(semconv.CONNECT_DURATION, self, self._left - started)

    def idle(self, now: float) -> float:
        return super().idle(now if self._waits else self._left)

    def asked(self) -> None:
        """The reader begins to wait. What it did before is not the stream's silence."""
        self.last += perf_counter() - self._left
        self._waits = True

    def waited(self) -> None:
        """The wait is over."""
        self._left = perf_counter()
        self._waits = False
        if self._tended and self._is_live():
            with self._lock:
                pass

    def received(self, chunk: bytes, waited: bool = False) -> None:
        """The reader is given ``chunk``, at the end of a wait or without one."""
        before = self._left
        self.waited()
        now = self._left
        if not waited:
            self.last += now - before
        if self._marks is None:
            self.sent(chunk, now, now)
        else:
            self._take(self._marks, chunk, now)

    def _take(self, marks: Marks, chunk: bytes, now: float) -> None:
        """Tells ``chunk`` without its marks, and what they say of the messages behind them."""
        try:
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
                self._unmark()
        except Exception:
            self._telemetry.failed("a mark")

    def _unmark(self) -> None:
        """There are no marks from here on: what was held back as one is none."""
        marks, self._marks = self._marks, None
        if marks is not None and (rest := marks.rest()):
            now = perf_counter()
            self.sent(rest, now, now)

    def _delivered(self, mark: Mark) -> None:
        took = time_ns() - mark.sent
        if took < 0:
            self.skewed += 1
        else:
            self._telemetry.record(semconv.DELIVERY_DURATION, self, took / 1e9)
        if self._linked is not self._segment:
            self._linked = self._segment
            self._senders = set()
        if mark.sender.span_id not in self._senders and len(self._senders) < MAX_SENDERS:
            self._senders.add(mark.sender.span_id)
            self._segment.span.add_link(mark.sender)

    @contextmanager
    def to_the_end(self) -> Iterator[None]:
        """A block that reads until there is no more, or something is raised."""
        self.asked()
        try:
            yield
        except BaseException as error:
            self.end(error)
            raise
        self.end(completed=True)

    def tend(self) -> None:
        with self._lock:
            # First this, then a look at the other: the reader does it the other way round.
            self._tended = True
            try:
                if self._waits:
                    super().tend()
                elif self.stall != TOLD:
                    # A later collection finds it again.
                    self.stall = LIVELY
            finally:
                self._tended = False

    def end(
        self, error: BaseException | None = None, *, completed: bool = False, cut: bool = False
    ) -> None:
        if garbage.is_collected():
            garbage.later(partial(self.end, error, completed=completed, cut=cut))
            return
        if not self._is_live():
            return
        with self._lock:
            self._unmark()
            super().end(error, completed=completed, cut=cut)

    def _is_live(self) -> bool:
        """Not in a forked child: it has no thread that would let go of the lock."""
        return self in self._telemetry.live

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


def read(
    telemetry: Telemetry,
    held: Any,
    call: Call,
    scheme: str,
    started: float,
    breaks: Errors,
    timeouts: Errors,
) -> Reading | None:
    """The reading of a response, which ends with ``held``: whoever forgets that has closed it. None
    where its URL is excluded. The rest is as ``Reading`` takes it.
    """
    if telemetry.config.excludes(f"{scheme}://{call.host}{call.known_path}"):
        return None
    if not call.port:
        call = call._replace(port={"http": 80, "https": 443}.get(scheme))
    reading = Reading(telemetry, call, started, breaks, timeouts)
    weakref.finalize(held, reading.end).atexit = False
    return reading


class _Anywhere:
    """In place of the event loop of a reader that has none: a thread for each call."""

    def is_running(self) -> bool:
        return True

    def call_soon_threadsafe(self, work: Callable[..., None], *args: Any) -> None:
        garbage.in_thread(work, *args)

    def call_later(self, _: float, work: Callable[..., None], *args: Any) -> None:
        garbage.in_thread(work, *args)


_anywhere: Final[Any] = _Anywhere()
