"""Redis Streams, by a real redis-server: many processes, and a server that goes and comes back."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio
from helpers.backend import Backend
from helpers.waiting import until
from reference.served import QUICK, RedisServer, Site, count, eventually, message, serving
from server.app import STREAMS
from server.broker import Id
from server.errors import Breaker
from server.redis_broker import KEY


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        await server.answers()
        yield server


async def _collect(site: Site, found: list[str], last: str, after: str = "") -> None:
    async for event in site.events("?topic=a", after):
        found.append(event.data)
        if event.data == last:
            return


async def _joined(*sites: Site) -> None:
    for site in sites:
        await until(lambda site=site: site.app[STREAMS]._broker._readers)


async def test_what_one_publishes_all_read(store: RedisServer) -> None:
    """Every process gives out what any of them published, and who comes back to another one than
    before goes on there.
    """
    settings = replace(QUICK, redis_url=store.url)
    async with serving(settings) as one, serving(settings) as two:
        await eventually(one.ready)
        await eventually(two.ready)
        found: tuple[list[str], list[str]] = ([], [])
        reading = [
            asyncio.create_task(_collect(site, each, "19"))
            for site, each in zip((one, two), found, strict=True)
        ]
        await _joined(one, two)
        ids = [await (one, two)[n % 2].publish(str(n)) for n in range(20)]
        await asyncio.wait_for(asyncio.gather(*reading), 10)
        assert found[0] == found[1] == [str(n) for n in range(20)]
        assert ids == sorted(ids, key=lambda text: Id.parse(text) or Id(0, 0))
        again: list[str] = []
        await asyncio.wait_for(_collect(two, again, "19", ids[4]), 10)
        assert again == [str(n) for n in range(5, 20)]


async def test_a_restart_loses_and_doubles_nothing(store: RedisServer, backend: Backend) -> None:
    """While Redis is away the readiness check reports it, and a message that is published is
    refused with a Retry-After; clients stay, those that come wait, and all get each message that
    was taken exactly once.
    """
    settings = replace(QUICK, redis_url=store.url, heartbeat_seconds=0.2)
    async with serving(settings, backend) as site:
        await eventually(site.ready)
        found: list[str] = []
        late: list[str] = []
        reading = asyncio.create_task(_collect(site, found, "last"))
        await _joined(site)
        ids = [await site.publish(str(n)) for n in range(10)]
        store.end()

        async def unreachable() -> bool:
            return (await site.http.get(f"{site.url}/readyz")).json()["broker"] == "unavailable"

        await eventually(unreachable)
        # No process is better off than another: a load balancer leaves each where it is.
        assert [await site.status_of(each) for each in ("/healthz", "/readyz")] == [200, 200]
        body = {"topic": "a", "data": "lost"}
        answer = await site.http.post(f"{site.url}/publish", json=body)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json() == {"error": "publish: connection_refused"}
        coming = asyncio.create_task(_collect(site, late, "last", ids[6]))
        await asyncio.sleep(0.3)
        assert not coming.done()
        store.start()
        await eventually(site.ready)
        for number in range(10, 20):
            await site.publish(str(number))
        await site.publish("last")
        await asyncio.wait_for(asyncio.gather(reading, coming), 10)
        assert found == [*(str(n) for n in range(20)), "last"]
        assert late == [*(str(n) for n in range(7, 20)), "last"]
        assert count(backend, "server.errors", **{"class": "connection_refused"}) > 0
        assert count(backend, "server.recoveries", action="retry") > 0


async def test_no_message_is_refused_after_a_restart(store: RedisServer, backend: Backend) -> None:
    """Connections that lay unused while Redis restarted are not used: as soon as the process is
    ready, each of many publishers at once is served.
    """
    async with serving(replace(QUICK, redis_url=store.url), backend) as site:
        await eventually(site.ready)
        await asyncio.gather(*(site.publish(str(n)) for n in range(40)))
        idle = len(site.app[STREAMS]._broker._pool._available_connections)
        assert idle > 4
        for _ in range(3):
            store.end()
            store.start()
            await store.answers()
            await eventually(site.ready)
            body = {"topic": "a", "data": "x"}
            answers = await asyncio.gather(
                *(site.http.post(f"{site.url}/publish", json=body) for _ in range(40))
            )
            assert [each.status_code for each in answers] == [200] * 40


async def test_a_redis_that_stays_away_opens_the_circuit(
    store: RedisServer, backend: Backend
) -> None:
    """Refused again and again, publishing is not even tried; when Redis is back, the reader closes
    the circuit at once.
    """
    async with serving(replace(QUICK, redis_url=store.url), backend) as site:
        await eventually(site.ready)
        store.end(signal.SIGKILL)
        body = {"topic": "a", "data": "x"}
        opened = 0.0
        while not opened:
            answer = await site.http.post(f"{site.url}/publish", json=body)
            assert answer.status_code == 503
            opened = count(backend, "server.recoveries", action="circuit_open")
        began = time.perf_counter()
        for _ in range(5):
            answer = await site.http.post(f"{site.url}/publish", json=body)
            assert "the circuit is open" in answer.json()["error"]
        assert time.perf_counter() - began < Breaker.SECONDS
        repeated = {"class": "connection_refused", "pattern": "repeated"}
        assert count(backend, "server.errors", **repeated) >= 1
        store.start()
        await eventually(site.ready)
        await site.publish("x")
        assert count(backend, "server.recoveries", action="circuit_closed") == 1


@contextlib.asynccontextmanager
async def _cutting(store: RedisServer, word: bytes) -> AsyncIterator[str]:
    """The same Redis by an address where a connection is cut once the word has been sent, before
    the answer.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, commands = await asyncio.open_connection("127.0.0.1", store.port)
        cut = False

        async def back() -> None:
            while (part := await answers.read(2**16)) and not cut:
                writer.write(part)

        returning = asyncio.create_task(back())
        while part := await reader.read(2**16):
            cut = word in part
            commands.write(part)
            if cut:
                await asyncio.wait({returning}, timeout=0.2)
                break
        for each in (writer, commands):
            each.close()
        await returning

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    server.close()


async def test_a_message_whose_fate_is_unknown_is_not_added_twice(store: RedisServer) -> None:
    """Redis has taken it, but the answer is lost: the publisher gets a failure, and the
    stream has it once.
    """
    async with _cutting(store, b"XADD") as url, serving(replace(QUICK, redis_url=url)) as site:
        await eventually(site.ready)
        answer = await site.http.post(f"{site.url}/publish", json={"topic": "a", "data": "x"})
        assert answer.status_code == 503
        async with redis.asyncio.Redis.from_url(store.url) as client:
            assert await client.xlen(KEY) == 1


async def test_a_redis_that_hangs_costs_a_time_out(store: RedisServer, backend: Backend) -> None:
    """It takes the connection and sends nothing: publishing fails in bounded time, is not tried
    again, and the next time-out is longer.
    """
    async with serving(replace(QUICK, redis_url=store.url), backend) as site:
        await eventually(site.ready)
        await site.publish("0")
        store.process.send_signal(signal.SIGSTOP)
        try:
            body = {"topic": "a", "data": "x"}
            answer = await site.http.post(f"{site.url}/publish", json=body)
            assert answer.status_code == 503
            # The reader may have had enough, too.
            late = count(backend, "server.errors", **{"class": "timeout"})
            assert late >= 1
            assert count(backend, "server.recoveries", action="longer_timeout") == late
        finally:
            store.process.send_signal(signal.SIGCONT)
        await site.publish("1")


async def test_the_stream_is_bounded_and_gaps_are_sent(
    store: RedisServer, backend: Backend
) -> None:
    """It keeps about as many messages as is set. A reader that comes back for older ones gets a gap
    and the rest; one that comes back in time gets no gap.
    """
    settings = replace(QUICK, redis_url=store.url, history=100)
    async with serving(settings, backend) as site:
        await eventually(site.ready)
        ids = [await site.publish(str(n)) for n in range(400)]
        async with redis.asyncio.Redis.from_url(store.url) as client:
            kept = int(await client.xlen(KEY))
        assert 100 <= kept < 300
        async with contextlib.aclosing(site.events(last_event_id=ids[0])) as stream:
            gap, first = await anext(stream), await anext(stream)
        assert (gap.type, first.data) == ("gap", str(400 - kept))
        assert count(backend, "server.replay_gaps") == 1
        async with contextlib.aclosing(site.events(last_event_id=ids[-kept])) as stream:
            assert (await anext(stream)).data == str(401 - kept)
        assert count(backend, "server.replay_gaps") == 1


async def test_many_that_reconnect_at_once_hold_up_no_other(
    store: RedisServer, backend: Backend
) -> None:
    """However long reading the history takes, for however many, messages are published and given
    out meanwhile, and nothing is counted as an error.
    """
    async with serving(replace(QUICK, redis_url=store.url), backend) as site:
        await eventually(site.ready)
        found: list[str] = []
        reading = asyncio.create_task(_collect(site, found, "last"))
        await _joined(site)
        broker = site.app[STREAMS]._broker

        async def portion() -> None:
            await broker._redis.blpop("none", 60)

        # Each takes a connection until Redis answers, which it does in a minute.
        slow = [asyncio.create_task(broker._patiently(portion)) for _ in range(300)]
        await asyncio.sleep(0.3)
        for number in range(10):
            await site.publish(str(number))
        await site.publish("last")
        await asyncio.wait_for(reading, 10)
        assert found == [*(str(n) for n in range(10)), "last"]
        assert count(backend, "server.errors") == 0
        for each in slow:
            each.cancel()
        await asyncio.wait(slow)


async def test_a_full_redis_forgets_half_and_takes_the_next(
    tmp_path: Path, backend: Backend
) -> None:
    """Where it is full before the history is, a message is refused, half of the history goes, and
    later messages are taken again; what waits for clients here is not thrown away for it.
    """
    with RedisServer(tmp_path, "--maxmemory", "4mb") as store:
        await store.answers()
        settings = replace(QUICK, redis_url=store.url, compress_from=0)
        async with serving(settings, backend) as site:
            await eventually(site.ready)
            body = {"topic": "a", "data": "x" * 50_000}
            statuses = [
                (await site.http.post(f"{site.url}/publish", json=body)).status_code
                for _ in range(120)
            ]
            refused = statuses.count(503)
            assert refused > 0
            assert statuses.count(200) == 120 - refused
            assert 200 in statuses[statuses.index(503) :]
            assert refused < 20
            assert count(backend, "server.errors", **{"class": "memory_exhausted"}) == refused
            assert count(backend, "server.recoveries", action="history_halved") == refused
            assert count(backend, "server.recoveries", action="emergency_cleanup") == 0


async def test_ids_that_redis_never_gave(store: RedisServer, backend: Backend) -> None:
    """An id of an empty stream, of the future or of a stream that was deleted is answered with a
    gap, and does not keep the client from what comes.
    """
    async with serving(replace(QUICK, redis_url=store.url), backend) as site:
        await eventually(site.ready)
        for after in ("5-0", f"{2**60}-0"):
            async with contextlib.aclosing(site.events(last_event_id=after)) as stream:
                assert (await anext(stream)).type == "gap"
                await site.publish("x")
                while (event := await anext(stream)).data != "x":
                    pass
                assert event.type == "message"


async def test_what_others_add_is_read_as_well_as_it_can_be(store: RedisServer) -> None:
    """An entry without our fields, with a type of two lines, or that is no UTF-8, stops no reader;
    a type that could not be published here, or that becomes a reserved one, counts for none.
    """
    async with serving(replace(QUICK, redis_url=store.url)) as site:
        await eventually(site.ready)
        found: list[tuple[str, str]] = []

        async def read() -> None:
            async for event in site.events("?topic=a"):
                found.append((event.type, event.data))
                if event.data == "end":
                    return

        reading = asyncio.create_task(read())
        await _joined(site)
        forged = ("x\nid: 9", "ga\u2028p", "open\x0b", "\x0cerror", "gap\x1e", "gap", "error")
        async with redis.asyncio.Redis.from_url(store.url) as client:
            await client.xadd(KEY, {"a": "b"})
            for kind in forged:
                await client.xadd(KEY, {"topic": "a", "type": kind, "data": "odd"})
            await client.xadd(KEY, {"topic": "a", "type": "price", "data": b"\xff"})
        await site.publish("end")
        await asyncio.wait_for(reading, 10)
        assert found[: len(forged)] == [("message", "odd")] * len(forged)
        assert found[len(forged) :] == [("price", "\ufffd"), ("message", "end")]


async def test_a_server_starts_without_its_redis(tmp_path: Path) -> None:
    """It takes clients and publishes nothing, until Redis is there."""
    store = RedisServer(tmp_path)
    async with serving(replace(QUICK, redis_url=store.url)) as site:
        assert not await site.ready()
        with store:
            await eventually(site.ready)
            await site.publish("x")


def test_messages_compare_by_their_id() -> None:
    """As Redis orders them: by both numbers, not as texts."""
    assert message(9).id < message(10).id < Id(2, 0)
