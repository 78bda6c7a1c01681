"""What the server counts itself, with OpenTelemetry: only what ``sse.server.*`` does not tell."""

from __future__ import annotations

from opentelemetry import metrics
from opentelemetry.metrics import MeterProvider


class Meters:
    """The counters, in the scope ``server`` of the global meter provider or of another."""

    def __init__(self, provider: MeterProvider | None = None) -> None:
        counter = metrics.get_meter("server", meter_provider=provider).create_counter
        self.rejected = counter(
            "server.rejected_connections", "{connection}", "Refused with a 503, by reason"
        )
        self.limited = counter(
            "server.limited_connections",
            "{connection}",
            "Ended by the server, by limit: idle, age, slow_client or memory",
        )
        self.errors = counter("server.errors", "{error}", "By class and pattern")
        self.recoveries = counter("server.recoveries", "{recovery}", "What was done, by action")
        self.gaps = counter(
            "server.replay_gaps", "{gap}", "Clients that came back for more than the history has"
        )
        self.original = counter(
            "server.compression.original", "By", "Data of compressed messages, before"
        )
        self.compressed = counter(
            "server.compression.compressed", "By", "Data of compressed messages, after"
        )
