"""What a stream is: the attributes of its spans and events, and its clock."""

from __future__ import annotations

import os
from time import perf_counter, time_ns
from typing import Any

from otel_sse import semconv
from otel_sse.stream.fields import MessageFields
from otel_sse.stream.info import ClientStreamInfo, ServerStreamInfo
from otel_sse.telemetry.cardinality import clip_text
from otel_sse.telemetry.telemetry import Telemetry


class StreamIdentity(MessageFields):
    """Set when the response starts, and never changed.

    Attributes:
        started: the request's start, monotonic seconds.
        id: random, 16 hexadecimal digits.

    """

    __slots__ = (
        "_path",
        "_protocol",
        "_started_unix",
        "_user_agent",
        "client",
        "id",
        "resumed",
        "started",
        "status",
    )

    def __init__(
        self, telemetry: Telemetry, info: ServerStreamInfo | ClientStreamInfo, started: float
    ) -> None:
        self._telemetry = telemetry
        self.started = started
        self._started_unix = time_ns() - int((perf_counter() - started) * 1e9)
        self.id = os.urandom(8).hex()
        self.series = info.series(telemetry)
        self.client = clip_text(info.client) or None  # empty behind a Unix socket
        self.status = info.status
        self.resumed = info.resumed
        self._path = clip_text(info.known_path)
        self._protocol = info.protocol
        # As the server holds it: a copy for each stream would weigh more than decoding it later.
        self._user_agent = info.user_agent

    @property
    def user_agent(self) -> str | None:
        return clip_text(self._user_agent)

    @property
    def attributes(self) -> dict[str, Any]:
        """Those of all its spans and events; made anew, since a dictionary for each weighs much."""
        found = {
            **self.series.attributes,
            semconv.CONNECTION_ID: self.id,
            semconv.RESUMED: self.resumed,
            semconv.HTTP_STATUS: self.status,
            semconv.PROTOCOL_VERSION: self._protocol,
            semconv.URL_PATH: self._path,
            semconv.CLIENT_ADDRESS: self.client,
            semconv.USER_AGENT: self.user_agent,
        }
        return {name: value for name, value in found.items() if value is not None}

    def unix_time(self, at: float) -> int:
        """Monotonic seconds as Unix nanoseconds."""
        return self._started_unix + int((at - self.started) * 1e9)
