"""A stream that is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from time import perf_counter, time_ns
from typing import Final

from opentelemetry.trace import SpanKind

from otel_sse import semconv
from otel_sse.process.event_loops import any_thread
from otel_sse.semconv import MAX_SENDERS
from otel_sse.stream.close_reason import TIMEOUTS
from otel_sse.stream.info import ClientStreamInfo
from otel_sse.stream.threaded import ThreadedStream
from otel_sse.telemetry.segment import Segment
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.trace_comment import TraceComment, TraceCommentReader

Errors = tuple[type[BaseException], ...]

# An instrumented client makes a request: the libraries that it is built on record no stream.
suppress_nested: Final[ContextVar[bool]] = ContextVar("otel_sse_suppress_nested", default=False)


@contextlib.contextmanager
def nested_suppression(suppress: bool) -> Iterator[None]:
    """A block in which nested clients are suppressed; or, within such a block, are not."""
    token = suppress_nested.set(suppress)
    try:
        yield
    finally:
        # A coroutine that is garbage is closed in another context.
        with contextlib.suppress(ValueError):
            suppress_nested.reset(token)


class ClientStream(ThreadedStream):
    """Its hooks call it around each read, and at the one end.

    It is idle while its reader waits. A reader may have no event loop, or read in another thread
    than the one that opened the stream.

    Args:
        telemetry: what it is recorded with.
        info: what is known of it at the response's headers.
        disconnect_errors: what the library raises where the server or the network cut the stream.
        timeouts: what it raises where a read took too long, beside Python's own.

    Attributes:
        skewed: messages that arrived before they were sent, by clocks that disagree.

    """

    __slots__ = (
        "_accounted_until",
        "_comment_of_next",
        "_comments",
        "_disconnect_errors",
        "_idle",
        "_linked",
        "_lock",
        "_maintained",
        "_senders",
        "_timeouts",
        "skewed",
    )

    def __init__(
        self,
        telemetry: Telemetry,
        info: ClientStreamInfo,
        disconnect_errors: Errors,
        timeouts: Errors,
    ) -> None:
        self._init_threaded()
        # Until when the time is accounted for, as waiting or as the reader's own.
        self._accounted_until = perf_counter()
        self._disconnect_errors = disconnect_errors
        self._timeouts = timeouts + TIMEOUTS
        self.skewed = 0
        # None once a first message has come without a trace comment.
        self._comments: TraceCommentReader | None = TraceCommentReader()
        self._comment_of_next: TraceComment | None = None
        # The senders that a segment's span links to, and that segment.
        self._senders: set[int] = set()
        self._linked: Segment | None = None
        super().__init__(telemetry, info, info.started, info.context, SpanKind.INTERNAL)
        if self.loop is None:
            self.loop = any_thread
        self._register()
        telemetry.record(semconv.CONNECT_DURATION, self, self._accounted_until - info.started)

    def idle(self, now: float) -> float:
        return super().idle(now if self._idle else self._accounted_until)

    def wait_started(self) -> None:
        """The reader starts to wait. What it did before is not the stream's idle time."""
        self.last_message += perf_counter() - self._accounted_until
        self._start_idle()

    def wait_ended(self) -> None:
        self._accounted_until = perf_counter()
        self._end_idle()

    def on_chunk(self, chunk: bytes, waited: bool = False) -> None:
        """The reader receives ``chunk``, at the end of a wait or without one."""
        before = self._accounted_until
        self.wait_ended()
        now = self._accounted_until
        if not waited:
            self.last_message += now - before
        if self._comments is None:
            self.record_chunk(chunk, now, now)
        else:
            self._read_comments(self._comments, chunk, now)

    def _read_comments(self, comments: TraceCommentReader, chunk: bytes, now: float) -> None:
        """Counts ``chunk`` without its trace comments, and records the delivery of messages."""
        try:
            for piece in comments.feed(chunk):
                if isinstance(piece, TraceComment):
                    self._comment_of_next = piece
                    continue
                before = self.sequence
                self.record_chunk(piece, now, now)
                if self.sequence > before and self._comment_of_next is not None:
                    self._record_delivery(self._comment_of_next)
                    self._comment_of_next = None
            if self.sequence and not comments.found:
                self._stop_reading_comments()
        except Exception:
            self._telemetry.failures.log_failure_once("a trace comment")

    def _stop_reading_comments(self) -> None:
        """There is none from here on: what was held back as the start of one is none."""
        comments, self._comments = self._comments, None
        if comments is not None and (rest := comments.rest()):
            now = perf_counter()
            self.record_chunk(rest, now, now)

    def _record_delivery(self, comment: TraceComment) -> None:
        duration = time_ns() - comment.sent
        if duration < 0:
            self.skewed += 1
        else:
            self._telemetry.record(semconv.DELIVERY_DURATION, self, duration / 1e9)
        if self._linked is not self._segment:
            self._linked = self._segment
            self._senders = set()
        span_id = comment.sender.span_id
        if span_id not in self._senders and len(self._senders) < MAX_SENDERS:
            self._senders.add(span_id)
            self._segment.span.add_link(comment.sender)

    @contextlib.contextmanager
    def read_to_eof(self) -> Iterator[None]:
        """A block that reads until there is no more, or something is raised."""
        self.wait_started()
        try:
            yield
        except BaseException as error:
            self.close(error)
            raise
        self.close(completed=True)

    def _before_close(self) -> None:
        self._stop_reading_comments()

    def _classify(self, error: BaseException | None, cut: bool) -> tuple[str, BaseException | None]:
        if self._completed:
            return semconv.COMPLETED, error
        if isinstance(error, self._timeouts):
            return semconv.TIMEOUT, error
        if isinstance(error, self._disconnect_errors):
            return semconv.DISCONNECTED, error
        if isinstance(error, Exception):
            return semconv.ERROR, error
        # Closed, cancelled or dropped by the reader.
        return semconv.CLIENT_CLOSE, error
