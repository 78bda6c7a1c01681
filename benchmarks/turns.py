"""Variants that are measured in one process, by turns, a few milliseconds at a time.

A machine that others use too changes its speed within seconds, and two processes of the same code
differ. So the variants of a comparison take turns, in an order that is random in each round: what
disturbs a whole round is in the difference of none, and the fastest turns are of the same moments.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import cycle, islice
from time import process_time

import variants

Micros = dict[str, list[float]]


async def by_turns(
    names: Iterable[str], turn: Callable[[str], Awaitable[float]], rounds: int
) -> Micros:
    """What ``turn`` gives for each name, round by round, without the first tenth of the rounds."""
    order = list(names)
    found: Micros = {name: [] for name in order}
    warm = rounds // 10
    for number in range(warm + rounds):
        for name in random.sample(order, len(order)):
            micros = await turn(name)
            if number >= warm:
                found[name].append(micros)
    return found


class Streams:
    """Endless streams, of which one at a time sends ``size`` messages, as fast as it can."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._gates: dict[str, asyncio.Event] = {}
        self._rested = asyncio.Event()
        # Messages so far.
        self.sent: Counter[str] = Counter()

    async def source(self, name: str) -> AsyncIterator[bytes]:
        """The messages of a stream. The first one goes out at once."""
        messages = cycle(variants.MESSAGES)
        yield next(messages)
        self.sent[name] += 1
        gate = self._gates[name] = asyncio.Event()
        while True:
            self._rested.set()
            await gate.wait()
            gate.clear()
            for message in islice(messages, self._size):
                yield message
            self.sent[name] += self._size

    async def begun(self) -> None:
        """Waits for the next stream's first message."""
        await self._rested.wait()
        self._rested.clear()

    async def turn(self, name: str) -> float:
        """CPU (us) of a message, of the whole process with all its threads."""
        began = process_time()
        self._gates[name].set()
        await self._rested.wait()
        self._rested.clear()
        return (process_time() - began) / self._size * 1e6
