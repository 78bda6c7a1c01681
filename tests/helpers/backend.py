"""A whole SDK in memory, and one that exports to a receiver."""

import contextlib
from collections.abc import Iterator
from typing import Any

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    InMemoryLogRecordExporter,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from helpers.otlp import Receiver

Attributes = dict[str, Any]


class Backend:
    """Three SDK providers that keep what is recorded in memory."""

    def __init__(self, **tracer_options: Any) -> None:
        self._spans = InMemorySpanExporter()
        self._logs = InMemoryLogRecordExporter()
        self.reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False, **tracer_options)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.logger_provider = LoggerProvider(shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(SimpleLogRecordProcessor(self._logs))
        self.tracer = self.tracer_provider.get_tracer("test")

    @property
    def providers(self) -> dict[str, Any]:
        """Keyword arguments of ``instrument()`` and ``SSEMiddleware``."""
        return {
            "tracer_provider": self.tracer_provider,
            "meter_provider": self.meter_provider,
            "logger_provider": self.logger_provider,
        }

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """The finished spans whose name starts so, in the order of their end."""
        return [span for span in self._spans.get_finished_spans() if span.name.startswith(name)]

    def events(self, name: str = "") -> list[Any]:
        """The log-based events of that name."""
        records = [each.log_record for each in self._logs.get_finished_logs()]
        return [record for record in records if (record.event_name or "").startswith(name)]

    def __str__(self) -> str:
        """All of it in short, for a failing test's message."""
        lines = [f"span {each.name} {dict(each.attributes or {})}" for each in self.spans()]
        lines += [f"event {each.event_name} {dict(each.attributes)}" for each in self.events()]
        lines += [
            f"metric {name} {getattr(point, 'value', getattr(point, 'count', None))} {attributes}"
            for name in self.metrics()
            for attributes, point in self.points(name)
        ]
        return "\n".join(["", *lines])

    def metrics(self) -> dict[str, Any]:
        """One collection: the metrics of this library by name."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            if scope.scope.name == "otel_sse"
            for metric in scope.metrics
        }

    def points(self, name: str) -> list[tuple[Attributes, Any]]:
        """One collection: a metric's points, each its attributes and the SDK's point."""
        metric = self.metrics().get(name)
        points = metric.data.data_points if metric else ()
        return [(dict(point.attributes or {}), point) for point in points]

    def value(self, name: str, **attributes: Any) -> float:
        """The sum of a metric's points (a histogram's counts) that bear these attributes, in
        which a dot is written as two underscores.
        """
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return sum(
            point.value if hasattr(point, "value") else point.count
            for found, point in self.points(name)
            if wanted.items() <= found.items()
        )


@contextlib.contextmanager
def exporting(receiver: Receiver) -> Iterator[dict[str, Any]]:
    """Three SDK providers that export to ``receiver``, with their own batch processors as they are
    by default; what they hold is exported at the end.
    """
    end = receiver.endpoint
    tracer = TracerProvider(shutdown_on_exit=False)
    tracer.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{end}/v1/traces")))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{end}/v1/metrics"))
    meter = MeterProvider([reader], shutdown_on_exit=False)
    logger = LoggerProvider(shutdown_on_exit=False)
    logger.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{end}/v1/logs")))
    try:
        yield {"tracer_provider": tracer, "meter_provider": meter, "logger_provider": logger}
    finally:
        for provider in (tracer, meter, logger):
            provider.shutdown()
