"""Simulated processes: they export figures and times that a test chooses, by the SDK's exporter.

Sixty seconds between two exports need not be waited for: a point bears its own time.
"""

import itertools
import time
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_sse import semconv

SCOPE: Final = InstrumentationScope("otel_sse", "0")
SYSTEM: Final = InstrumentationScope("opentelemetry.instrumentation.system_metrics", "0")
MEMORY: Final = semconv.Metric("process.memory.usage", "By", "")
# The reference server's own.
REJECTED: Final = semconv.Metric("server.rejected_connections", "{connection}", "")
ERRORS: Final = semconv.Metric("server.errors", "{error}", "")
SERVER: Final = InstrumentationScope("server", "0")
COUNTERS: Final = (
    semconv.CONNECTIONS,
    semconv.MESSAGES,
    semconv.IO,
    semconv.SEND_TIME,
    semconv.DROPPED,
    REJECTED,
    ERRORS,
)
_SCOPES: Final = {MEMORY: SYSTEM, REJECTED: SERVER, ERRORS: SERVER}
# The attribute of a metric that has another than the route.
_ATTRIBUTES: Final = {REJECTED: "reason", ERRORS: "class"}
GAUGES: Final = (semconv.IDLE_MAX, semconv.BACKLOG_MAX, semconv.PER_CLIENT_MAX)
_NUMBERS: Final = itertools.count()


class SimulatedProcess:
    """One process of a service; it began ``start`` seconds ago and exports what a test gives."""

    def __init__(self, endpoint: str, start: float = 3600.0) -> None:
        self.instance = f"instance-{next(_NUMBERS)}"
        self._resource = Resource({"service.name": "shop", "service.instance.id": self.instance})
        self._exporter = OTLPMetricExporter(f"{endpoint}/v1/metrics")
        self._start = time.time_ns() - round(start * 1e9)
        self._now = self._start

    def export(self, figures: dict[semconv.Metric, Any], seconds: float = 60.0) -> None:
        """One export, that long after the one before. A figure is the value of a series, or of
        several by their attribute.
        """
        self._now += round(seconds * 1e9)
        scopes: dict[InstrumentationScope, list[Metric]] = {}
        for metric, values in figures.items():
            scope = _SCOPES.get(metric, SCOPE)
            scopes.setdefault(scope, []).append(self._metric(metric, values))
        data = MetricsData(
            [
                ResourceMetrics(
                    self._resource,
                    [ScopeMetrics(scope, metrics, "") for scope, metrics in scopes.items()],
                    "",
                )
            ]
        )
        assert self._exporter.export(data) is MetricExportResult.SUCCESS

    def _metric(self, metric: semconv.Metric, values: Any) -> Metric:
        attribute = _ATTRIBUTES.get(metric, "http.route")
        series = values if isinstance(values, dict) else {"/": values}
        points = [
            NumberDataPoint({attribute: each}, self._start, self._now, value)
            for each, value in series.items()
        ]
        cumulative = AggregationTemporality.CUMULATIVE
        data = Gauge(points) if metric in GAUGES else Sum(points, cumulative, metric in COUNTERS)
        return Metric(metric.name, metric.description, metric.unit, data)
