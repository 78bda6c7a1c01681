"""The fields of a stream that each message reads or writes.

With thousands of streams none of this is in the processor's cache when a message comes, and each
line of 64 bytes that it touches takes some 0.1 us. A base class's slots come before those of its
subclasses: here they are side by side, where those of four classes would lie in six lines.
"""

from __future__ import annotations

from typing import Any

from otel_sse.process.backlog import Transport
from otel_sse.telemetry.segment import Segment
from otel_sse.telemetry.series import Counts, MetricSeries
from otel_sse.telemetry.telemetry import Telemetry


class MessageFields:
    """Set by its subclasses. Times are monotonic seconds.

    Attributes:
        counts: where its messages are counted; see ``telemetry.series``.
        disconnected: the peer has disconnected, or the stream is closed.
        due: from when on a message has to look at what is due; ``CLOSED`` once the stream is.
        io: body bytes.
        last_message: the last message's time, or the stream's start.
        series: its base attributes.
        transport: the asyncio transport, where it is known and the stream is open.

    """

    __slots__ = (
        "_parser",
        "_segment",
        "_telemetry",
        "_wait_threshold",
        "counts",
        "disconnected",
        "due",
        "io",
        "last_message",
        "series",
        "transport",
    )

    _parser: Any
    _segment: Segment
    _telemetry: Telemetry
    _wait_threshold: float
    counts: Counts
    disconnected: bool
    due: float
    io: int
    last_message: float
    series: MetricSeries
    transport: Transport | None
