"""What an application may report of the stream that it serves."""

from __future__ import annotations

import logging

from otel_sse.semconv import CLOSE_REASONS
from otel_sse.stream.request import Request, find_current_request

_log = logging.getLogger("otel_sse")


class Current:
    """The stream of a request, see ``current``."""

    __slots__ = ("_request",)

    def __init__(self, request: Request | None) -> None:
        self._request = request

    def set_close_reason(self, reason: str) -> None:
        """Sets why the stream is about to end; it takes precedence over every other cause.

        Args:
            reason: a value of ``sse.close.reason``; any other is logged and ignored.

        """
        if reason not in CLOSE_REASONS:
            _log.warning(
                "otel_sse: current().set_close_reason(%r) is ignored: it takes %s",
                reason,
                ", ".join(CLOSE_REASONS),
            )
        elif self._request is not None:
            (self._request.stream or self._request.state).set_close_reason(reason)

    def record_dropped(self, n: int = 1, reason: str = "unknown") -> None:
        """Records that the application left ``n`` messages out of the stream, and why.

        Args:
            n: messages, 1 or more; any other number is logged and ignored.
            reason: chosen by the application; the first 16 that a process uses are exported.

        """
        if not isinstance(n, int) or n < 1:
            _log.warning("otel_sse: current().record_dropped(%r) is ignored: n is 1 or more", n)
        elif self._request is not None:
            (self._request.stream or self._request.state).record_dropped(n, str(reason))


def current() -> Current:
    """The stream that the running code serves; outside of one its methods do nothing.

    It may be taken before the stream starts, and kept.
    """
    request = find_current_request()
    return Current(None if request is None or request.over else request)
