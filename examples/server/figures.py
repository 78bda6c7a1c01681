"""The process's own OpenTelemetry metrics, read through a metric reader of our own.

Nothing is counted here: what an exporter would send is read, and rates are what counters gained.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any, Final

from opentelemetry import metrics
from opentelemetry.sdk.metrics import (
    Counter as CounterInstrument,
)
from opentelemetry.sdk.metrics import (
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

import otel_sse
from server.meters import ERRORS, REJECTED, WRITES

NO_METRICS: Final = (
    "This process keeps no metrics that could be shown: start it with `opentelemetry-instrument`, "
    "opentelemetry-sdk 1.45 or later installed and OTEL_SDK_DISABLED not set."
)
# Seconds over which rates are taken.
WINDOW: Final = 60.0
# Client addresses, and connections, that are listed one by one.
MAX_CLIENTS: Final = 50
MAX_CONNECTIONS: Final = 50
_KINDS: Final = (
    CounterInstrument,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
_VERBS: Final = ("add_metric_reader", "remove_metric_reader")
_OPENED: Final = "sse.server.connections"
# Is recorded wherever streams are, also before the first one.
STREAMS: Final = "sse.server.connections_per_client.max"
# Connections that were closed by an error: a histogram's count, as a counter.
FAILED: Final = "failed connections"
_STREAM_COUNTERS: Final = (
    _OPENED,
    "sse.server.messages",
    "sse.server.dropped_messages",
    "sse.server.io",
    "sse.server.send.time",
    "sse.server.slow_sends",
)
_STREAM_GAUGES: Final = (
    "sse.server.active_connections",
    "sse.server.stalled_connections",
    "sse.server.connection.idle.max",
)
# Of open connections it is recorded only where it can be read.
_BACKLOGS: Final = ("sse.server.backlog.max", "sse.server.backlog.size")


class NoMetricsError(RuntimeError):
    """The process has no meter provider that could be read."""


@dataclass(frozen=True)
class Metric:
    """One metric of a reading; ``points`` are the SDK's, each with attributes and a value or, of a
    histogram, ``count``, ``sum``, ``min`` and ``max``.
    """

    scope: str
    unit: str
    counter: bool
    points: list[Any]

    @property
    def is_histogram(self) -> bool:
        return bool(self.points) and not hasattr(self.points[0], "value")


@dataclass(frozen=True)
class Clients:
    """What is per live connection, added up; ages in seconds."""

    connections: int = 0
    messages: int = 0
    max_messages: int = 0
    mean_age: float = 0.0
    # The busiest addresses with their connections, and how many addresses and connections there
    # are beside them.
    busiest: list[tuple[str, int]] = field(default_factory=list)
    other_addresses: int = 0
    other_connections: int = 0
    # The worst backlogs first, then the newest; at most MAX_CONNECTIONS.
    listed: list[otel_sse.ConnectionInfo] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """All metrics at one moment; ``at`` is monotonic and ``cost`` the CPU time it took, in s."""

    at: float
    cost: float
    metrics: dict[str, Metric]
    resource: Mapping[str, Any]
    clients: Clients

    def points(self, name: str) -> Iterator[Any]:
        metric = self.metrics.get(name)
        yield from metric.points if metric else ()

    def figure(self, name: str) -> float | None:
        """One figure for the process: the sum of a metric's points, of a `.max` the largest.

        A process that records streams and has not counted a thing yet has a zero there.
        """
        values = [point.value for point in self.points(name)]
        if values:
            return float(max(values) if name.endswith(".max") else sum(values))
        known = name.startswith("sse.server.") and STREAMS in self.metrics
        return 0.0 if known or (name in (REJECTED, ERRORS) and WRITES in self.metrics) else None

    def by(self, name: str, attribute: str) -> dict[str, float]:
        """The values of a metric, or the counts of a histogram, for each value of an attribute."""
        found: Counter[str] = Counter()
        for point in self.points(name):
            key = str((point.attributes or {}).get(attribute, ""))
            found[key] += point.value if hasattr(point, "value") else point.count
        return dict(found.most_common())

    def spread(self, name: str) -> Spread:
        """A histogram since the process started."""
        points = [point for point in self.points(name) if point.count]
        count = sum(point.count for point in points)
        total = sum(point.sum for point in points)
        return Spread(
            count,
            total / count if count else None,
            min((point.min for point in points), default=None),
            max((point.max for point in points), default=None),
        )


@dataclass(frozen=True)
class Spread:
    """Of a histogram, in its metric's unit."""

    count: int
    mean: float | None
    min: float | None
    max: float | None


class Reader:
    """Reads the running meter provider; to be closed.

    Raises:
        NoMetricsError: there is none that can be read.

    """

    def __init__(self) -> None:
        provider: Any = metrics.get_meter_provider()
        disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        if disabled or not all(hasattr(provider, verb) for verb in _VERBS):
            raise NoMetricsError(NO_METRICS)
        self.provider = provider
        self._reader = InMemoryMetricReader(
            dict.fromkeys(_KINDS, AggregationTemporality.CUMULATIVE)
        )
        provider.add_metric_reader(self._reader)

    def close(self) -> None:
        self.provider.remove_metric_reader(self._reader)

    def read(self) -> Reading:
        """One collection; takes milliseconds to tenths of a second, so call it in a thread."""
        began, at = time.thread_time(), time.monotonic()
        data = self._reader.get_metrics_data()
        found: dict[str, Metric] = {}
        resource: Mapping[str, Any] = {}
        for each in data.resource_metrics if data else ():
            resource = each.resource.attributes
            for scope in each.scope_metrics:
                for metric in scope.metrics:
                    counter = getattr(metric.data, "is_monotonic", False)
                    points = list(metric.data.data_points)
                    found[metric.name] = Metric(
                        scope.scope.name, metric.unit or "", counter, points
                    )
        clients = _clients(otel_sse.connections())
        return Reading(at, time.thread_time() - began, found, resource, clients)


def _clients(live: list[otel_sse.ConnectionInfo]) -> Clients:
    if not live:
        return Clients()
    addresses = Counter(each.client_address or "unknown" for each in live)
    busiest = addresses.most_common(MAX_CLIENTS)
    messages = [each.messages for each in live]
    return Clients(
        connections=len(live),
        messages=sum(messages),
        max_messages=max(messages),
        mean_age=sum(each.age for each in live) / len(live),
        busiest=busiest,
        other_addresses=len(addresses) - len(busiest),
        other_connections=len(live) - sum(count for _, count in busiest),
        listed=nsmallest(MAX_CONNECTIONS, live, key=lambda each: (-(each.backlog or 0), each.age)),
    )


@dataclass(frozen=True)
class Part:
    """The points of a metric without those that have one of these attributes."""

    metric: str
    without: tuple[tuple[str, str], ...]

    def of(self, reading: Reading) -> float:
        """Their sum; of a `.max` the largest."""
        values = [
            point.value
            for point in reading.points(self.metric)
            if not any((point.attributes or {}).get(key) == value for key, value in self.without)
        ]
        return float(max(values, default=0) if self.metric.endswith(".max") else sum(values))


_NO_PARTS: Final[Mapping[str, Part]] = {}


@dataclass(frozen=True)
class Sample:
    """The figures of a reading, one for each metric that is not a histogram."""

    at: float
    figures: dict[str, float]
    counters: frozenset[str]

    @classmethod
    def of(cls, reading: Reading, parts: Mapping[str, Part] = _NO_PARTS) -> Sample:
        """``parts`` are figures beside the metrics, by the name that they get."""
        plain = {name: each for name, each in reading.metrics.items() if not each.is_histogram}
        figures = {name: reading.figure(name) or 0.0 for name in plain}
        counters = frozenset(name for name, each in plain.items() if each.counter)
        # What is not recorded yet where the rest is: there was none.
        if STREAMS in figures:
            counters |= _zero(figures, _STREAM_COUNTERS)
            _zero(figures, _STREAM_GAUGES)
            if not figures["sse.server.active_connections"]:
                _zero(figures, _BACKLOGS)
            closes = reading.by("sse.server.connection.duration", "sse.close.reason")
            figures[FAILED] = closes.get("error", 0.0)
            counters |= {FAILED}
        if WRITES in figures:
            counters |= _zero(figures, (REJECTED, ERRORS))
        for name, part in parts.items():
            if part.metric in figures:
                figures[name] = part.of(reading)
                counters |= {name} if part.metric in counters else frozenset()
        return cls(reading.at, figures, counters)


def _zero(figures: dict[str, float], names: Iterable[str]) -> frozenset[str]:
    for name in names:
        figures.setdefault(name, 0.0)
    return frozenset(names)


class Window:
    """The samples of the last minute. A rate is what a counter gained from the oldest of them to
    the newest, over the time between.
    """

    def __init__(self, seconds: float = WINDOW) -> None:
        self._seconds = seconds
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        samples = self._samples
        samples.append(sample)
        # The youngest that is old enough stays, so that the window is never too short.
        while len(samples) > 1 and samples[1].at <= sample.at - self._seconds:
            samples.popleft()

    @property
    def span(self) -> float:
        """Seconds from the oldest sample to the newest."""
        return self._samples[-1].at - self._samples[0].at if self._samples else 0.0

    def is_counter(self, name: str) -> bool:
        return bool(self._samples) and name in self._samples[-1].counters

    def figure(self, name: str) -> float | None:
        """The newest figure."""
        return self._samples[-1].figures.get(name) if self._samples else None

    def gained(self, name: str) -> float:
        """What a counter gained in the window. One that was not recorded before began at zero."""
        if not self._samples:
            return 0.0
        first, last = self._samples[0].figures, self._samples[-1].figures
        return max(0.0, last.get(name, 0.0) - first.get(name, 0.0))

    def rate(self, name: str) -> float | None:
        """What a counter gained a second; None before there are two samples."""
        return self.gained(name) / self.span if self.span else None

    def mean(self, name: str, per: str) -> float | None:
        """What one counter gained for each that another gained; None where that gained none."""
        over = self.gained(per)
        return self.gained(name) / over if over else None
