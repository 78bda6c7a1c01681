"""The telemetry of this process: who shares it, and what is live. A forked child has neither."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import metrics

from otel_sse import backlog, garbage
from otel_sse.config import agree, load
from otel_sse.connection import Connection
from otel_sse.opening import Opening
from otel_sse.semconv import HTTP_ROUTE, SERVER, Side
from otel_sse.shutdown import Exit
from otel_sse.telemetry import Providers, Telemetry

if TYPE_CHECKING:
    from otel_sse.current import Request

_lock = threading.Lock()
# By meter provider (None is the global one, whether it has been set yet or not) and side.
_telemetries: dict[tuple[Any, Side], Telemetry] = {}


def obtain(
    user: object, providers: Providers, options: dict[str, Any], side: Side = SERVER
) -> Telemetry:
    """The telemetry of ``providers``, made at the first call; ``release`` gives it back.

    Raises:
        ValueError, TypeError: an option is bad; see ``config.load``.

    """
    config = load(options)
    meter = providers.meter
    key = None if meter is None or meter is metrics.get_meter_provider() else meter
    with _lock:
        for (other, _), each in _telemetries.items():
            if other is key and each.users:
                # The first one's holds for all that share a meter provider.
                config = agree(each.config, config)
                break
        telemetry = _telemetries.get((key, side))
        if telemetry is None:
            telemetry = _telemetries[key, side] = Telemetry(config, providers, side)
        telemetry.serve(user, config)
        exit_.watch()
        garbage.watch()
    return telemetry


def release(user: object, telemetry: Telemetry) -> None:
    """Ends what ``obtain`` began for ``user``; live connections are still told to their end."""
    with _lock:
        telemetry.release(user)
        if not any(each.users for each in _telemetries.values()):
            exit_.unwatch()


def open_connection(telemetry: Telemetry, opening: Opening, request: Request) -> Connection:
    """Begins to tell a stream whose response has started."""
    exit_.chain()
    return Connection(telemetry, opening, request)


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


def connections() -> list[ConnectionInfo]:
    """The live connections that this process serves, oldest first: a snapshot, safe from any
    thread.
    """
    served = [each for each in _all() if each.side is SERVER]
    live = [each for telemetry in served for each in telemetry.snapshot()]
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
        )
        for each in sorted(live, key=lambda each: each.started)
    ]


def _backlog(transport: Any) -> int | None:
    layers = backlog.read(transport) if transport is not None else None
    return sum(layers.values()) if layers else None


def _all() -> list[Telemetry]:
    return list(_telemetries.values())


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    for telemetry in _all():
        telemetry.reset()
    exit_.reset()


exit_: Final = Exit(_all)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
