"""The live streams of one role and meter provider, and the series that they belong to."""

from __future__ import annotations

import threading
from typing import Any

from otel_sse.semconv import Role
from otel_sse.telemetry.series import Counts, MetricSeries
from otel_sse.telemetry.snapshot import LiveStream, SeriesSnapshot


class StreamRegistry:
    """A stream is live, or its totals are in its series: ``lock`` guards the step from the one to
    the other against a collection.

    Attributes:
        live: streams that count.
        ended: streams that count no more, and whose close is not recorded yet.

    """

    def __init__(self, role: Role) -> None:
        self._role = role
        self.lock = threading.Lock()
        self.live: set[LiveStream] = set()
        self.ended: set[LiveStream] = set()
        self._series: dict[tuple[Any, ...], MetricSeries] = {}

    def series(self, values: tuple[Any, ...], span_name: str) -> MetricSeries:
        """The series of these values of the role's base attributes; None leaves one out."""
        with self.lock:
            found = self._series.get(values)
            if found is None:
                pairs = zip(self._role.metric_attributes, values, strict=True)
                attributes = {name: value for name, value in pairs if value is not None}
                found = self._series[values] = MetricSeries(attributes, span_name)
        return found

    def register(self, stream: LiveStream, *, shares_counts: bool) -> None:
        """``shares_counts``: the thread of the stream's event loop alone counts in it."""
        with self.lock:
            series = stream.series
            stream.counts = series.counts_of(stream.loop) if shares_counts else Counts()
            series.opened[stream.resumed] += 1
            self.live.add(stream)

    def end(self, stream: LiveStream) -> bool:
        """Moves a stream's totals to its series; False if that has been done before."""
        with self.lock:
            if stream not in self.live:
                return False
            self.live.discard(stream)
            self.ended.add(stream)
            stream.series.closed.add_stream(stream)
        return True

    def close(self, stream: LiveStream) -> bool:
        """Forgets a stream that has ended; False if that has been done before."""
        with self.lock:
            if stream not in self.ended:
                return False
            self.ended.discard(stream)
        return True

    def unclosed_streams(self) -> list[LiveStream]:
        """Those that are live, and those that have ended."""
        with self.lock:
            return [*self.live, *self.ended]

    def live_streams(self) -> list[LiveStream]:
        with self.lock:
            return list(self.live)

    def rows(self) -> tuple[dict[MetricSeries, SeriesSnapshot], list[LiveStream]]:
        """Each series without the live streams' own numbers, and those streams, at one moment."""
        with self.lock:
            return {each: SeriesSnapshot(each) for each in self._series.values()}, list(self.live)

    def overdue(self, now: float) -> list[LiveStream]:
        """Streams that ended long ago, while the application's call has not returned."""
        if not self.ended:
            return []
        with self.lock:
            return [each for each in self.ended if each.is_overdue(now)]

    def reset(self) -> None:
        """Starts anew in a forked child: the parent's streams are not the child's."""
        self.lock = threading.Lock()
        self.live = set()
        self.ended = set()
        self._series = {}
