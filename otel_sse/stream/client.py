"""A stream that is read."""

from __future__ import annotations

from functools import partial
from time import perf_counter, time_ns
from typing import Final

from opentelemetry.trace import SpanKind

from otel_sse import semconv
from otel_sse.process import gc_safety
from otel_sse.process.event_loops import any_thread
from otel_sse.semconv import MAX_SENDERS
from otel_sse.stream.close_reason import TIMEOUTS
from otel_sse.stream.info import ClientStreamInfo
from otel_sse.stream.threaded import ThreadedStream
from otel_sse.telemetry.segment import Segment
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.opaque import OPAQUE_BODY
from otel_sse.wire.trace_comment import TraceComment, TraceCommentReader

Errors = tuple[type[BaseException], ...]

# What a break of the connection is called where no library of the hooks raises it: by other
# transports, or by the layer below. Module and class, since none of them need be installed.
_DISCONNECTS: Final = frozenset(
    {
        ("aiohttp", "ClientConnectionError"),
        ("aiohttp", "ClientPayloadError"),
        ("anyio", "BrokenResourceError"),
        ("anyio", "EndOfStream"),
        ("anyio", "IncompleteRead"),
        ("asyncio", "IncompleteReadError"),
        ("curl_cffi", "ConnectionError"),
        ("curl_cffi", "IncompleteRead"),
        ("h11", "RemoteProtocolError"),
        ("h2", "ProtocolError"),
        ("http", "HTTPException"),
        ("httpcore", "NetworkError"),
        ("httpcore", "RemoteProtocolError"),
        ("httpcore2", "NetworkError"),
        ("httpcore2", "RemoteProtocolError"),
        ("httpx", "NetworkError"),
        ("httpx", "RemoteProtocolError"),
        ("httpx2", "NetworkError"),
        ("httpx2", "RemoteProtocolError"),
        ("requests", "ChunkedEncodingError"),
        ("requests", "ConnectionError"),
        ("trio", "BrokenResourceError"),
        ("urllib3", "ProtocolError"),
        ("urllib3", "SSLError"),
    }
)
_TIMEOUTS: Final = frozenset(
    {
        ("curl_cffi", "Timeout"),
        ("httpcore", "TimeoutException"),
        ("httpcore2", "TimeoutException"),
        ("httpx", "TimeoutException"),
        ("httpx2", "TimeoutException"),
        ("requests", "Timeout"),
        ("urllib3", "TimeoutError"),
    }
)
# A read that finds its own side closed: by the application, through its client or transport.
_OWN_CLOSES: Final = frozenset({("anyio", "ClosedResourceError"), ("trio", "ClosedResourceError")})
# Of any meaning, and OSErrors by inheritance only.
_NO_OS_ERRORS: Final = frozenset(
    {("curl_cffi", "RequestException"), ("requests", "RequestException")}
)
_MAX_CAUSES: Final = 20


class ClientStream(ThreadedStream):
    """Its hooks call it around each read, and at the one end.

    It is idle while its reader waits. A reader may have no event loop, or read in another thread
    than the one that opened the stream.

    Args:
        telemetry: what it is recorded with.
        info: what is known of it at the response's headers.
        disconnect_errors: what the library raises where the server or the network cut the stream.
        timeouts: what it raises where a read took too long, beside Python's own.

    """

    __slots__ = (
        "_accounted_until",
        "_comment_of_next",
        "_comments",
        "_disconnect_errors",
        "_final_sequence",
        "_idle",
        "_linked",
        "_lock",
        "_maintained",
        "_senders",
        "_timeouts",
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
        self.transport = None
        # The number of the last message by which its protocol ends a stream. The fast path takes no
        # such message, so it is the last one of all as long as no other was counted.
        self._final_sequence = 0
        # None once a first message has come without a trace comment.
        self._comments: TraceCommentReader | None = None if info.encoded else TraceCommentReader()
        self._comment_of_next: TraceComment | None = None
        # The senders that a segment's span links to, and that segment.
        self._senders: set[int] = set()
        self._linked: Segment | None = None
        super().__init__(telemetry, info, info.started, info.context, SpanKind.INTERNAL)
        if self.loop is None:
            self.loop = any_thread
        self._register()
        attributes = self.series.attributes
        if info.failed:
            attributes = {**attributes, semconv.ERROR_TYPE: str(info.status)}
        connected = info.connected or self._accounted_until
        telemetry.histograms.record(
            semconv.CONNECT_DURATION, connected - info.started, attributes, self.context()
        )

    def idle(self, now: float) -> float:
        return super().idle(now if self._idle else self._accounted_until)

    def wait_started(self) -> None:
        """The reader starts to wait. What it did before is not the stream's idle time."""
        self.last_message += perf_counter() - self._accounted_until
        # As ``_start_idle``, without a call for every message.
        self._idle = True

    def wait_ended(self) -> None:
        self._accounted_until = perf_counter()
        self._end_idle()

    def on_chunk(self, chunk: bytes, waited: bool = False) -> None:
        """The reader receives ``chunk``, at the end of a wait or without one."""
        now = perf_counter()
        if not waited:
            self.last_message += now - self._accounted_until
        # As ``wait_ended``, without calls for every message.
        self._accounted_until = now
        self._idle = False
        if self._maintained:
            self._end_idle()
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
        if gc_safety.in_finalizer():
            gc_safety.defer(partial(self._record_delivery, comment))
            return
        duration = time_ns() - comment.sent
        if duration < 0:
            # By clocks that disagree.
            self.counts.skewed += 1
        else:
            self._telemetry.record(semconv.DELIVERY_DURATION, self, duration / 1e9)
        if self._linked is not self._segment:
            self._linked = self._segment
            self._senders = set()
        span_id = comment.sender.span_id
        if span_id not in self._senders and len(self._senders) < MAX_SENDERS:
            self._senders.add(span_id)
            self._segment.span.add_link(comment.sender)

    def _on_final_message(self) -> None:
        self._final_sequence = self.sequence

    def set_opaque(self) -> None:
        """The reader takes the encoded bytes: from here on there are bytes alone, and no stall."""
        self._comments = None
        self._parser = OPAQUE_BODY

    def on_owner_freed(self) -> None:
        """A finalizer's callback. It may run wherever an object is freed, and any lock may be held
        there: it only queues.
        """
        if self._may_lock():
            gc_safety.defer(self.close)

    def _before_close(self) -> None:
        self._stop_reading_comments()

    def _classify(self, error: BaseException | None, cut: bool) -> tuple[str, BaseException | None]:
        if self._completed:
            return semconv.COMPLETED, error
        if isinstance(error, Exception) and not _is_own_close(error):
            return self._classify_break(_causes(error)), error
        # Closed, cancelled or dropped by the reader: behind the protocol's last message it has read
        # all of the stream.
        completed = self._final_sequence and self._final_sequence == self.sequence
        return semconv.COMPLETED if completed else semconv.CLIENT_CLOSE, error

    def _classify_break(self, causes: list[BaseException]) -> str:
        for error in causes:
            if isinstance(error, self._timeouts) or _is_named(error, _TIMEOUTS):
                return semconv.TIMEOUT
            # An OSError is of the connection, TLS included: the reader's own do not pass here.
            broken = isinstance(error, OSError) and not _is_named(error, _NO_OS_ERRORS)
            if (
                broken
                or isinstance(error, self._disconnect_errors)
                or _is_named(error, _DISCONNECTS)
            ):
                return semconv.DISCONNECTED
        return semconv.ERROR


def _causes(error: BaseException, *, contexts: bool = False) -> list[BaseException]:
    """``error`` and the errors that it was raised from; ``contexts``: or while handling them."""
    found: list[BaseException] = []
    each: BaseException | None = error
    # Bounded: causes may form a circle.
    while each is not None and len(found) < _MAX_CAUSES:
        found.append(each)
        cause = each.__cause__
        each = each.__context__ if cause is None and contexts else cause
    return found


def _is_own_close(error: BaseException) -> bool:
    # httpcore hides the cause, but not the context.
    return any(_is_named(each, _OWN_CLOSES) for each in _causes(error, contexts=True))


def _is_named(error: BaseException, names: frozenset[tuple[str, str]]) -> bool:
    return any(
        (kind.__module__.partition(".")[0], kind.__name__) in names for kind in type(error).__mro__
    )
