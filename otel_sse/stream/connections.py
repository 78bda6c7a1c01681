"""The live connections of this process, for a status page or a debugger."""

from __future__ import annotations

import time
from typing import NamedTuple

from otel_sse.process.backlog import Transport, read_backlog
from otel_sse.semconv import HTTP_ROUTE
from otel_sse.stream.server import ServerStream
from otel_sse.stream.sharing import all_telemetry


class ConnectionInfo(NamedTuple):
    """A live connection. ``age`` and ``idle`` (time since its last message) are in seconds,
    ``bytes`` and ``backlog`` in bytes; ``backlog`` is None where it cannot be read.
    """

    id: str
    route: str | None
    client_address: str | None
    age: float
    idle: float
    messages: int
    bytes: int
    backlog: int | None
    user_agent: str | None


def connections() -> list[ConnectionInfo]:
    """The live connections that this process serves, oldest first: a snapshot, safe from any
    thread.
    """
    live = [
        stream
        for telemetry in all_telemetry()
        for stream in telemetry.streams.live_streams()
        if isinstance(stream, ServerStream)
    ]
    now = time.perf_counter()
    return [
        ConnectionInfo(
            id=each.id,
            route=each.series.attributes.get(HTTP_ROUTE),
            client_address=each.client,
            age=now - each.started,
            idle=each.idle(now),
            messages=each.sequence,
            bytes=each.io,
            backlog=_backlog(each.transport),
            user_agent=each.user_agent,
        )
        for each in sorted(live, key=lambda each: each.started)
    ]


def _backlog(transport: Transport | None) -> int | None:
    layers = read_backlog(transport) if transport is not None else None
    return sum(layers.values()) if layers else None
