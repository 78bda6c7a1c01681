"""What is counted: the totals of a connection, or of all closed ones with the same attributes."""

from itertools import zip_longest
from math import ceil
from typing import Any, Final, Protocol

from otel_sse.semconv import MAX_RECORDS

_WINDOW: Final = 1.0


class Counted(Protocol):
    """Anything that holds totals. Messages are at the index of their event type, drops by their
    reason; ``send_time`` is in seconds, ``io`` in bytes.
    """

    messages: list[int]
    io: int
    send_time: float
    stalls: int
    skewed: int

    @property
    def comments(self) -> int: ...

    @property
    def dropped(self) -> dict[str, int] | None: ...


class Totals:
    """A sum of ``Counted``."""

    __slots__ = ("comments", "dropped", "io", "messages", "send_time", "skewed", "stalls")

    def __init__(self) -> None:
        self.messages: list[int] = []
        self.dropped: dict[str, int] = {}
        self.comments = 0
        self.io = 0
        self.send_time = 0.0
        self.stalls = 0
        self.skewed = 0

    def add(self, other: Counted) -> None:
        both = zip_longest(self.messages, other.messages, fillvalue=0)
        self.messages = [ours + theirs for ours, theirs in both]
        # Copied first: the connection's own thread may add a key meanwhile.
        for reason, count in (other.dropped or {}).copy().items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.comments += other.comments
        self.io += other.io
        self.send_time += other.send_time
        self.stalls += other.stalls
        self.skewed += other.skewed


class Series:
    """One set of base attributes: what its closed connections left, and its histograms' sampler.

    Messages are recorded in windows that end after ``MAX_RECORDS`` records or a second,
    whichever comes first; in each, every ``stride``-th message is taken, and the rate that one
    window saw sets the next one's stride. Up to 100 messages a second the stride is 1: exact.
    """

    __slots__ = (
        "_opening _records _stride attributes closed layers left opened span_name until"
    ).split()

    def __init__(self, attributes: dict[str, Any], span_name: str = "SSE") -> None:
        self.attributes = attributes
        self.span_name = span_name
        self.closed = Totals()
        # Connections opened, fresh and resumed.
        self.opened = [0, 0]
        # Backlog layers that could be read here before: with no connection open they hold 0.
        self.layers: set[str] = set()
        # Monotonic end of the window, and the messages to pass over before the next record.
        self.until = 0.0
        self.left = 0
        self._opening = 0.0
        self._stride = 1
        self._records = 0

    def take(self, now: float) -> None:
        """Notes that the message of ``now`` (s, monotonic) is recorded, and sets the next one.

        Called when ``now`` reaches ``until`` or ``left`` is used up.
        """
        full = self._records >= MAX_RECORDS
        if full or now >= self.until:
            seen = self._records * self._stride - self.left
            lasted = max(now - self._opening, 1e-6) if full else _WINDOW
            late = now - self.until > _WINDOW
            # A tenth above is let pass, or jitter would cost a series of just 100 its exactness.
            self._stride = 1 if late else max(1, ceil(seen / lasted / MAX_RECORDS - 0.1))
            self._opening = now
            self.until = now + _WINDOW
            self._records = 0
        self._records += 1
        self.left = self._stride - 1
