"""Simulated processes: what Prometheus scrapes of them, in promtool's notation.

A process exports its figures once in an export interval; the collector shows the last ones until
the next come, and for a while after the process has gone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

SCRAPE: Final = 5
# Scrapes fall between evaluations, as they do: promtool's samples are this far apart, every other
# one is missing.
STEP: Final = SCRAPE / 2
# How long the collector shows the last export of a process, in seconds.
EXPIRATION: Final = 300
ROUTE: Final = {"http_request_method": "GET", "http_route": "/events", "url_scheme": "http"}
FIRST: Final = "sse_server_connection_time_to_first_message_seconds"
DURATION: Final = "sse_server_connection_duration_seconds"

# Seconds since the process began, to a figure; None where nothing is exported yet.
Figure = Callable[[float], float | None]
Key = tuple[str, tuple[tuple[str, str], ...]]


def key(name: str, **labels: str) -> Key:
    return name, tuple(labels.items())


def always(value: float) -> Figure:
    return lambda _: value


def each_second(rate: float) -> Figure:
    """A counter that grows steadily."""
    return lambda age: rate * age


def born(at: float, value: float) -> Figure:
    """A series that there is not before something has happened."""
    return lambda age: value if age >= at else None


ACTIVE: Final = key("sse_server_active_connections", **ROUTE)
AGE: Final = key("sse_server_connection_age_max_seconds", **ROUTE)
IDLE: Final = key("sse_server_connection_idle_max_seconds", **ROUTE)
STALLED: Final = key("sse_server_stalled_connections", **ROUTE)
PER_CLIENT: Final = key("sse_server_connections_per_client_max")
BACKLOG: Final = key("sse_server_backlog_size_bytes", **ROUTE, sse_backlog_layer="kernel")
BACKLOG_MAX: Final = key("sse_server_backlog_max_bytes", **ROUTE)
MESSAGES: Final = key("sse_server_messages_total", **ROUTE, sse_event_type="message")
SEND_TIME: Final = key("sse_server_send_time_seconds_total", **ROUTE)
IO: Final = key("sse_server_io_bytes_total", **ROUTE)
MEMORY: Final = key("process_memory_usage_bytes")
OPENED: Final = key("sse_server_connections_total", **ROUTE, sse_resumed="false")
RESUMED: Final = key("sse_server_connections_total", **ROUTE, sse_resumed="true")
DROPPED: Final = key("sse_server_dropped_messages_total", **ROUTE, sse_drop_reason="slow_client")
LIMIT: Final = key("sse_server_connection_limit")
# The reference server's own.
REJECTED: Final = key("server_rejected_connections_total", reason="connections")
FIRST_COUNT: Final = key(f"{FIRST}_count", **ROUTE)


def first_within(le: str) -> Key:
    return key(f"{FIRST}_bucket", **ROUTE, le=le)


def failed(kind: str) -> Key:
    """Errors of a class, as the reference server counts them."""
    return key("server_errors_total", **{"class": kind}, pattern="occasional")


def ended(reason: str) -> Key:
    return key(f"{DURATION}_count", **ROUTE, sse_close_reason=reason)


def ended_soon(reason: str) -> Key:
    return key(f"{DURATION}_bucket", **ROUTE, sse_close_reason=reason, le="5")


def idle() -> dict[Key, Figure]:
    """A process that has never had a connection."""
    return {PER_CLIENT: always(0), MEMORY: always(100e6)}


def healthy(connections: float = 50) -> dict[Key, Figure]:
    """A process at work: steady streams, a new one now and then, memory that levels off."""
    return {
        ACTIVE: always(connections),
        AGE: lambda age: age,
        IDLE: always(3),
        STALLED: always(0),
        PER_CLIENT: always(5),
        BACKLOG: always(5_000),
        BACKLOG_MAX: always(1_000),
        MESSAGES: each_second(20),
        SEND_TIME: each_second(20 * 0.001),
        IO: each_second(20 * 500),
        MEMORY: lambda age: 100e6 + 150e6 * min(age / 300, 1),
        OPENED: each_second(0.2),
        RESUMED: each_second(0.02),
        FIRST_COUNT: each_second(0.2),
        first_within("1"): each_second(0.2),
        first_within("5"): each_second(0.2),
        first_within("10"): each_second(0.2),
        first_within("+Inf"): each_second(0.2),
        ended("completed"): each_second(0.1),
        ended("client_disconnect"): each_second(0.1),
        ended_soon("client_disconnect"): each_second(0.01),
    }


@dataclass
class Process:
    """One process of a service: its figures, its life, and how it went.

    ``last`` are the figures of the export that a graceful end sends; None: it was killed.
    """

    figures: dict[Key, Figure]
    instance: str = "a"
    start: float = 0
    end: float = float("inf")
    last: dict[Key, Figure] | None = None
    job: str = "shop"
    series: dict[str, str] = field(init=False, default_factory=dict)

    def scraped(self, export: float, until: float, *, pushed: bool = False) -> dict[str, str]:
        """Series to values until then: one for each scrape, or only one for each export, as where
        the collector writes to Prometheus.
        """
        names = [*self.figures, *(set(self.last or ()) - set(self.figures))]
        return {self._name(each): self._values(each, export, until, pushed) for each in names}

    def _name(self, each: Key) -> str:
        name, labels = each
        pairs = {"job": self.job, "instance": self.instance, **dict(labels)}
        return name + "{" + ",".join(f'{label}="{value}"' for label, value in pairs.items()) + "}"

    def _values(self, each: Key, export: float, until: float, pushed: bool) -> str:
        values: list[str] = []
        previous = last = None
        for scrape in range(int(until / SCRAPE)):
            export_at, value = self._at(each, export, STEP + scrape * SCRAPE)
            if pushed:
                fresh = export_at != last
                values += ["_", f"{value:.12g}" if fresh and value is not None else "_"]
            else:
                values.append("stale" if previous is not None and value is None else "_")
                values.append("_" if value is None else f"{value:.12g}")
            previous, last = value, export_at
        return " ".join(values)

    def _at(self, each: Key, export: float, now: float) -> tuple[float, float | None]:
        """The time of the export that is known then, and its value."""
        age = (min(now, self.end) - self.start) // export * export
        figures = self.figures
        if now >= self.end and self.last is not None:
            age, figures = self.end - self.start, {**figures, **self.last}
        exported_at = self.start + age
        if age <= 0 or now - exported_at > EXPIRATION or each not in figures:
            return exported_at, None
        return exported_at, figures[each](age)
