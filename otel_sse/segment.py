"""One span of a connection, and the messages that it may tell when it ends.

An SDK event weighs some 600 bytes and costs 3.5 us, so a message is kept as a few numbers and
becomes an event only when the segment ends: the first and the last ones and slow ones between
them (``edges``), or every one (``all``), never more than the span has room for.
"""

from collections.abc import Iterator
from struct import Struct
from struct import error as StructError
from typing import Any, Final, NamedTuple

from opentelemetry.trace import Span

from otel_sse.semconv import EDGE_MESSAGES, EDGE_SLOW_SENDS, MAX_SPAN_EVENTS

# Time (s, monotonic), wait (s), size (bytes), index of the event type.
_RECORD: Final = Struct("<ddQH")
_SIZE: Final = _RECORD.size
_pack: Final = _RECORD.pack_into
_GROWTH: Final = bytes(4 * _SIZE)


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

    __slots__ = ("_head", "_ids", "_kept", "_slow", "count", "full", "index", "span")

    def __init__(self, span: Span, index: int, *, keeps: bool, every: bool) -> None:
        self.span = span
        self.index = index
        room = _room(span) if keeps and span.is_recording() else 0
        # Messages so far, and how many of them fill the segment (0: no number does).
        self.count = 0
        self.full = room if every else 0
        # Slots up to this one are taken once, the same number behind it round and round.
        self._head = self.full or EDGE_MESSAGES
        self._kept: bytearray | None = bytearray() if room else None
        self._slow: list[Told] | None = None
        self._ids: dict[int, str] | None = None

    def keep(self, at: float, wait: float, size: int, kind: int) -> None:
        number = self.count
        self.count = number + 1
        kept = self._kept
        if kept is None:
            return
        head = self._head
        slot = number if number < head else head + number % head
        try:
            _pack(kept, slot * _SIZE, at, wait, size, kind)
        except StructError:
            kept.extend(_GROWTH)
            _pack(kept, slot * _SIZE, at, wait, size, kind)

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
        found = {told.number: told for told in self._stored()}
        for told in self._slow or ():
            found.setdefault(told.number, told)
        chosen = [found[number] for number in sorted(found)]
        room = _room(self.span, held=True)
        if len(chosen) > room:
            last = room // 2
            chosen = chosen[: room - last] + (chosen[-last:] if last else [])
        return chosen

    def _stored(self) -> Iterator[Told]:
        if not self._kept:
            return
        head, count = self._head, self.count
        numbers = [*range(min(count, head)), *range(max(head, count - head), count)]
        for number in numbers:
            slot = number if number < head else head + number % head
            at, wait, size, kind = _RECORD.unpack_from(self._kept, slot * _SIZE)
            event_id = self._ids.get(number) if self._ids else None
            yield Told(number, at, wait, size, kind, event_id)


def _room(span: Span, *, held: bool = False) -> int:
    """How many events of ours ``span`` can take, with ``held`` less those that it has.

    The API does not tell a span's limit; the SDK's own attribute is used where it is found.
    """
    limits: Any = getattr(span, "_limits", None)
    limit = getattr(limits, "max_events", None)
    room = MAX_SPAN_EVENTS
    if isinstance(limit, int):
        taken = len(getattr(span, "events", ())) if held else 0
        room = min(room, limit - taken)
    return max(room, 0)
