"""What the server records itself, with OpenTelemetry: only what ``sse.server.*`` does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

REJECTED: Final = "server.rejected_connections"
ERRORS: Final = "server.errors"
HISTORY: Final = "server.history.size"
QUEUED: Final = "server.queue.size"
QUEUE_MAX: Final = "server.queue.max"
WRITES: Final = "server.writes"
# So that a rate sees the first one, each counter begins at 0 where what is counted is known.
_REASONS: Final = ("connections", "connections_per_client", "memory")
_CLASSES: Final = ("connection_refused", "timeout", "rate_limit", "memory_exhausted", "unknown")


class Meters:
    """The instruments, in the scope ``server`` of the global meter provider or of another."""

    def __init__(self, provider: MeterProvider | None = None) -> None:
        self._meter = metrics.get_meter("server", meter_provider=provider)
        # Batches of messages that were given to the sockets of clients.
        self.writes = 0
        counter = self._meter.create_counter
        self.rejected = counter(REJECTED, "{connection}", "Refused with a 503, by reason")
        self.limited = counter(
            "server.limited_connections",
            "{connection}",
            "Ended by the server, by limit: idle, age, slow_client or memory",
        )
        self.errors = counter(ERRORS, "{error}", "By class and pattern")
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

        for reason in _REASONS:
            self.rejected.add(0, {"reason": reason})
        for kind in _CLASSES:
            self.errors.add(0, {"class": kind, "pattern": "occasional"})
        self._meter.create_observable_counter(
            WRITES,
            [lambda _: [Observation(self.writes)]],
            "{write}",
            "Writes to clients, each of one message or more",
        )

    def observe_history(self, size: Callable[[], int]) -> None:
        """``size`` is called by the thread that collects."""
        self._observe(HISTORY, "Messages kept in this process for clients that come back", size)

    def observe_queues(self, sizes: Callable[[], list[int]]) -> None:
        """``sizes`` has the bytes that wait for each client; the thread that collects calls it."""
        self._observe(QUEUED, "Messages that wait for clients", lambda: sum(sizes()))
        self._observe(
            QUEUE_MAX, "Of the client that most waits for", lambda: max(sizes(), default=0)
        )

    def _observe(self, name: str, description: str, size: Callable[[], int]) -> None:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            yield Observation(size())

        create = self._meter.create_observable_gauge
        if not name.endswith(".max"):
            create = self._meter.create_observable_up_down_counter  # type: ignore[assignment]
        create(name, [observe], "By", description)
