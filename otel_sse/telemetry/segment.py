"""One span of a stream, and the messages that it may record as events when it ends.

An SDK event weighs some 600 bytes and takes 3.5 us, so a message is buffered as a few numbers and
becomes an event only when the segment ends: the first and the last messages and slow ones between
them (``edges``), or every one (``all``), never more than the span has room for.

With ``edges`` the buffer has 32 slots of 26 bytes: message 0 to 15 of the segment at slots 0 to
15, and every later message at slot ``16 + number % 16``, so that the last 16 are always there.
With ``all`` it has as many slots as the span has room for events, and is full after the last one.
"""

import sys
from collections.abc import Iterator
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from opentelemetry.trace import Span

from otel_sse.semconv import EDGE_MESSAGES, EDGE_SLOW_SENDS, MAX_EVENT_ID, MAX_SPAN_EVENTS
from otel_sse.telemetry.sdk_internals import remaining_event_capacity

# Time (s, monotonic), wait (s), size (bytes), index of the event type.
_RECORD: Final = Struct("ddQH")
_SIZE: Final = _RECORD.size
_pack: Final = _RECORD.pack_into
_GROWTH: Final = 4 * _SIZE


class RecordedMessage(NamedTuple):
    """A message as it was buffered. ``number`` is 0, 1, 2 … in its segment; ``at`` is monotonic and
    ``wait`` a duration, both in seconds; ``size`` is in bytes; ``type`` indexes the event types.
    """

    number: int
    at: float
    wait: float
    size: int
    type: int
    id: str | None


class Segment:
    """A stream's span and its message buffer, from one point in time to the next."""

    __slots__ = (
        "_buffer",
        "_head",
        "_ids",
        "_last",
        "_slow",
        "before",
        "count",
        "index",
        "span",
    )

    def __init__(
        self, span: Span, index: int, before: int = 0, *, buffers: bool, every: bool
    ) -> None:
        self.span = span
        self.index = index
        capacity = remaining_event_capacity(span) if buffers and span.is_recording() else 0
        # Messages before it, and so far.
        self.before = before
        self.count = 0
        self._buffer: bytearray | None = bytearray() if capacity else None
        # Slots that are written once; with ``edges`` as many behind them are overwritten in turn.
        self._head = capacity if every else EDGE_MESSAGES
        # The number of the message that fills the buffer.
        self._last = capacity - 1 if every else sys.maxsize
        self._slow: list[RecordedMessage] | None = None
        self._ids: dict[int, str] | None = None

    def append(self, at: float, wait: float, size: int, kind: int) -> bool:
        """Buffers a message; returns whether the segment is full with it."""
        number = self.count
        self.count = number + 1
        buffer = self._buffer
        if buffer is None:
            return False
        head = self._head
        slot = (number if number < head else head + number % head) * _SIZE
        try:
            _pack(buffer, slot, at, wait, size, kind)
        except StructError:
            buffer.extend(bytes(max(_GROWTH, slot + _SIZE - len(buffer))))
            _pack(buffer, slot, at, wait, size, kind)
        return number >= self._last

    def append_slow(self, at: float, wait: float, size: int, kind: int) -> None:
        """Keeps the message just buffered, also when its slot is overwritten."""
        if self._buffer is not None and self.count > self._head:
            self._slow = slow = self._slow or []
            if len(slow) < EDGE_SLOW_SENDS:
                slow.append(RecordedMessage(self.count - 1, at, wait, size, kind, None))

    def set_event_id(self, event_id: str) -> None:
        """Sets the id of the message just buffered, of which no more is kept than is exported."""
        if self._buffer is not None:
            self._ids = ids = self._ids if self._ids is not None else {}
            ids[self.count - 1] = event_id[:MAX_EVENT_ID]
            if len(ids) > 2 * MAX_SPAN_EVENTS:
                for number in sorted(ids)[self._head : -self._head]:
                    del ids[number]

    def selected_messages(self) -> list[RecordedMessage]:
        """The messages to record, in order, no more than the span has room for."""
        selected = list(self._buffered())
        if self._slow:
            found = {each.number: each for each in (*self._slow, *selected)}
            selected = [found[number] for number in sorted(found)]
        capacity = remaining_event_capacity(self.span, less_present=True)
        if len(selected) > capacity:
            last = capacity // 2
            selected = selected[: capacity - last] + (selected[-last:] if last else [])
        return selected

    def _buffered(self) -> Iterator[RecordedMessage]:
        slots = list(_RECORD.iter_unpack(self._buffer or b""))
        head, count, ids = self._head, self.count if slots else 0, self._ids or {}
        for number in (*range(min(count, head)), *range(max(head, count - head), count)):
            at, wait, size, kind = slots[number if number < head else head + number % head]
            yield RecordedMessage(number, at, wait, size, kind, ids.get(number))
