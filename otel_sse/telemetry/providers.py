"""The three providers that telemetry goes to, and their flush."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from opentelemetry import _logs, metrics, trace
from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from otel_sse.process.event_loops import run_in_parallel
from otel_sse.telemetry.failures import FailureLog
from otel_sse.telemetry.sdk_internals import is_shut_down

# The time that a provider's flush is given; most of the SDK ignores it.
_FLUSH_TIMEOUT_MILLIS: Final = 10_000


@dataclass(frozen=True)
class Providers:
    """None stands for the global provider, which may be set later."""

    tracer: TracerProvider | None = None
    meter: MeterProvider | None = None
    logger: LoggerProvider | None = None

    @property
    def meter_provider(self) -> MeterProvider:
        return metrics.get_meter_provider() if self.meter is None else self.meter

    def flush_spans_and_logs(self, failures: FailureLog) -> None:
        """Exports what their queues hold, and waits for it: never to be called on an event loop.

        Both at once: an exporter that does not answer costs its time-out once.
        """
        providers = (
            _logs.get_logger_provider() if self.logger is None else self.logger,
            trace.get_tracer_provider() if self.tracer is None else self.tracer,
        )
        run_in_parallel([partial(_flush, each, failures) for each in providers])

    def flush_metrics(self, failures: FailureLog) -> None:
        """Collects and exports, and waits for it."""
        # One that was shut down would collect once more, and log an error.
        if not is_shut_down(self.meter_provider):
            _flush(self.meter_provider, failures)


def _flush(provider: Any, failures: FailureLog) -> None:
    # The API's providers have no flush, the SDK's do.
    flush = getattr(provider, "force_flush", None)
    if flush is not None:
        try:
            flush(_FLUSH_TIMEOUT_MILLIS)
        except Exception:
            failures.log_failure_once("flush")
