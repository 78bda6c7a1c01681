"""The figures of /status, from a reading and the last minute: their keys bear their units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import otel_sse
from server import heap
from server.figures import FAILED, Metric, Reading, Sample, Window
from server.meters import ERRORS, REJECTED, WRITES

# Routes, event types and points of the application's own metrics that are listed one by one.
_MOST: Final = 20
_MAX_METRICS: Final = 50
_ACTIVE: Final = "sse.server.active_connections"
_OPENED: Final = "sse.server.connections"
_MESSAGES: Final = "sse.server.messages"
_IO: Final = "sse.server.io"
_SEND_TIME: Final = "sse.server.send.time"


@dataclass(frozen=True)
class Moment:
    """A point of the dashboard's charts; rates are those since the moment before."""

    at: float
    figures: dict[str, float]
    shown: dict[str, float | None]

    @classmethod
    def of(cls, sample: Sample, unix: float, before: Moment | None) -> Moment:
        """``unix`` is the sample's time, as Unix seconds."""
        figures = sample.figures

        def gained(name: str) -> float | None:
            if before is None or name not in figures:
                return None
            return max(0.0, figures[name] - before.figures.get(name, 0.0))

        def rate(name: str) -> float | None:
            more = gained(name)
            return None if more is None or before is None else more / (sample.at - before.at)

        messages, waited = gained(_MESSAGES), gained(_SEND_TIME)
        shown = {
            "time": unix,
            "connections": figures.get(_ACTIVE, 0.0),
            "messages_per_second": rate(_MESSAGES),
            "bytes_per_second": rate(_IO),
            "rss_bytes": figures.get("process.memory.usage"),
            "heap_bytes": figures.get(heap.NAME),
            "send_ms": 1000 * waited / messages if messages and waited is not None else None,
            "backlog_bytes": figures.get("sse.server.backlog.size"),
            "worst_backlog_bytes": figures.get("sse.server.backlog.max"),
            "dropped_per_minute": per_minute(rate("sse.server.dropped_messages")),
            "refused_per_minute": per_minute(rate(REJECTED)),
            "failed_per_minute": per_minute(rate(FAILED)),
        }
        return cls(sample.at, figures, {name: _rounded(value) for name, value in shown.items()})


def per_minute(rate: float | None) -> float | None:
    return None if rate is None else 60 * rate


def view(reading: Reading, window: Window) -> dict[str, Any]:
    """The figures of /status, without memory and alerts."""
    return {
        "window_seconds": round(window.span, 1),
        "reading_ms": round(1000 * reading.cost, 1),
        "connections": _connections(reading, window),
        "messages": _messages(reading, window),
        "processing": _processing(reading, window),
        "backlog": {
            "bytes": _whole(reading.figure("sse.server.backlog.size")),
            "max_bytes": _whole(reading.figure("sse.server.backlog.max")),
            "bytes_by_layer": reading.by("sse.server.backlog.size", "sse.backlog.layer"),
        },
        "failures": _failures(reading, window),
        "server": _application(reading),
    }


def _failures(reading: Reading, window: Window) -> dict[str, Any]:
    """What went wrong, in the window and since the start; null where it is not recorded."""
    names = {
        "dropped": "sse.server.dropped_messages",
        "failed": FAILED,
        "refused": REJECTED,
        "errors": ERRORS,
    }
    failures: dict[str, Any] = {}
    for key, name in names.items():
        known = window.is_counter(name)
        failures[f"{key}_in_window"] = round(window.gained(name)) if known else None
        failures[f"{key}_total"] = _whole(window.figure(name))
    attributes = {"refused": (REJECTED, "reason"), "errors": (ERRORS, "class")}
    for key, (name, attribute) in attributes.items():
        counts = reading.by(name, attribute)
        failures[f"{key}_by_{attribute}"] = {each: count for each, count in counts.items() if count}
    return failures


def _connections(reading: Reading, window: Window) -> dict[str, Any]:
    clients = reading.clients
    ended = reading.spread("sse.server.connection.duration")
    return {
        "active": _whole(reading.figure(_ACTIVE)) or 0,
        "total": _whole(reading.figure(_OPENED)) or 0,
        "resumed": sum(
            int(point.value)
            for point in reading.points(_OPENED)
            if (point.attributes or {}).get("sse.resumed")
        ),
        # Those of the last minute, also while there is not a minute yet.
        "rate_per_minute": _rounded(60 * window.gained(_OPENED) / max(window.span, 60.0)),
        "mean_duration_seconds": _rounded(ended.mean),
        "max_duration_seconds": _rounded(ended.max),
        "mean_age_seconds": _rounded(clients.mean_age),
        "max_age_seconds": _rounded(reading.figure("sse.server.connection.age.max")),
        "max_idle_seconds": _rounded(reading.figure("sse.server.connection.idle.max")),
        "stalled": _whole(reading.figure("sse.server.stalled_connections")) or 0,
        "mean_messages": _rounded(
            clients.messages / clients.connections if clients.connections else 0.0
        ),
        "max_messages": clients.max_messages,
        "active_by_route": _top(reading.by(_ACTIVE, "http.route")),
        "list": [_connection(each) for each in clients.listed],
        "by_client_address": dict(clients.busiest),
        "other_client_addresses": clients.other_addresses,
        "other_client_connections": clients.other_connections,
        "max_per_client_address": _whole(reading.figure("sse.server.connections_per_client.max")),
        "ended": ended.count,
        "ended_by_reason": reading.by("sse.server.connection.duration", "sse.close.reason"),
    }


def _connection(info: otel_sse.ConnectionInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "client_address": info.client_address,
        "user_agent": info.user_agent,
        "route": info.route,
        "age_seconds": _rounded(info.age),
        "idle_seconds": _rounded(info.idle),
        "messages": info.messages,
        "bytes": info.bytes,
        "backlog_bytes": info.backlog,
    }


def _messages(reading: Reading, window: Window) -> dict[str, Any]:
    return {
        "total": _whole(reading.figure(_MESSAGES)) or 0,
        "total_bytes": _whole(reading.figure(_IO)) or 0,
        "per_second": _rounded(window.rate(_MESSAGES)),
        "per_write": _rounded(window.mean(_MESSAGES, WRITES)),
        "bytes_per_second": _rounded(window.rate(_IO)),
        "mean_bytes": _rounded(window.mean(_IO, _MESSAGES)),
        "total_by_type": _top(reading.by(_MESSAGES, "sse.event.type")),
        "dropped": _whole(reading.figure("sse.server.dropped_messages")) or 0,
        "dropped_by_reason": reading.by("sse.server.dropped_messages", "sse.drop.reason"),
        "comments": _whole(reading.figure("sse.server.comments")) or 0,
    }


def _processing(reading: Reading, window: Window) -> dict[str, Any]:
    """How long messages waited in their sends: the mean of the last minute from exact counters, the
    extremes since the start from the histogram.
    """
    spread = reading.spread("sse.server.send.duration")
    mean = window.mean(_SEND_TIME, _MESSAGES)
    return {
        "min_ms": _ms(spread.min),
        "mean_ms": _ms(mean),
        "max_ms": _ms(spread.max),
        "mean_ms_since_start": _ms(_over_all(reading)),
        "slow_sends": _whole(reading.figure("sse.server.slow_sends")) or 0,
    }


def _over_all(reading: Reading) -> float | None:
    messages = reading.figure(_MESSAGES)
    return (reading.figure(_SEND_TIME) or 0.0) / messages if messages else None


def _application(reading: Reading) -> dict[str, Any]:
    own = [
        (name, metric)
        for name, metric in sorted(reading.metrics.items())
        if metric.scope == "server" and name not in (heap.NAME, heap.TOTAL)
    ]
    return {name: _own(metric) for name, metric in own[:_MAX_METRICS]}


def _own(metric: Metric) -> dict[str, Any]:
    """A metric of the application's own, of any kind."""
    own: dict[str, Any] = {"unit": metric.unit}
    if metric.is_histogram:
        count = sum(point.count for point in metric.points)
        total = sum(point.sum for point in metric.points)
        return {**own, "count": count, "mean": _rounded(total / count if count else None)}
    own["value"] = _rounded(sum(point.value for point in metric.points))
    by = {
        " ".join(map(str, point.attributes.values())): point.value
        for point in metric.points[:_MOST]
        if point.attributes
    }
    return {**own, "by": by} if by else own


def _top(found: dict[str, float]) -> dict[str, float]:
    """The largest, and the rest as one."""
    pairs = list(found.items())
    largest, rest = dict(pairs[:_MOST]), sum(value for _, value in pairs[_MOST:])
    # A route or a type may be named so, too.
    return largest | ({"others": largest.get("others", 0) + rest} if rest else {})


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else _rounded(1000 * seconds)


def _rounded(value: float | None) -> float | None:
    """To a thousandth: more digits would only be noise."""
    return None if value is None else round(value, 3)
