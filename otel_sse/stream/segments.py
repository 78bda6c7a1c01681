"""Rotates the span of a long stream, so that it is exported while the stream lives.

::

    trace of the caller          a trace of its own            another one
    ───────────────────          ─────────────────             ───────────
    request span
     └ SSE /ticker   0  ◄─link──  SSE /ticker   1  ◄─link──┬─  SSE /ticker   2   (final)
                     ▲                                     │
                     └──────────────────link───────────────┘

A segment ends when it is old (``segment_due``), or under ``all`` when its events are full. An old
one's successor starts a trace, linked to its predecessor and to segment 0, so that no trace grows
for hours. A full one's successor stays in the trace, beside it. Sampling is decided once: where
segment 0 is not sampled no other one is started, and where the sampler drops a new root, the
segment is started again in the trace of segment 0.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanKind, set_span_in_context

from otel_sse import semconv
from otel_sse.stream.identity import StreamIdentity
from otel_sse.telemetry.segment import Segment

NEVER: Final = float("inf")


class Segments(StreamIdentity):
    """The stream's current segment, and where the next one goes.

    Attributes:
        segment_due: when the segment is old, monotonic seconds.

    """

    __slots__ = ("_segment_0", "_segment_parent", "_trace_start", "segment_due")

    def start_first_segment(self, parent: Context, kind: SpanKind) -> None:
        """Starts segment 0 below ``parent``, at the start of the request."""
        self._start_segment(0, parent, kind, self._started_unix)
        # By its ids: the parent's span may change what it stands for.
        self._segment_parent = trace.get_current_span(parent).get_span_context()
        # Segment 0, and the first segment of this trace.
        self._segment_0 = self._trace_start = self._segment.span.get_span_context()
        recording = self._segment.span.is_recording()
        self.segment_due = self._next_due(self.started) if recording else NEVER

    @property
    def sequence(self) -> int:
        """Messages so far."""
        segment = self._segment
        return segment.before + segment.count

    def context(self, span: Span | None = None) -> Context:
        """The context of what is recorded: of ``span``, or of the current segment."""
        return set_span_in_context(self._segment.span if span is None else span)

    def rotate_segment(self, now: float) -> None:
        """Ends the segment and starts the next one; see the head of this file."""
        segment = self._segment
        at = self.unix_time(now)
        self._telemetry.spans.end(self, segment, at)
        links = [Link(segment.span.get_span_context())]
        if segment.index:
            links.append(Link(self._segment_0))
        index = segment.index + 1
        if now < self.segment_due:
            self._start_segment(index, self._context_in_trace(), SpanKind.INTERNAL, at, links)
        else:
            span = self._start_segment(index, Context(), SpanKind.INTERNAL, at, links)
            self._trace_start = span.get_span_context()
            if not span.is_recording():
                self._trace_start = self._segment_0
                context = self._context_in_trace()
                self._start_segment(index, context, SpanKind.INTERNAL, at, links)
            self.segment_due = self._next_due(now)

    def _context_in_trace(self) -> Context:
        """Where a segment goes that stays in this trace: beside its first one, or below that."""
        beside = self._segment_parent.is_valid and self._trace_start is self._segment_0
        parent = self._segment_parent if beside else self._trace_start
        return set_span_in_context(NonRecordingSpan(parent))

    def _start_segment(
        self, index: int, context: Context, kind: SpanKind, at: int, links: Sequence[Link] = ()
    ) -> Span:
        telemetry = self._telemetry
        before = self.sequence if index else 0
        attributes = {**self.attributes, semconv.SEGMENT_INDEX: index}
        name = self.series.span_name
        span = telemetry.spans.start(name, context, kind, at, attributes, links)
        self._segment = Segment(
            span,
            index,
            before,
            buffers=telemetry.buffers_messages,
            every=telemetry.config.message_event_detail == "all",
        )
        return span

    def _next_due(self, now: float) -> float:
        # Streams that start together must not rotate together.
        return now + self._telemetry.config.segment_seconds * random.uniform(0.9, 1.1)
