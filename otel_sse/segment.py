"""One span of a connection, and the messages that it may tell when it ends.

An SDK event weighs some 600 bytes and costs 3.5 us, so a message is kept as a few numbers and
becomes an event only when the segment ends: the first and the last ones and slow ones between
them (``edges``), or every one (``all``), never more than the span has room for.
"""

from collections.abc import Iterator
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from opentelemetry.trace import Span

from otel_sse.events import room
from otel_sse.semconv import EDGE_MESSAGES, EDGE_SLOW_SENDS, MAX_SPAN_EVENTS

# Time (s, monotonic), wait (s), size (bytes), index of the event type.
_RECORD: Final = Struct("ddQH")
_SIZE: Final = _RECORD.size
_pack: Final = _RECORD.pack_into
_GROWTH: Final = bytes(4 * _SIZE)
_EDGES: Final = 2 * EDGE_MESSAGES * _SIZE


class Told(NamedTuple):
    """A message as it was kept. ``number`` is 0, 1, 2 … in its segment."""

    number: int
    at: float
    wait: float
    size: int
    type: int
    id: str | None


class Segment:
    """Where and what a connection tells from one point in time to the next."""

    __slots__ = "_end _every _head _ids _kept _next _slow before count index span".split()

    def __init__(
        self, span: Span, index: int, before: int = 0, *, keeps: bool, every: bool
    ) -> None:
        self.span = span
        self.index = index
        space = room(span) if keeps and span.is_recording() else 0
        # Messages before it, and so far.
        self.before = before
        self.count = 0
        self._kept: bytearray | None = bytearray() if space else None
        # Slots up to this one are taken once, the same number behind it round and round; where
        # every message is told, there is none behind it.
        self._every = every
        self._head = space if every else EDGE_MESSAGES
        # Bytes from the first slot to the next and to the end of the last one.
        self._next = 0
        self._end = self._head * _SIZE if every else _EDGES
        self._slow: list[Told] | None = None
        self._ids: dict[int, str] | None = None

    def keep(self, at: float, wait: float, size: int, kind: int) -> bool:
        """Whether the segment is full with it."""
        self.count += 1
        kept = self._kept
        if kept is None:
            return False
        slot = self._next
        try:
            _pack(kept, slot, at, wait, size, kind)
        except StructError:
            kept.extend(_GROWTH)
            _pack(kept, slot, at, wait, size, kind)
        slot += _SIZE
        if slot < self._end:
            self._next = slot
            return False
        self._next = self._head * _SIZE
        return self._every

    def keep_slow(self, at: float, wait: float, size: int, kind: int) -> None:
        """Remembers the message just kept beyond its turn."""
        if self._kept is not None and self.count > self._head:
            self._slow = slow = self._slow or []
            if len(slow) < EDGE_SLOW_SENDS:
                slow.append(Told(self.count - 1, at, wait, size, kind, None))

    def keep_id(self, event_id: str) -> None:
        """The id of the message just kept; at most 64 characters of it."""
        if self._kept is not None:
            self._ids = ids = self._ids if self._ids is not None else {}
            ids[self.count - 1] = event_id[:64]
            if len(ids) > 2 * MAX_SPAN_EVENTS:
                for number in sorted(ids)[self._head : -self._head]:
                    del ids[number]

    def told(self) -> list[Told]:
        """What there is to tell, in order, no more than the span has room for."""
        chosen = list(self._stored())
        if self._slow:
            found = {told.number: told for told in (*self._slow, *chosen)}
            chosen = [found[number] for number in sorted(found)]
        most = room(self.span, held=True)
        if len(chosen) > most:
            last = most // 2
            chosen = chosen[: most - last] + (chosen[-last:] if last else [])
        return chosen

    def _stored(self) -> Iterator[Told]:
        kept = list(_RECORD.iter_unpack(self._kept or b""))
        head, count, ids = self._head, self.count if kept else 0, self._ids or {}
        for number in (*range(min(count, head)), *range(max(head, count - head), count)):
            at, wait, size, kind = kept[number if number < head else head + number % head]
            yield Told(number, at, wait, size, kind, ids.get(number))
