"""What the log has of exporters whose collector does not answer: one sentence.

Each exporter logs an error at each export, with a stack at times. A server on a machine without a
collector works, and shows its figures itself.
"""

from __future__ import annotations

import logging
import time
from typing import Final

# Seconds after which it is logged again.
AGAIN: Final = 600.0
# The SDK's own reader logs an export that takes longer than its interval.
_EXPORTERS: Final = ("opentelemetry.exporter.otlp", "opentelemetry.sdk.metrics._internal.export")
_SIGNS: Final = (
    "refused",
    "unavailable",
    "max retries",
    "failed to establish",
    "resolve",
    "timed out",
)
SENTENCE: Final = (
    "No OpenTelemetry collector answers, so nothing is exported; the figures are on the dashboard. "
    "OTEL_EXPORTER_OTLP_ENDPOINT is where one is; OTEL_TRACES_EXPORTER=none, and the same of "
    "METRICS and LOGS, exports nothing."
)


class NoCollector(logging.Filter):
    """For a handler: the loggers are the exporters' own."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(_EXPORTERS):
            return True
        text = record.getMessage().lower()
        if not any(sign in text for sign in _SIGNS) and not record.exc_info:
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + AGAIN
        record.msg, record.args = SENTENCE, ()
        record.exc_info = record.exc_text = record.stack_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
