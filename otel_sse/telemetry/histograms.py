"""The histograms. One that fails is switched off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.metrics import Meter

from otel_sse import semconv
from otel_sse.semconv import Metric, Role
from otel_sse.telemetry.failures import FailureLog

_HISTOGRAMS: Final = (
    semconv.DURATION,
    semconv.FIRST_MESSAGE,
    semconv.MESSAGE_SIZE,
    semconv.MESSAGE_GAP,
    semconv.SEND_DURATION,
    semconv.CONNECT_DURATION,
    semconv.DELIVERY_DURATION,
)


class Histograms:
    """Those of ``role``, by the server's metric of the same meaning."""

    def __init__(self, role: Role, meter: Meter, failures: FailureLog) -> None:
        self._failures = failures
        self._record: dict[Metric, Callable[..., None]] = {}
        for meaning in _HISTOGRAMS:
            metric = role.metrics.get(meaning)
            if metric is None:
                continue
            try:
                self._record[meaning] = meter.create_histogram(
                    metric.name,
                    metric.unit,
                    metric.description,
                    explicit_bucket_boundaries_advisory=metric.buckets,
                ).record
            except Exception:
                failures.log_failure_once(metric.name)

    def record(
        self, metric: Metric, value: float, attributes: Mapping[str, Any], context: Context
    ) -> None:
        """Records ``value`` in the metric's unit; nothing where the role has no such metric."""
        record = self._record.get(metric)
        if record is None:
            return
        try:
            record(value, attributes, context)
        except Exception:
            self._record.pop(metric, None)
            self._failures.log_failure_once(metric.name)
