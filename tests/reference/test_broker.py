"""Brokers: the order of ids, replay that neither loses nor doubles, and the event of a gap."""

import asyncio
import contextlib
import json
import re
import sys
from dataclasses import replace

import pytest
from helpers.backend import Backend
from reference.served import QUICK, StreamRecorder, count, message
from server import broker as module
from server.broker import Broker, Id, MemoryBroker, Message
from server.meters import Meters
from server.outlet import Outlet
from server.settings import Settings

_DATA = re.compile(rb"data: (\d+)\n")


def _outlet(settings: Settings = QUICK, *topics: str) -> Outlet:
    stream = StreamRecorder()
    return Outlet(settings, frozenset(topics), stream, lambda: None, lambda _: None)  # type: ignore[arg-type]


async def _history(broker: Broker, outlet: Outlet, after: Id | None) -> bytes:
    return b"".join([chunk async for chunk in broker.subscribe(outlet, after)])


async def _rest(outlet: Outlet) -> bytes:
    """All that waits in it; it is ended by that."""
    outlet.end()
    found = b""
    while (chunk := await outlet.take()) is not None:
        found += chunk
    return found


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("1-2", Id(1, 2)),
        ("18446744073709551615-0", Id(2**64 - 1, 0)),
        ("18446744073709551616-0", None),
        ("1" * 10_000 + "-0", None),
        ("", None),
        (None, None),
        ("7", None),
        ("1-2 ", None),
        ("-1-2", None),
        ("\u0661-\u0662", None),
        ("1-2\n", None),
    ],
)
def test_id(text: str | None, id_: Id | None) -> None:
    """Whatever is no id of this server's is taken for none; an id is written as it is read."""
    assert Id.parse(text) == id_
    assert id_ is None or str(id_) == text


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ("one", b"data: one\n"),
        ("one\ntwo\r\nthree\rfour", b"data: one\ndata: two\ndata: three\ndata: four\n"),
        ("", b"data: \n"),
        (" x\n", b"data:  x\ndata: \n"),
        ("\u2028", "data: \u2028\n".encode()),
    ],
)
def test_frame(data: str, lines: bytes) -> None:
    """Every line of the data has its field, whatever ends it, and nothing else ends one."""
    assert message(5, data).frame == b"id: 1-5\n" + lines + b"\n"
    typed = Message(Id(1, 5), "a", "price", data)
    assert typed.frame == b"id: 1-5\nevent: price\n" + lines + b"\n"


async def test_ids_rise(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each id is above the one before, when the clock stands still or goes back, too."""
    now = [5_000_000_000]
    monkeypatch.setattr(module.time, "time_ns", lambda: now[0])
    broker = MemoryBroker(QUICK, Meters(backend.meter_provider))
    ids = [await broker.publish("a", "message", "x")]
    ids.append(await broker.publish("a", "message", "x"))
    now[0] = 0
    ids.append(await broker.publish("b", "message", "x"))
    now[0] = 6_000_000_000
    ids.append(await broker.publish("a", "message", "x"))
    assert ids == [Id(5000, 1), Id(5000, 2), Id(5000, 3), Id(6000, 0)]


async def test_a_new_client_is_given_its_place(backend: Backend) -> None:
    """Without an id there is no replay, but the id from which the client may go on if it is cut
    before its first message.
    """
    broker = MemoryBroker(QUICK, Meters(backend.meter_provider))
    last = await broker.publish("a", "message", "1")
    outlet = _outlet()
    assert await _history(broker, outlet, None) == f"id: {last}\n\n".encode()
    await broker.publish("a", "message", "2")
    assert _DATA.findall(await _rest(outlet)) == [b"2"]


async def test_topics_are_a_filter(backend: Backend) -> None:
    """History and live messages are those of the topics asked for; without any, all of them."""
    broker = MemoryBroker(QUICK, Meters(backend.meter_provider))
    start = await broker.publish("a", "message", "0")
    some, every = _outlet(QUICK, "a", "c"), _outlet()
    for number, topic in enumerate("abc", 1):
        await broker.publish(topic, "message", str(number))
    found = {each: await _history(broker, each, start) for each in (some, every)}
    for number, topic in enumerate("abc", 4):
        await broker.publish(topic, "message", str(number))
    assert _DATA.findall(found[some] + await _rest(some)) == [b"1", b"3", b"4", b"6"]
    assert _DATA.findall(found[every] + await _rest(every)) == [b"%d" % n for n in range(1, 7)]
    for outlet in (some, every):
        broker.unsubscribe(outlet)
        broker.unsubscribe(outlet)
    assert not broker._readers


async def test_nothing_is_lost_or_doubled_between_replay_and_live(backend: Backend) -> None:
    """A reader that comes back anywhere in the history, while more is published at every step, gets
    each message after its id once and in order.
    """
    settings = replace(QUICK, queue_bytes=4 * QUICK.max_message_bytes, queue_length=5)
    broker = MemoryBroker(settings, Meters(backend.meter_provider))
    ids = [await broker.publish("a", "message", str(n)) for n in range(60)]
    expected = 60
    for start, after in list(enumerate(ids))[::6]:
        outlet = _outlet(settings)
        found = b""
        async for chunk in broker.subscribe(outlet, after):
            found += chunk
            if expected < 80 + 2 * start:
                await broker.publish("a", "message", str(expected))
                expected += 1
        await broker.publish("a", "message", str(expected))
        expected += 1
        found += await _rest(outlet)
        broker.unsubscribe(outlet)
        # What came while it was far behind has not filled its queue.
        assert b"gap" not in found
        assert [int(n) for n in _DATA.findall(found)] == list(range(start + 1, expected))


class _Lagging(MemoryBroker):
    """As Redis is: a message is in the history before readers are given it, and reading takes
    time.
    """

    async def _read(self, after: Id, count: int) -> list[Message]:
        await asyncio.sleep(0)
        found = list(await super()._read(after, count))
        await asyncio.sleep(0)
        return found

    def _deliver(self, message: Message) -> None:
        self._last = message.id
        asyncio.get_running_loop().call_later(0.002, self._give, message)

    def _give(self, message: Message) -> None:
        for reader in list(self._readers.get("", ())):
            reader.put(message)


async def test_a_reader_that_is_behind_its_history(backend: Backend) -> None:
    """The same where live messages come later than the history has them."""
    broker = _Lagging(replace(QUICK, queue_bytes=6 * QUICK.max_message_bytes), Meters(None))
    first = await broker.publish("a", "message", "0")
    for number in range(1, 20):
        await broker.publish("a", "message", str(number))

    async def publish() -> None:
        for number in range(20, 120):
            await broker.publish("a", "message", str(number))
            await asyncio.sleep(0)

    publishing = asyncio.create_task(publish())
    outlets = [_outlet() for _ in range(5)]
    found = await asyncio.gather(*(_history(broker, each, first) for each in outlets))
    await publishing
    await asyncio.sleep(0.02)
    for outlet, history in zip(outlets, found, strict=True):
        numbers = [int(n) for n in _DATA.findall(history + await _rest(outlet))]
        assert numbers == list(range(1, 120))


async def _gap(broker: Broker, after: Id) -> tuple[dict[str, str] | None, list[bytes]]:
    found = await _history(broker, _outlet(), after)
    match = re.match(rb"event: gap\ndata: (.*)\n\n", found)
    return (json.loads(match[1]) if match else None), _DATA.findall(found)


async def test_a_history_that_does_not_reach_back_is_a_gap(backend: Backend) -> None:
    """A reader that asks for more than is kept gets the rest, and first a gap, which is
    counted. One that asks for exactly what is kept gets no gap.
    """
    broker = MemoryBroker(replace(QUICK, history=3), Meters(backend.meter_provider))
    ids = [await broker.publish("a", "message", str(n)) for n in range(6)]
    assert await _gap(broker, ids[2]) == (None, [b"3", b"4", b"5"])
    assert count(backend, "server.replay_gaps") == 0
    stream = {"reason": "history", "after": str(ids[1]), "oldest": str(ids[2])}
    assert await _gap(broker, ids[1]) == (stream, [b"3", b"4", b"5"])
    assert count(backend, "server.replay_gaps") == 1


async def test_a_replay_that_is_overtaken_is_a_gap(backend: Backend) -> None:
    """Where the history forgets what a slow reader has yet to be given, a gap is in its
    place; what remains is given, in order, and nothing is missing without a gap.
    """
    settings = replace(QUICK, history=10, queue_bytes=2 * QUICK.max_message_bytes)
    broker = MemoryBroker(settings, Meters(backend.meter_provider))
    ids = [await broker.publish("a", "message", str(n)) for n in range(10)]
    outlet = _outlet(settings)
    found = b""
    async for chunk in broker.subscribe(outlet, ids[0]):
        found += chunk
        if len(ids) < 45 and b"data: " in chunk and b"gap" not in chunk:
            for number in range(len(ids), len(ids) + 12):
                ids.append(await broker.publish("a", "message", str(number)))
    found += await _rest(outlet)
    gaps = 0
    last = ids[0]
    for block in found.split(b"\n\n")[:-1]:
        events = block.decode().split("\n")
        if events[0] == "event: gap":
            stream = json.loads(events[1].removeprefix("data: "))
            assert stream["after"] == str(last)
            last = Id.parse(stream["oldest"])
            gaps += 1
        else:
            place = ids.index(last) + 1
            assert events == [f"id: {ids[place]}", f"data: {place}"]
            last = ids[place]
    assert last == ids[-1]
    assert gaps == count(backend, "server.replay_gaps") >= 3


async def test_a_message_without_a_topic_is_given_once(backend: Backend) -> None:
    """Readers of all topics have it as any other, and no others have it."""
    broker = MemoryBroker(QUICK, Meters(backend.meter_provider))
    every, some = _outlet(), _outlet(QUICK, "a")
    for outlet in (every, some):
        await _history(broker, outlet, None)
    broker._deliver(Message(Id(2**60, 0), "", "message", "1"))
    assert _DATA.findall(await _rest(every)) == [b"1"]
    assert _DATA.findall(await _rest(some)) == []


async def test_an_id_of_before_a_restart_or_of_the_future(backend: Backend) -> None:
    """A process that has started again knows nothing of what was before: a gap. A reader that comes
    with an id that was never given gets a gap too, and all messages that come.
    """
    broker = MemoryBroker(QUICK, Meters(backend.meter_provider))
    await broker.publish("a", "message", "0")
    gap, numbers = await _gap(broker, Id(1000, 0))
    assert gap is not None
    assert numbers == [b"0"]
    outlet = _outlet()
    assert b"event: gap\n" in await _history(broker, outlet, Id(2**63, 0))
    await broker.publish("a", "message", "1")
    assert _DATA.findall(await _rest(outlet)) == [b"1"]


async def test_the_history_is_bounded_in_bytes(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few large messages take no more memory than many small ones may."""
    monkeypatch.setattr(module, "HISTORY_BYTES", 20_000)
    broker = MemoryBroker(QUICK, Meters(backend.meter_provider))
    for _ in range(20):
        await broker.publish("a", "message", "x" * 3000)
    assert len(broker._messages) == 3
    held = sum(
        len(each.frame) + sys.getsizeof(each.data) + module.OVERHEAD for each in broker._messages
    )
    assert broker._bytes == held


@pytest.mark.parametrize(("most", "data", "count"), [(300, "x" * 200, 4), (100, "\n" * 60, 5)])
async def test_a_portion_fits_into_a_connections_memory(most: int, data: str, count: int) -> None:
    """However long the history and large its messages, one portion is all that replay holds; and
    newlines alone are seven times as long on the wire, where each line has its field.
    """
    settings = replace(QUICK, queue_bytes=1000, max_message_bytes=most)
    broker = MemoryBroker(settings, Meters(None))
    first = await broker.publish("a", "message", "x")
    for _ in range(10):
        await broker.publish("a", "message", data)
    portions = [chunk async for chunk in broker.subscribe(_outlet(), first)]
    assert len(portions) == count
    assert b"".join(portions).count(b"id: ") == 10
    assert max(map(len, portions)) <= 1000


async def test_an_abandoned_replay_leaves_nothing(backend: Backend) -> None:
    """A client that disconnects within its replay is no reader afterwards."""
    broker = MemoryBroker(replace(QUICK, queue_bytes=1, max_message_bytes=1), Meters(None))
    first = await broker.publish("a", "message", "x")
    await broker.publish("a", "message", "x")
    outlet = _outlet()
    async with contextlib.aclosing(broker.subscribe(outlet, first)) as history:
        await anext(history)
    broker.unsubscribe(outlet)
    assert not broker._readers


async def test_close_ends_readers_after_what_they_were_given(backend: Backend) -> None:
    """What was published before the broker closed is read to the end."""
    broker = MemoryBroker(QUICK, Meters(backend.meter_provider))
    outlet = _outlet()
    await _history(broker, outlet, None)
    await broker.publish("a", "message", "1")
    await broker.close()
    assert _DATA.findall(await outlet.take() or b"") == [b"1"]
    assert await outlet.take() is None
