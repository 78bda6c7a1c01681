"""Messages, their order, and how they get from publishers to readers.

All topics share one order of ids, so one ``Last-Event-ID`` is a place in all of them. A reader
that comes back first reads the history from there and is joined to the live messages when it has
caught up: what comes meanwhile is either in the last portion of history or in its outlet, and
the outlet refuses what that portion has. So nothing is lost or doubled in between.
"""

from __future__ import annotations

import json
import re
import sys
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple, Protocol

from server.meters import Meters
from server.settings import Settings

_ID: Final = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)
_MOST: Final = 2**64 - 1
_NEWLINE: Final = re.compile(r"\r\n|\r|\n")
# Bytes that a message's objects take beside its data and its frame, measured on CPython 3.12.
OVERHEAD: Final = 350
# Bytes that the history in memory may hold, whatever its length.
HISTORY_BYTES: Final = 64 * 2**20
# The type of the event by which a client learns that messages are missing.
GAP: Final = "gap"
# Types that a client would take for something else.
RESERVED: Final = (GAP, "open", "error")
MAX_TYPE: Final = 100


class Id(NamedTuple):
    """Milliseconds since 1970 and a number within them, as Redis Streams has it."""

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, text: str | None) -> Id | None:
        """The id that this is the text of; None where it is none."""
        match = _ID.fullmatch(text or "")
        found = match and cls(*map(int, match.groups()))
        return found if found and max(found) <= _MOST else None


# No message has a later one.
LAST: Final = Id(_MOST, _MOST)


@dataclass(frozen=True)
class Message:
    id: Id
    topic: str
    type: str
    data: str

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, about."""
        return len(self.frame) + sys.getsizeof(self.data) + OVERHEAD

    @cached_property
    def frame(self) -> bytes:
        """The message on the wire; made once for all who read it."""
        kind = f"event: {self.type}\n" if self.type != "message" else ""
        lines = "".join(f"data: {line}\n" for line in _NEWLINE.split(self.data))
        return f"id: {self.id}\n{kind}{lines}\n".encode()


def is_event_type(text: str) -> bool:
    """Whether messages may have that type: a line of printable characters. Others, as U+2028 and
    those that change the direction of writing, look like another type, or become one where they
    are removed.
    """
    return 0 < len(text) <= MAX_TYPE and text.isprintable() and text not in RESERVED


def gap(**what: object) -> bytes:
    """The event by which a client learns that it misses messages, and which; it has no id."""
    return f"event: {GAP}\ndata: {json.dumps(what)}\n\n".encode()


class Unavailable(Exception):
    """The broker did not take it; ``reason`` is the error's class, ``retry_after`` in seconds."""

    def __init__(self, why: str, reason: str, retry_after: float = 1.0) -> None:
        super().__init__(why)
        self.reason = reason
        self.retry_after = retry_after


class Reader(Protocol):
    """Where a broker puts live messages; it never waits."""

    topics: frozenset[str]

    def put(self, message: Message) -> None: ...

    def skip_to(self, last: Id) -> None:
        """Forgets, and takes no more, what is not after ``last``."""

    def end(self) -> None:
        """No more will come."""


class Broker(ABC):
    """``publish``, ``subscribe``, ``reachable`` and ``close``; how is up to its subclasses."""

    def __init__(self, settings: Settings, meters: Meters) -> None:
        self._meters = meters
        self._history = settings.history
        # Messages that are read from the history at once: they fit into a connection's memory.
        fit = settings.queue_bytes // settings.max_message_bytes
        self._portion = max(1, min(100, fit))
        self._queue_bytes = settings.queue_bytes
        # Readers by topic; "" is all of them. Dictionaries keep the order of arrival.
        self._readers: dict[str, dict[Reader, None]] = {}
        # The last message that readers were given.
        self._last: Id | None = None

    async def start(self) -> None:  # noqa: B027
        """Is called once, before anything else."""

    @abstractmethod
    async def publish(self, topic: str, type: str, data: str) -> Id:
        """Gives a message to all readers of the topic.

        Raises:
            Unavailable: it was not taken, or it is not known whether it was.

        """

    @property
    def reachable(self) -> bool:
        """Whether messages get through now."""
        return True

    async def subscribe(self, reader: Reader, after: Id | None) -> AsyncGenerator[bytes, None]:
        """What the reader has missed after that id, in portions. When it is exhausted, the reader
        is given all that comes later. Without an id, only the reader's place in the order.
        """
        if after is None:
            self._join(reader)
            if self._last is not None:
                yield f"id: {self._last}\n\n".encode()
            return
        forgotten, newest = await self._span()
        if not forgotten <= after <= newest:
            # Everything before `forgotten` may be lost; an id above the newest is none of ours.
            self._meters.gaps.add(1)
            yield gap(reason="history", after=str(after), oldest=str(forgotten))
            after = min(max(after, forgotten), newest)
        joined = False
        while True:
            read = await self._read(after, self._portion)
            forgotten, _ = await self._span()
            if after < forgotten:
                # Messages are published faster than this reader takes them, and forgotten.
                oldest = min(forgotten, read[0].id) if read else forgotten
                self._meters.gaps.add(1)
                yield gap(reason="history", after=str(after), oldest=str(oldest))
                after = oldest
            messages = self._fitting(read)
            full = len(messages) < len(read) or len(read) == self._portion
            if messages:
                after = messages[-1].id
                reader.skip_to(after)
                wanted = [each.frame for each in messages if _wants(reader, each)]
                if wanted:
                    yield b"".join(wanted)
            if joined and not full:
                return
            joined = not full
            (self._join if joined else self.unsubscribe)(reader)

    def _fitting(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The first ones, as many as fit: data of many lines is far longer on the wire."""
        size = 0
        for number, message in enumerate(messages):
            size += len(message.frame)
            if number and size > self._queue_bytes:
                return messages[:number]
        return messages

    def unsubscribe(self, reader: Reader) -> None:
        for topic in reader.topics or ("",):
            readers = self._readers.get(topic, {})
            readers.pop(reader, None)
            if not readers:
                self._readers.pop(topic, None)

    async def close(self) -> None:
        """Ends all readers, after what they were given."""
        for readers in list(self._readers.values()):
            for reader in list(readers):
                reader.end()

    def _join(self, reader: Reader) -> None:
        for topic in reader.topics or ("",):
            self._readers.setdefault(topic, {})[reader] = None

    def _deliver(self, message: Message) -> None:
        self._last = message.id
        # One that others have added may have no topic.
        for topic in {message.topic, ""}:
            for reader in list(self._readers.get(topic, ())):
                reader.put(message)

    @abstractmethod
    async def _span(self) -> tuple[Id, Id]:
        """All messages after the first id are in the history; the second is the newest."""

    @abstractmethod
    async def _read(self, after: Id, count: int) -> Sequence[Message]:
        """The next messages of the history, of all topics."""


def _wants(reader: Reader, message: Message) -> bool:
    return not reader.topics or message.topic in reader.topics


class MemoryBroker(Broker):
    """For one process. Ids go on above those of the process before, by the clock."""

    def __init__(self, settings: Settings, meters: Meters) -> None:
        super().__init__(settings, meters)
        self._messages: list[Message] = []
        self._bytes = 0
        # What was before is not known.
        self._last: Id = Id(time.time_ns() // 1_000_000, 0)
        meters.observe_history(lambda: self._bytes)
        self._forgotten = self._last

    async def publish(self, topic: str, type: str, data: str) -> Id:
        now = time.time_ns() // 1_000_000
        last = self._last
        message = Message(
            Id(now, 0) if now > last.ms else Id(last.ms, last.seq + 1), topic, type, data
        )
        self._messages.append(message)
        self._bytes += message.size
        while len(self._messages) > self._history or self._bytes > HISTORY_BYTES:
            oldest = self._messages.pop(0)
            self._bytes -= oldest.size
            self._forgotten = oldest.id
        self._deliver(message)
        return message.id

    async def _span(self) -> tuple[Id, Id]:
        return self._forgotten, self._last

    async def _read(self, after: Id, count: int) -> Sequence[Message]:
        start = bisect_right(self._messages, after, key=lambda each: each.id)
        return self._messages[start : start + count]
