"""A stream that is served."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import Any, ClassVar

from opentelemetry.trace import SpanKind

from otel_sse import semconv
from otel_sse.process import gc_safety
from otel_sse.process.event_loops import any_thread
from otel_sse.stream.base import Chunk, Stream
from otel_sse.stream.close_reason import classify_close, is_error, resolve_error
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import RequestState
from otel_sse.stream.threaded import ThreadedStream
from otel_sse.telemetry.cardinality import clip_text
from otel_sse.telemetry.telemetry import Telemetry


class ServerStream(Stream):
    """Built when the response has started; its hooks call it after each send.

    Attributes:
        dropped: messages that the application reported as dropped, by reason.
        backlog: what a collection read of it last.

    """

    __slots__ = (
        "_cut_first",
        "_disconnected_at",
        "_max_wait",
        "_reason",
        "_request",
        "_send_error",
        "backlog",
        "dropped",
    )

    _first_wait_threshold: ClassVar[float] = 0.0

    def __init__(self, telemetry: Telemetry, info: ServerStreamInfo, request: RequestState) -> None:
        self._request: RequestState | None = request
        self.transport = info.transport
        self.backlog: dict[str, int] | None = None
        self._max_wait = 0.0
        # What the send raised that found the peer disconnected.
        self._send_error: OSError | None = None
        # The close reason that the application set.
        self._reason = request.reason
        self.dropped: dict[str, int] | None = None
        try:
            parent, kind = info.parent(request)
        except Exception as error:
            # A broken header of a client must not cost the stream, and is not worth a log record.
            if not isinstance(error, UnicodeError):
                telemetry.failures.log_failure_once("a remote parent")
            parent, kind = request.context, SpanKind.SERVER
        super().__init__(telemetry, info, request.started, parent, kind)
        self.disconnected = request.disconnected
        # The server had begun to cut the stream before the peer disconnected.
        self._cut_first = request.cut
        self._disconnected_at: float | None = None
        _, parent_span = request.parent()
        if parent_span.is_recording() and getattr(parent_span, "kind", None) is SpanKind.SERVER:
            parent_span.set_attribute(semconv.CONNECTION_ID, self.id)
        request.stream = self
        self.attach_context()
        for reason, n in (request.dropped or {}).items():
            self.record_dropped(n, reason)
        self._register()

    def attach_context(self) -> None:
        """Makes the stream the parent of the application's spans, unless that has been done, or the
        application has a span of its own current.
        """
        request = self._request
        if request is not None and request.span is None:
            request.attach()
        if request is not None and request.span is not None and self._ended is None:
            request.span.span = self._segment.span

    # The hook's name for it; no call in between, since it runs for every message.
    on_send = Stream.record_chunk

    def on_send_error(self, chunk: Chunk | None, began: float, error: BaseException) -> None:
        """A send of ``chunk`` (None: after the peer had disconnected) raised ``error``."""
        if not isinstance(error, Exception):
            # Cancelled while it waited: the server has the bytes.
            if chunk is None:
                return
            self.on_send(chunk, began, perf_counter(), error)
        elif isinstance(error, OSError) and (error.errno or not isinstance(error, TimeoutError)):
            self._send_error = error
            self.mark_disconnected()

    def mark_disconnected(self, *, cut: bool = False) -> None:
        """The peer has disconnected; ``cut``: after the server had begun to cut the stream."""
        if not self.disconnected:
            self.disconnected, self._cut_first = True, cut
            self._disconnected_at = gc_safety.deferred_at() or perf_counter()

    def check_disconnected(self) -> bool:
        """Whether the peer has disconnected, as far as that is known or the transport shows it."""
        if not self.disconnected and self.transport is not None:
            try:
                if self.transport.is_closing():
                    self.mark_disconnected()
            except Exception:
                self._telemetry.failures.log_failure_once("a transport")
        return self.disconnected

    def on_response_end(
        self, *, delivered: bool = True, error: BaseException | None = None
    ) -> None:
        """The response is over, ``delivered`` if its end was written to a peer that was there;
        ``error`` left the call that wrote it.
        """
        if gc_safety.in_finalizer(error):
            # What was given up may be freed within a collection, which holds the registry's lock.
            gc_safety.defer(partial(self.on_response_end, delivered=delivered))
        else:
            self._on_response_end(delivered)

    def _on_response_end(self, delivered: bool) -> None:
        self._end(completed=delivered)

    def is_over(self) -> bool:
        """Whether the response has ended or the peer has disconnected."""
        return self._ended is not None or self.disconnected

    def _end(self, completed: bool) -> bool:
        ended = super()._end(completed)
        request = self._request
        if ended and request is not None and request.span is not None:
            # What runs on after the stream belongs to the parent span again.
            request.span.span = request.span.parent_span
        if ended and self._disconnected_at is not None:
            # The application's clean-up is not the stream's time.
            self._ended = self._disconnected_at
        return ended

    def run_maintenance(self) -> None:
        if self._ended is not None:
            # Overdue.
            self.close()
        elif self.check_disconnected():
            self.on_response_end(delivered=False)
        else:
            super().run_maintenance()

    def set_close_reason(self, reason: str) -> None:
        self._reason = reason

    def record_dropped(self, n: int, reason: str) -> None:
        if not self.disconnected:
            dropped = self.dropped = self.dropped if self.dropped is not None else {}
            reason = self._telemetry.drop_reasons(clip_text(reason))
            dropped[reason] = dropped.get(reason, 0) + n

    def rotate_segment(self, now: float) -> None:
        super().rotate_segment(now)
        if self._request is not None and self._request.span is not None:
            self._request.span.span = self._segment.span

    def _on_long_wait(self, wait: float) -> bool:
        threshold = self._telemetry.config.slow_send_seconds
        if wait > self._max_wait:
            self._max_wait = wait
            self._wait_threshold = min(wait, threshold)
        if wait < threshold:
            return False
        self.counts.slow_waits += 1
        return True

    def _classify(self, error: BaseException | None, cut: bool) -> tuple[str, BaseException | None]:
        cut = cut or self._telemetry.stopping
        if not self._completed and (error is None or not is_error(error)):
            # Cancelled or returned: the client may have disconnected long before.
            self.check_disconnected()
        error, self.disconnected = resolve_error(
            error, disconnected=self.disconnected, cut=cut, send_error=self._send_error
        )
        reason = classify_close(
            error,
            reason=self._reason,
            completed=self._completed,
            disconnected=self.disconnected,
            cut_first=self._cut_first,
            cut=cut,
        )
        return reason, error

    def _totals(self, now: float) -> dict[str, Any]:
        return {**super()._totals(now), semconv.TOTAL_MAX_SEND: self._max_wait}

    def _release(self) -> None:
        self._request = self.transport = None
        # Its traceback refers back to this stream.
        self._send_error = None


class ThreadedServerStream(ThreadedStream, ServerStream):
    """One that is served in a thread without an event loop. It is idle between two sends."""

    __slots__ = ("_idle", "_lock", "_maintained")

    def __init__(self, telemetry: Telemetry, info: ServerStreamInfo, request: RequestState) -> None:
        self._init_threaded()
        self._start_idle()
        super().__init__(telemetry, info, request)

    def _register(self) -> None:
        self.loop = any_thread
        super()._register()

    def on_send(
        self, chunk: Chunk, began: float, ended: float, error: BaseException | None = None
    ) -> None:
        # As ``_end_idle`` and ``_start_idle``, without a call of these for every message.
        self._idle = False
        if self._maintained:
            self._end_idle()
        self.record_chunk(chunk, began, ended, error)
        self._idle = True

    def _on_response_end(self, delivered: bool) -> None:
        self._end_idle()
        super()._on_response_end(delivered)
