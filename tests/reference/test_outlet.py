"""Outlets: batches, bounds, and how what was dropped is recorded."""

import asyncio
import json
import time
from dataclasses import replace

import pytest
from reference.served import QUICK, StreamRecorder, message
from server.broker import Id
from server.outlet import FLUSH_SECONDS, HEARTBEAT, Outlet
from server.settings import DISCONNECT, Settings


class Watched:
    """An outlet, what it recorded, and whether it cut its connection."""

    def __init__(self, settings: Settings = QUICK) -> None:
        self.stream = StreamRecorder()
        self.aborted = 0
        self.limits: list[str] = []
        self.outlet = Outlet(
            settings,
            frozenset(),
            self.stream,
            self._abort,
            self.limits.append,  # type: ignore[arg-type]
        )

    def _abort(self) -> None:
        self.aborted += 1

    def put(self, *numbers: int, data: str = "x") -> None:
        for number in numbers:
            self.outlet.put(message(number, data))

    async def numbers(self) -> list[int]:
        """Of the messages of the next batch."""
        chunk = await self.outlet.take()
        assert chunk is not None
        return _numbers(chunk)


def _numbers(chunk: bytes) -> list[int]:
    return [int(each.partition(b"\n")[0]) for each in chunk.split(b"id: 1-")[1:]]


async def test_a_full_batch_does_not_wait() -> None:
    """Ten that are there are taken at once, as one chunk, and the rest at once after them."""
    watched = Watched(replace(QUICK, batch_seconds=60))
    watched.put(*range(25))
    watched.outlet._since -= 60
    assert await watched.numbers() == list(range(10))
    assert await watched.numbers() == list(range(10, 20))
    assert await watched.numbers() == list(range(20, 25))
    assert watched.outlet.bytes == 0


async def test_a_batch_ends_when_it_is_full() -> None:
    """The tenth message ends the wait for more."""
    watched = Watched(replace(QUICK, batch_seconds=60))
    taking = asyncio.create_task(watched.numbers())
    for number in range(10):
        await asyncio.sleep(0)
        assert not taking.done()
        watched.put(number)
    assert await asyncio.wait_for(taking, 5) == list(range(10))


async def test_who_takes_is_woken_once_for_a_batch() -> None:
    """The first message wakes no handler: with many clients, waking is what a message costs."""
    watched = Watched(replace(QUICK, batch_seconds=0.05))
    taking = asyncio.create_task(watched.numbers())
    await asyncio.sleep(0)
    waiter = watched.outlet._waiter
    assert waiter is not None
    watched.put(0, 1, 2)
    assert not waiter.done()
    assert await asyncio.wait_for(taking, 1) == [0, 1, 2]
    assert waiter.done()


async def test_a_batch_ends_in_time() -> None:
    """Counted from the first that waits, not from when the handler came to take it."""
    watched = Watched(replace(QUICK, batch_seconds=0.2))
    taking = asyncio.create_task(watched.numbers())
    await asyncio.sleep(0)
    watched.put(0)
    began = time.monotonic()
    assert await taking == [0]
    assert time.monotonic() - began >= 0.19
    watched.put(1)
    await asyncio.sleep(0.21)
    # Had it waited yet again, this would be in the batch.
    asyncio.get_running_loop().call_later(0.05, watched.put, 2)
    assert await watched.numbers() == [1]


async def test_without_a_wait_each_is_sent_at_once() -> None:
    """batch_seconds 0 means no delay."""
    watched = Watched(replace(QUICK, batch_seconds=0))
    watched.put(0)
    assert await asyncio.wait_for(watched.numbers(), 1) == [0]


async def test_heartbeats_where_nothing_comes() -> None:
    """They are comments, and no sign of life for the idle limit."""
    watched = Watched(replace(QUICK, heartbeat_seconds=0.01))
    last = watched.outlet.last
    assert await watched.outlet.take() == HEARTBEAT
    assert watched.outlet.last == last
    watched.put(1)
    await watched.outlet.take()
    assert watched.outlet.last > last


async def test_the_oldest_are_dropped_and_recorded() -> None:
    """Beyond its length the queue keeps the newest; telemetry and the client learn how many
    are missing.
    """
    watched = Watched(replace(QUICK, queue_length=3))
    watched.put(*range(5))
    assert watched.stream.drops == [(1, "slow_client")] * 2
    chunk = await watched.outlet.take() or b""
    gap, _, rest = chunk.partition(b"\n\n")
    kind, _, data = gap.partition(b"\ndata: ")
    assert kind == b"event: gap"
    assert json.loads(data) == {"reason": "slow_client", "dropped": 2}
    assert _numbers(rest) == [2, 3, 4]
    watched.put(5)
    assert b"gap" not in (await watched.outlet.take() or b"")


async def test_a_gap_is_sent_at_once() -> None:
    """The client that has nothing else to wait for learns how many and why, and once, also where
    it waits for a batch to fill.
    """
    watched = Watched(replace(QUICK, batch_seconds=60))
    for reason in ("memory", "slow_client"):
        taking = asyncio.create_task(watched.outlet.take())
        await asyncio.sleep(0)
        watched.put(1, 2)
        await asyncio.sleep(0)
        watched.outlet.drop_all(reason)
        stream = await asyncio.wait_for(taking, 1) or b""
        assert json.loads(stream.partition(b"data: ")[2]) == {"reason": reason, "dropped": 2}
    watched.put(3)
    watched.outlet.drop_all("memory")
    watched.put(4)
    watched.outlet.end()
    assert (await watched.outlet.take() or b"").count(b"event: gap") == 1
    watched.outlet.drop_all("memory")
    assert await watched.outlet.take() is None


async def test_a_gap_takes_no_messages_place() -> None:
    """A client that never keeps up gets messages, too, where they are sent one by one."""
    watched = Watched(replace(QUICK, batch_size=1, queue_length=2))
    for number in range(3, 30, 3):
        watched.put(number, number + 1, number + 2)
        assert await watched.numbers() == [number + 1]


async def test_only_who_does_not_take_is_behind() -> None:
    """A message that waits for its batch has not waited yet; one that is not taken has."""
    watched = Watched(replace(QUICK, batch_seconds=5))
    now = time.monotonic()
    assert watched.outlet.waited(now + 60) == 0
    watched.put(1)
    assert watched.outlet.waited(now + 4) == 0
    assert watched.outlet.waited(now + 60) > 50
    watched.outlet.end()
    await watched.numbers()
    assert watched.outlet.waited(now + 60) == 0


async def test_the_queue_is_bounded_in_bytes() -> None:
    """A message that would never fit is left out, too."""
    size = len(message(0, "x" * 100).frame)
    watched = Watched(replace(QUICK, queue_bytes=2 * size))
    watched.put(0, 1, 2, data="x" * 100)
    assert watched.outlet.bytes == 2 * size
    watched.put(3, data="x" * 1000)
    assert watched.outlet.bytes == 0
    assert len(watched.stream.drops) == 4


async def test_or_the_client_is_disconnected() -> None:
    """By choice the connection is cut; what waited is recorded, and nothing more is taken."""
    watched = Watched(replace(QUICK, queue_length=2, slow_client=DISCONNECT))
    watched.put(0, 1)
    assert not watched.aborted
    watched.put(2, 3)
    assert watched.aborted == 1
    assert watched.limits == ["slow_client"]
    assert watched.stream.reasons == ["timeout"]
    assert watched.stream.drops == [(3, "slow_client")]
    assert watched.outlet.bytes == 0
    assert await watched.outlet.take() is None


async def test_what_the_history_has_is_not_taken_again() -> None:
    """Up to that id, waiting messages go and later ones do not come."""
    watched = Watched()
    watched.put(1, 2, 3)
    watched.outlet.skip_to(Id(1, 2))
    watched.put(2, 4)
    assert await watched.numbers() == [3, 4]
    assert watched.stream.drops == []
    assert watched.outlet.bytes == 0


async def test_the_end_comes_after_what_waits() -> None:
    """Once, with the first reason, and at once for who waits."""
    watched = Watched()
    watched.put(*range(12))
    watched.outlet.end("server_shutdown")
    watched.outlet.end("completed")
    watched.put(12)
    assert await watched.numbers() == list(range(10))
    assert await watched.numbers() == [10, 11]
    assert await watched.outlet.take() is None
    assert watched.stream.reasons == ["server_shutdown"]
    waiting = Watched()
    taking = asyncio.create_task(waiting.outlet.take())
    await asyncio.sleep(0)
    waiting.outlet.end()
    assert await asyncio.wait_for(taking, 1) is None


async def test_a_cancelled_take_loses_nothing() -> None:
    """The next one to take has all of it."""
    watched = Watched(replace(QUICK, batch_seconds=60))
    taking = asyncio.create_task(watched.outlet.take())
    await asyncio.sleep(0)
    watched.put(1)
    await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    watched.put(2)
    watched.outlet.end()
    assert await watched.numbers() == [1, 2]


async def test_who_does_not_take_the_end_is_cut() -> None:
    """It is given a while, and no more."""
    watched = Watched()
    watched.put(1)
    ended = time.monotonic()
    watched.outlet.cut_if_late(ended + 1e6)
    watched.outlet.end()
    watched.outlet.cut_if_late(ended + FLUSH_SECONDS / 2)
    assert not watched.aborted
    watched.outlet.cut_if_late(ended + FLUSH_SECONDS + 1)
    assert watched.aborted == 1
    assert watched.stream.drops == [(1, "slow_client")]
