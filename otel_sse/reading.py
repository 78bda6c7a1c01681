"""One event stream that is read: what a client's hook tells of it."""

from __future__ import annotations

from time import perf_counter
from typing import Final

from otel_sse import lifecycle, semconv
from otel_sse.connection import TIMEOUTS, Connection
from otel_sse.current import Request
from otel_sse.opening import Call
from otel_sse.telemetry import Telemetry

Errors = tuple[type[BaseException], ...]
_NEVER: Final = float("inf")


class Reading(Connection):
    """Told of every read, and of the one end.

    Args:
        telemetry: where it tells.
        call: what is known of it at the response's headers.
        started: when the request was made, monotonic seconds.
        breaks: what the library raises where the server or the network has cut the stream.
        timeouts: what it raises where a read took too long, beside Python's own.

    """

    __slots__ = ("_breaks", "_left", "_timeouts")

    def __init__(
        self, telemetry: Telemetry, call: Call, started: float, breaks: Errors, timeouts: Errors
    ) -> None:
        self._breaks = breaks
        self._timeouts = timeouts + TIMEOUTS
        request = Request()
        request.started = started
        lifecycle.exit_.chain()
        super().__init__(telemetry, call, request)
        # No send waits here.
        self._mark = _NEVER
        # Up to when the time is accounted for: as waiting, or as the reader's own.
        self._left = perf_counter()
        telemetry.connected(self, self._left - started)

    def asked(self) -> None:
        """The reader begins to wait. What it did before is not the stream's silence."""
        self.last += perf_counter() - self._left

    def waited(self) -> None:
        """The wait is over."""
        self._left = perf_counter()

    def received(self, chunk: bytes) -> None:
        """The reader is given ``chunk``."""
        now = perf_counter()
        self.last += now - self._left
        self._left = now
        self.sent(chunk, now, now)

    def _verdict(self, error: BaseException | None, completed: bool, cut: bool) -> str:
        if completed:
            return semconv.COMPLETED
        if isinstance(error, self._timeouts):
            return semconv.TIMEOUT
        if isinstance(error, self._breaks):
            return semconv.DISCONNECTED
        if isinstance(error, Exception):
            return semconv.ERROR
        # Left, closed, cancelled or forgotten by the reader.
        return semconv.CLIENT_CLOSE
