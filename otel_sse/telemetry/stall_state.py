"""How far a stream's stall has been reported."""

from enum import IntEnum


class StallState(IntEnum):
    """A collection finds a stall; the stream's own loop emits the event, or the recovery."""

    ACTIVE = 0
    """Not stalled, as far as a collection has seen."""
    PENDING = 1
    """A collection has asked for an event."""
    SUPPRESSED = 2
    """The collection had emitted its limit of events already."""
    REPORTED = 3
    """The event has been emitted."""
