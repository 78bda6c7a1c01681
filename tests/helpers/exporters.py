"""Exporters that take their time."""

import time
from typing import Any

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult


class SlowSpanExporter(SpanExporter):
    """Takes ``seconds`` for each batch, and keeps the attributes of its spans."""

    def __init__(self, seconds: float) -> None:
        self.attributes: list[Any] = []
        self._seconds = seconds

    def export(self, spans: Any) -> SpanExportResult:
        time.sleep(self._seconds)
        self.attributes += [span.attributes for span in spans]
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True
