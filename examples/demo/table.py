"""What a person sees: a table of the metrics, and a line for each connection that has ended."""

from collections import Counter
from datetime import datetime

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from rich.table import Table
from rich.text import Text

from demo.receiver import Points, Service, attributes
from otel_sse import semconv

COLOURS = {
    semconv.COMPLETED: "green",
    semconv.CLIENT_DISCONNECT: "cyan",
    semconv.SERVER_SHUTDOWN: "magenta",
    semconv.TIMEOUT: "yellow",
    semconv.ERROR: "red",
    semconv.UNKNOWN: "yellow",
}


def metrics_table(services: dict[str, Service]) -> Table:
    """The metrics of every service, as exported last."""
    table = Table(title="What the servers report of their streams")
    table.add_column("metric", no_wrap=True)
    for name in sorted(services):
        table.add_column(name, justify="right", no_wrap=True, min_width=10)
    columns = [_figures(services[name]) for name in sorted(services)]
    for row in sorted({row for column in columns for row in column}):
        table.add_row(row[1], *(column.get(row, "-") for column in columns))
    return table


def _figures(service: Service) -> dict[tuple[int, str], str]:
    """A service's column: by the place and the label of a row, its figure."""
    messages, size = service.rates()
    by_type: Counter[str] = Counter()
    for point in service.metrics.get(semconv.MESSAGES.name, []):
        by_type[attributes(point.attributes)[semconv.EVENT_TYPE]] += point.as_int
    first = service.metrics.get(semconv.FIRST_MESSAGE.name, [])
    gaps = service.metrics.get(semconv.MESSAGE_GAP.name, [])
    return {
        (0, semconv.ACTIVE.name): f"{service.total(semconv.ACTIVE.name)}",
        (1, semconv.CONNECTIONS.name): f"{service.total(semconv.CONNECTIONS.name)}",
        (2, f"{semconv.MESSAGES.name}, a second"): "-" if messages is None else f"{messages:.1f}",
        **{(3, f"  {kind}, in all"): f"{count}" for kind, count in by_type.items()},
        (4, f"{semconv.IO.name}, a second"): _bytes(size),
        (5, f"{semconv.FIRST_MESSAGE.name}, p50"): _seconds(quantile(first, 0.50)),
        (6, f"{semconv.FIRST_MESSAGE.name}, p95"): _seconds(quantile(first, 0.95)),
        (7, f"{semconv.MESSAGE_GAP.name}, mean"): _seconds(mean(gaps)),
        (8, semconv.SLOW_SENDS.name): f"{service.total(semconv.SLOW_SENDS.name)}",
        (9, semconv.STALLED.name): f"{service.total(semconv.STALLED.name)}",
        (10, semconv.BACKLOG_SIZE.name): _bytes(service.total(semconv.BACKLOG_SIZE.name)),
    }


def closed_line(service: str, record: LogRecord) -> Text:
    """A connection that has ended, from its ``sse.connection.closed`` event."""
    found = attributes(record.attributes)
    reason = found[semconv.CLOSE_REASON]
    words = [
        f"{datetime.fromtimestamp(record.time_unix_nano / 1e9):%H:%M:%S}",
        f"{service:<9} {found.get(semconv.HTTP_ROUTE, '-'):<13} {reason:<17}",
        f"{found[semconv.TOTAL_MESSAGES]:>5} msg {_bytes(found[semconv.TOTAL_IO]):>8}",
        f"{_seconds(found[semconv.TOTAL_DURATION]):>7}",
        f"first {_seconds(found.get(semconv.TOTAL_FIRST_MESSAGE)):>6}",
        found.get(semconv.CLIENT_ADDRESS, "-"),
        found.get(semconv.ERROR_TYPE, ""),
    ]
    return Text(" ".join(words).rstrip(), style=COLOURS[reason])


def quantile(histograms: Points, share: float) -> float | None:
    """The quantile of all ``histograms`` together, even within a bucket; None for no records."""
    counts: list[int] = [sum(n) for n in zip(*(h.bucket_counts for h in histograms), strict=True)]
    wanted, below = share * sum(counts), 0
    if not wanted:
        return None
    bounds: list[float] = list(histograms[0].explicit_bounds)
    for count, lower, upper in zip(counts, [0.0, *bounds], bounds, strict=False):
        if below + count >= wanted:
            return lower + (upper - lower) * (wanted - below) / count
        below += count
    return bounds[-1]


def mean(histograms: Points) -> float | None:
    count: int = sum(h.count for h in histograms)
    total: float = sum(h.sum for h in histograms)
    return total / count if count else None


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"
