"""Whether something on the way held messages back, from when they came. No I/O.

Two kinds of evidence. Trace comments carry the time at which the server wrote each message:
messages that were written apart and come together have been held. Without them there is only the
rhythm: pauses within a message, blocks of one size, bursts with pauses between them. An
application may send in bursts by its own choice, so rhythm alone is a suspicion.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, NamedTuple

# Messages that come within this time of one another came together, in seconds.
TOGETHER: Final = 0.02
# A message that was held for less is of no interest, in seconds.
HELD: Final = 0.1
_PAUSE: Final = 0.1
_BURST_PAUSE: Final = 0.5
_MIN_MESSAGES: Final = 6


class Arrival(NamedTuple):
    """A message: when it came (monotonic, s), and when it was written (Unix, ns) if known."""

    time: float
    sent: int | None


class Chunk(NamedTuple):
    """What one read gave: when, its bytes, and whether it ended within a message."""

    time: float
    size: int
    within: bool


@dataclass(frozen=True)
class Buffering:
    """What is known.

    Attributes:
        state: ``none``, ``suspected``, ``found`` or ``unknown`` (too little came to judge).
        evidence: ``trace_comments``, ``rhythm`` or None.
        held: the longest time that a message was held, in seconds, where that is known.
        detail: a sentence.

    """

    state: str
    evidence: str | None
    held: float | None
    detail: str


def judge(
    arrivals: Sequence[Arrival],
    chunks: Sequence[Chunk],
    *,
    started: float,
    ended: bool,
    late: float = 0.0,
) -> Buffering:
    """Judges one stream.

    Args:
        arrivals: the messages, in order.
        chunks: the reads, in order.
        started: when the request was sent (monotonic, s).
        ended: whether the server has ended the stream.
        late: how late the reader itself was at most (s): a busy machine is no proxy.

    """
    known = [each for each in arrivals if each.sent is not None]
    if len(known) >= 2 and len(known) * 2 >= len(arrivals):
        return _by_trace_comments(known, max(HELD, 2 * late))
    return _by_rhythm(arrivals, chunks, started, ended, 2 * late)


def _groups(arrivals: Sequence[Arrival]) -> list[list[Arrival]]:
    groups: list[list[Arrival]] = []
    for each in arrivals:
        if groups and each.time - groups[-1][-1].time < TOGETHER:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _by_trace_comments(arrivals: Sequence[Arrival], threshold: float) -> Buffering:
    held_messages, longest = 0, 0.0
    for group in _groups(arrivals):
        sent = [each.sent or 0 for each in group]
        # The first waited for the last, but for the time that both took to come.
        held = (max(sent) - min(sent)) / 1e9 - (group[-1].time - group[0].time)
        if held >= threshold:
            held_messages += len(group)
            longest = max(longest, held)
    if held_messages * 10 >= len(arrivals) * 3:
        return Buffering(
            "found",
            "trace_comments",
            longest,
            f"{held_messages} of {len(arrivals)} messages were written apart but came together; "
            f"one was held for {longest:.1f} s",
        )
    return Buffering(
        "none",
        "trace_comments",
        longest,
        f"{len(arrivals)} messages came as they were written",
    )


def _by_rhythm(
    arrivals: Sequence[Arrival],
    chunks: Sequence[Chunk],
    started: float,
    ended: bool,
    tolerance: float,
) -> Buffering:
    if len(arrivals) < _MIN_MESSAGES:
        return Buffering("unknown", None, None, f"{len(arrivals)} messages are too few to judge")
    groups = _groups(arrivals)
    if len(groups) == 1:
        waited = arrivals[0].time - started
        if ended and waited >= 1:
            return Buffering(
                "suspected",
                "rhythm",
                None,
                f"all {len(arrivals)} messages came at once, {waited:.1f} s after the request, "
                "and the stream was over",
            )
        return Buffering("unknown", None, None, f"all {len(arrivals)} messages came at once")
    blocks = _blocks(chunks, max(_PAUSE, tolerance))
    within = [last for size, last in blocks if last.within]
    if len(within) >= 2 and len(within) * 2 >= len(blocks):
        sizes = [size for size, _ in blocks]
        common = max(set(sizes), key=sizes.count)
        known = f", in blocks of {common} bytes" if sizes.count(common) * 2 >= len(sizes) else ""
        return Buffering(
            "suspected",
            "rhythm",
            None,
            f"the stream paused {len(within)} times within a message{known}: a buffer that is "
            "sent when it is full does that",
        )
    size = median(len(group) for group in groups)
    pauses = [after[0].time - before[-1].time for before, after in itertools.pairwise(groups)]
    if size >= 3 and median(pauses) >= max(_BURST_PAUSE, tolerance):
        return Buffering(
            "suspected",
            "rhythm",
            None,
            f"messages came in bursts of {size:g}, {median(pauses):.1f} s apart",
        )
    return Buffering("none", "rhythm", None, f"{len(arrivals)} messages came one by one")


def _blocks(chunks: Sequence[Chunk], pause: float) -> list[tuple[int, Chunk]]:
    """The bytes between two pauses, and the last read before the pause; not the open last one."""
    found: list[tuple[int, Chunk]] = []
    size = 0
    for each, following in itertools.pairwise(chunks):
        size += each.size
        if following.time - each.time >= pause:
            found.append((size, each))
            size = 0
    return found
