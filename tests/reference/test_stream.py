"""The endpoints, on real sockets."""

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.waiting import until
from reference.served import (
    QUICK,
    Site,
    count,
    flood,
    head_of,
    live,
    open_stream,
    serving,
    stuck_client,
)
from server import limits as limits_module
from server import stream as stream_module
from server.app import LIMITS, STREAMS
from server.broker import Id, Message
from server.client import Event
from server.limits import Limits
from server.settings import Settings

# Of a chunked response.
END = b"\r\n0\r\n\r\n"


async def _read(stream: AsyncIterator[Event], count: int) -> list[str]:
    return [(await anext(stream)).data for _ in range(count)]


async def test_a_stream_as_the_wire_has_it() -> None:
    """Headers, retry, the place in the order, ids, types and lines are those of an event stream."""
    async with serving(replace(QUICK, retry_seconds=3, heartbeat_seconds=0.2)) as site:
        client = await RawClient.get(site.port, "/events?topic=a")
        head = (await client.until(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        for line in (
            "Content-Type: text/event-stream",
            "Cache-Control: no-store",
            "X-Accel-Buffering: no",
        ):
            assert f"\r\n{line}\r\n" in head
        await client.until(b"retry: 3000\n\n")
        await client.until(b"id: ")
        await client.until(b"-0\n\n")
        await client.until(b": heartbeat\n\n")
        await site.publish("other", topic="b")
        id_ = await site.publish("one\ntwo", type="price")
        wanted = f"id: {id_}\nevent: price\ndata: one\ndata: two\n\n".encode()
        assert b"other" not in await client.until(wanted)
        await client.close()


async def test_a_client_that_comes_back_goes_on(backend: Backend) -> None:
    """By the header, or by the query when a browser first connects; the header wins, and what is
    no id counts for none.
    """
    async with serving(backend=backend) as site:
        ids = [await site.publish(str(n)) for n in range(4)]
        for query, header, expected in (
            ("", ids[1], ["2", "3", "4"]),
            (f"?last_event_id={ids[2]}", "", ["3", "4", "4"]),
            (f"?last_event_id={ids[0]}", ids[2], ["3", "4", "4", "4"]),
            ("?last_event_id=nonsense", "", ["4"]),
        ):
            async with contextlib.aclosing(site.events(query, header)) as stream:
                reading = asyncio.create_task(_read(stream, len(expected)))
                await until(lambda: site.app[STREAMS]._broker._readers)
                await site.publish("4")
                assert await asyncio.wait_for(reading, 10) == expected
            await until(lambda: live(site) == 0)
        assert count(backend, "server.replay_gaps") == 0


async def test_every_message_once_through_many_cuts() -> None:
    """A client whose connection is cut again and again gets each message once, in order."""
    async with serving() as site:
        found: list[str] = []

        async def read() -> None:
            async for event in site.events("?topic=a"):
                found.append(event.data)
                if event.data == "299":
                    return

        reading = asyncio.create_task(read())
        await until(lambda: live(site) == 1)
        await asyncio.sleep(0.05)
        for number in range(300):
            await site.publish(str(number))
            if number % 40 == 0:
                for outlet in site.app[LIMITS].outlets:
                    outlet._abort()
        await asyncio.wait_for(reading, 20)
        assert found == [str(n) for n in range(300)]


async def test_a_message_above_the_least_size_is_compressed() -> None:
    """It is an envelope on the wire and the text at the client."""
    text = json.dumps(list(range(1000)))
    async with serving() as site:
        raw = await open_stream(site)
        stream = site.events()
        reading = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await until(lambda: live(site) == 2)
        await asyncio.sleep(0.05)
        await site.publish(text)
        assert (await reading).data == text
        line = await raw.until(b"}\n\n")
        assert json.loads(line.partition(b"data: ")[2])["encoding"] == "gzip"
        await raw.close()
        await stream.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({"topic": "a"}, 400, "data is to be a text"),
        ({"topic": "a", "data": {"a": 1}}, 400, "data is to be a text"),
        ({"topic": "a b", "data": ""}, 400, "topic is to be a text of"),
        ({"topic": ["a"], "data": ""}, 400, "topic is to be a text of"),
        ({"topic": "a", "data": "", "type": "a\nb"}, 400, "type is to be a line"),
        ({"topic": "a", "data": "", "type": "a\rid: 1"}, 400, "type is to be a line"),
        ({"topic": "a", "data": "", "type": ""}, 400, "type is to be a line"),
        ({"topic": "a", "data": "", "type": "gap"}, 400, "type is to be a line"),
        # What another program may take for a reserved one, or shows turned round.
        ({"topic": "a", "data": "", "type": "ga\u2028p"}, 400, "type is to be a line"),
        ({"topic": "a", "data": "", "type": "open\x0b"}, 400, "type is to be a line"),
        ({"topic": "a", "data": "", "type": "\x1cerror"}, 400, "type is to be a line"),
        ({"topic": "a", "data": "", "type": "a\u202eb"}, 400, "type is to be a line"),
        ({"topics": "a", "data": ""}, 400, "'topics' is no key of a message: topic, type, data"),
        ({"topic": "a", "data": "\ud800"}, 400, "Unicode"),
        ({"topic": "a", "data": "x" * 65_536}, 413, "data has 65543 of 65536 bytes"),
        ([], 400, "a JSON object"),
    ],
)
async def test_what_is_no_message_is_refused(body: Any, status: int, why: str) -> None:
    """The answer has what is wrong with it, in JSON."""
    async with serving() as site:
        answer = await site.http.post(f"{site.url}/publish", content=json.dumps(body).encode())
        assert answer.status_code == status
        assert why in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
async def test_what_is_no_json_is_refused(body: bytes) -> None:
    """The answer is a 400 with that reason, and no 500."""
    async with serving() as site:
        answer = await site.http.post(f"{site.url}/publish", content=body)
        assert answer.status_code == 400
        assert answer.json() == {"error": "the body is to be JSON in UTF-8"}


async def test_a_body_that_can_be_no_message_is_not_read() -> None:
    """It is refused by its size, whatever is in it."""
    async with serving(replace(QUICK, max_message_bytes=1000)) as site:
        answer = await site.http.post(f"{site.url}/publish", content=b" " * 20_000)
        assert answer.status_code == 413
        assert "larger than" in answer.json()["error"]


async def test_an_unknown_charset_is_no_error() -> None:
    """JSON is UTF-8, whatever charset its sender gives."""
    async with serving() as site:
        answer = await site.http.post(
            f"{site.url}/publish",
            content=b'{"topic": "a", "data": "\xc3\xa4"}',
            headers={"Content-Type": "application/json; charset=nonsense"},
        )
        assert answer.status_code == 200


async def test_who_publishes_knows_the_token() -> None:
    """Where one is set, no other request may."""
    async with serving(replace(QUICK, publish_token="s3cret")) as site:
        for given, status in (
            (None, 401),
            ("Bearer s3cre", 401),
            (b"Bearer \xff", 401),
            ("s3cret", 401),
            ("Bearer s3cret", 200),
            ("bearer  s3cret", 200),
        ):
            headers = {"Authorization": given} if given else {}
            answer = await site.http.post(
                f"{site.url}/publish", json={"topic": "a", "data": "x"}, headers=headers
            )
            assert answer.status_code == status
            assert (answer.headers.get("WWW-Authenticate") == "Bearer") == (status == 401)


@pytest.mark.parametrize("reads", [1, 2, 3])
async def test_an_end_within_the_history_leaves_nothing_out(reads: int) -> None:
    """Whatever the client has at the end of its connection has no hole: it goes on from there.
    The connection ends at once and in order, also where the history is waited for.
    """
    settings = replace(QUICK, queue_bytes=2 * QUICK.max_message_bytes, drain_seconds=0)
    async with serving(settings) as site:
        ids = [await site.publish(str(n)) for n in range(4)]
        broker = site.app[STREAMS]._broker
        read = broker._read
        left = reads
        waiting = asyncio.Event()

        async def slow(after: Id, count: int) -> Sequence[Message]:
            """The last one never comes, as where Redis is away."""
            nonlocal left
            left -= 1
            if left:
                return await read(after, count)  # type: ignore[no-any-return]
            # The reader may have been joined already: this waits in its outlet.
            await broker.publish("a", "message", "4")
            await broker.publish("a", "message", "5")
            waiting.set()
            return await asyncio.Event().wait()  # type: ignore[return-value]

        broker._read = slow
        client = await RawClient.get(site.port, "/events", f"Last-Event-ID: {ids[0]}")
        await asyncio.wait_for(waiting.wait(), 10)
        await asyncio.wait_for(site.app[STREAMS].drain(), 10)
        rest = await asyncio.wait_for(client.until(END), 10)
        await client.close()
        found = re.findall(rb"\ndata: (\d)\n", rest)
        assert found == [b"1", b"2", b"3"][: (reads - 1) * 2]
        assert rest.count(b"retry: ") == 2


async def test_an_end_while_the_history_is_sent() -> None:
    """The same where the end comes while a portion is written."""
    settings = replace(QUICK, queue_bytes=2 * QUICK.max_message_bytes)
    async with serving(settings) as site:
        ids = [await site.publish(str(n)) for n in range(4)]
        broker = site.app[STREAMS]._broker
        read = broker._read

        async def ending(after: Id, count: int) -> Sequence[Message]:
            found = await read(after, count)
            (outlet,) = site.app[LIMITS].outlets
            if broker._readers:
                # It is joined, but what it is given now is beyond another portion.
                for number in range(4, 9):
                    await broker.publish("a", "message", str(number))
                outlet.end()
            return found  # type: ignore[no-any-return]

        broker._read = ending
        client = await RawClient.get(site.port, "/events", f"Last-Event-ID: {ids[0]}")
        rest = await asyncio.wait_for(client.until(END), 10)
        await client.close()
        found = re.findall(rb"\ndata: (\d)\n", rest)
        assert found == [b"1", b"2", b"3"]


async def test_bad_topics_are_refused() -> None:
    """A topic that cannot be published to, and too many of them, are refused with the reason."""
    async with serving() as site:
        for query in ("?topic=a%20b", "?topic=", "?" + "&".join(f"topic={n}" for n in range(21))):
            answer = await site.http.get(f"{site.url}/events{query}", timeout=2)
            assert answer.status_code == 400
            assert "topic is" in answer.json()["error"]


async def test_a_parameter_that_there_is_not() -> None:
    """A slip of the pen is refused by its name: it would else be a stream of all topics."""
    async with serving() as site:
        answer = await site.http.get(f"{site.url}/events?topics=a", timeout=2)
        assert answer.status_code == 400
        assert answer.json()["error"] == (
            "'topics' is no parameter of /events: topic, last_event_id"
        )


async def test_a_greeting_is_for_new_clients() -> None:
    """It comes first, to a client that is new, and not to one that comes back."""
    async with serving(replace(QUICK, greeting="Hello,\nclient")) as site:
        async with contextlib.aclosing(site.events()) as stream:
            first = await asyncio.wait_for(anext(stream), 10)
        assert (first.type, first.data) == ("greeting", "Hello,\nclient")
        id_ = await site.publish("1")
        await site.publish("2")
        async with contextlib.aclosing(site.events(last_event_id=id_)) as stream:
            assert (await asyncio.wait_for(anext(stream), 10)).data == "2"


async def test_ready_means_that_a_new_client_would_be_served() -> None:
    """Full, or short of memory, a process is alive and not ready, with a Retry-After."""
    async with serving(replace(QUICK, max_connections=1)) as site:
        limits = site.app[LIMITS]

        async def ready() -> tuple[int, str | None, str]:
            answer = await site.http.get(f"{site.url}/readyz")
            assert answer.headers["Content-Type"].startswith("application/json")
            return answer.status_code, answer.headers.get("Retry-After"), answer.text

        assert (await ready())[:2] == (200, None)
        client = await open_stream(site)
        status, wait, why = await ready()
        assert (status, wait) == (503, "1")
        assert "connections" in why
        await client.close()
        await until(lambda: live(site) == 0)
        assert (await ready())[0] == 200
        limits.short = True
        assert "memory" in (await ready())[2]
        assert await site.status_of("/healthz") == 200


async def test_the_address_that_the_proxy_names_is_recorded(
    backend: Backend, instrument: Any
) -> None:
    """The stream's telemetry has the client's own address, as the application knows it."""
    instrument()
    async with serving(replace(QUICK, proxy="127.0.0.1"), backend) as site:
        client = await open_stream(site, "", "X-Forwarded-For: 10.0.0.1")
        (opened,) = backend.events("sse.connection.opened")
        assert opened.attributes["client.address"] == "10.0.0.1"
        await client.close()
        await until(lambda: live(site) == 0)


async def test_an_address_that_no_proxy_added_is_not_trusted() -> None:
    """Without a proxy any client may send the header, and the limit is for the real address."""
    async with serving(replace(QUICK, max_connections_per_client=1)) as site:
        client = await open_stream(site, "", "X-Forwarded-For: 10.0.0.1")
        head = await head_of(site, "/events", "X-Forwarded-For: 10.0.0.2")
        assert head.startswith(b"HTTP/1.1 503")
        await client.close()


async def _ending(site: Site, backend: Backend, client: RawClient) -> tuple[bytes, str, list[Any]]:
    """The last of a stream, and its close reason and drops as recorded."""
    rest = await asyncio.wait_for(client.until(END), 10)
    await client.close()
    (closed,) = await until(lambda: backend.events("sse.connection.closed"))
    await until(lambda: live(site) == 0)
    drops = [
        (attributes["sse.drop.reason"], point.value)
        for attributes, point in backend.points("sse.server.dropped_messages")
    ]
    return rest, closed.attributes["sse.close.reason"], drops


@pytest.mark.parametrize(
    ("limit", "settings"),
    [
        ("idle", replace(QUICK, idle_seconds=0.4, heartbeat_seconds=0.1)),
        ("age", replace(QUICK, age_seconds=0.4)),
    ],
)
async def test_an_idle_or_old_stream_is_ended(
    backend: Backend,
    instrument: Any,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    settings: Settings,
) -> None:
    """It ends in order, with a new `retry`; heartbeats do not count; it is a time-out."""
    monkeypatch.setattr(limits_module, "SWEEP_SECONDS", 0.05)
    instrument()
    async with serving(settings, backend) as site:
        client = await open_stream(site)
        rest, reason, _ = await _ending(site, backend, client)
        assert b"\nretry: " in rest or b"\r\nretry: " in rest
        assert reason == "timeout"
        assert count(backend, "server.limited_connections", limit=limit) == 1


async def test_a_client_that_leaves_is_forgotten_at_once(backend: Backend) -> None:
    """Its handler, its queue and its place among the readers go without a write that fails."""
    async with serving(replace(QUICK, heartbeat_seconds=60), backend) as site:
        for _ in range(3):
            client = await open_stream(site, "?topic=a")
            client.reset()
            await until(lambda: live(site) == 0)
        assert not site.app[STREAMS]._broker._readers


async def test_a_drain_flushes_and_ends_in_order(backend: Backend, instrument: Any) -> None:
    """/readyz answers 503 first and new clients are refused, then queues are sent and streams end
    with the wish to come back; a client that does not read is cut after a while.
    """
    instrument()
    settings = replace(QUICK, batch_seconds=60, drain_seconds=0.3, compress_from=0)
    async with serving(settings, backend) as site:
        assert await site.status_of("/readyz") == 200
        client = await open_stream(site, "?topic=b")
        stuck = await stuck_client(site)
        await flood(site, 120)
        await site.publish("last words", topic="b")
        draining = asyncio.create_task(site.app[STREAMS].drain())
        await asyncio.sleep(0)
        # Alive, and not for new clients.
        assert [await site.status_of(each) for each in ("/healthz", "/readyz")] == [200, 503]
        assert b"Retry-After: 1\r\n" in await head_of(site)
        assert live(site) == 2
        rest = await asyncio.wait_for(client.until(END), 10)
        await client.close()
        assert b"data: last words\n\n" in rest
        assert rest.index(b"last words") < rest.index(b"retry: ")
        await asyncio.wait_for(draining, 10)
        await until(lambda: live(site) == 0)
        closed = await until(lambda: len(backend.events("sse.connection.closed")) == 2)
        assert closed
        reasons = {
            e.attributes["sse.close.reason"] for e in backend.events("sse.connection.closed")
        }
        assert reasons == {"server_shutdown"}
        stuck.reset()


class _Behind:
    """An outlet for which so many bytes wait; none is ever taken."""

    def __init__(self, waits: int, note: Callable[[int], None]) -> None:
        self.bytes = waits
        self._note = note
        self.cut = 0.0

    def end(self, reason: str) -> None:
        self._note(self.bytes)

    def cut_if_late(self, now: float) -> None:
        self.cut = now


async def test_a_drain_of_very_many_lets_others_run(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams are ended some at a time, first those that may take longest; and none that has not
    ended is left without a last look after its time.
    """
    monkeypatch.setattr(stream_module, "FLUSH_SECONDS", 0)
    ended: list[int] = []
    turns: list[int] = []
    outlets = [_Behind(number, ended.append) for number in range(1000)]

    async def others() -> None:
        while True:
            turns.append(len(ended))
            await asyncio.sleep(0)

    async with serving(replace(QUICK, drain_seconds=0), backend) as site:
        monkeypatch.setattr(Limits, "outlets", outlets)
        turning = asyncio.create_task(others())
        began = time.monotonic()
        await site.app[STREAMS].drain()
        turning.cancel()
        monkeypatch.undo()
    assert ended == list(range(999, -1, -1))
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 100
    assert all(each.cut > began + 0.5 for each in outlets)
