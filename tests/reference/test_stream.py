"""The endpoints, on real sockets."""

import asyncio
import contextlib
import itertools
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.waiting import until
from reference.served import QUICK, Site, Told, count, message, serving
from server import limits as limits_module
from server import stream as stream_module
from server.app import LIMITS, STREAMS
from server.broker import Id, Message
from server.client import Event
from server.errors import Errors
from server.limits import Limits, resident
from server.meters import Meters
from server.outlet import Outlet
from server.settings import DISCONNECT, MIB, Settings

# Of a chunked response.
END = b"\r\n0\r\n\r\n"


async def _open(site: Site, query: str = "", *headers: str) -> RawClient:
    """A client that has been given its place."""
    client = await RawClient.get(site.port, f"/events{query}", *headers)
    await asyncio.wait_for(client.until(b"\n\n\r\n"), 10)
    await asyncio.wait_for(client.until(b"\n\n\r\n"), 10)
    return client


async def _status(site: Site, path: str = "/events", *headers: str, method: str = "GET") -> bytes:
    client = await RawClient.get(site.port, path, *headers, method=method)
    head = await asyncio.wait_for(client.until(b"\r\n\r\n"), 10)
    await client.close()
    return head


async def _read(stream: AsyncIterator[Event], count: int) -> list[str]:
    return [(await anext(stream)).data for _ in range(count)]


def _live(site: Site) -> int:
    return len(site.app[LIMITS].outlets)


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
            await until(lambda: _live(site) == 0)
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
        await until(lambda: _live(site) == 1)
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
        raw = await _open(site)
        stream = site.events()
        reading = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await until(lambda: _live(site) == 2)
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
        ({"topic": "a", "data": "\ud800"}, 400, "Unicode"),
        ({"topic": "a", "data": "x" * 65_536}, 413, "data has 65543 of 65536 bytes"),
        ([], 400, "a JSON object"),
    ],
)
async def test_what_is_no_message_is_refused(body: Any, status: int, why: str) -> None:
    """The answer says what is wrong with it, in JSON."""
    async with serving() as site:
        answer = await site.http.post(f"{site.url}/publish", content=json.dumps(body).encode())
        assert answer.status_code == status
        assert why in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
async def test_what_is_no_json_is_refused(body: bytes) -> None:
    """The answer says so, and is no 500."""
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


async def test_a_charset_that_nobody_knows_is_no_error() -> None:
    """JSON is UTF-8, whatever its sender says."""
    async with serving() as site:
        answer = await site.http.post(
            f"{site.url}/publish",
            content=b'{"topic": "a", "data": "\xc3\xa4"}',
            headers={"Content-Type": "application/json; charset=nonsense"},
        )
        assert answer.status_code == 200


async def test_who_publishes_knows_the_token() -> None:
    """Where one is set, nobody else may."""
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


async def test_pages_of_elsewhere_may_not_publish() -> None:
    """A browser sends a page's text anywhere; it names the page's origin, which has to be the
    server's own, or the one that may read.
    """
    other = "https://shop.example"
    for allowed, asked in (
        ("", {None: 200, "own": 200, other: 403, "null": 403}),
        (other, {"own": 200, other: 200, "https://evil.example": 403}),
        ("*", {other: 200, "null": 200}),
    ):
        async with serving(replace(QUICK, cors_origin=allowed)) as site:
            for origin, status in asked.items():
                headers = {"Origin": site.url if origin == "own" else origin} if origin else {}
                answer = await site.http.post(
                    f"{site.url}/publish", content='{"topic": "a", "data": "x"}', headers=headers
                )
                assert answer.status_code == status


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


async def test_pages_of_the_named_origin_may_read() -> None:
    """They may, with the header by which they come back; others may not."""
    origin = "https://shop.example"
    async with serving(replace(QUICK, cors_origin=origin)) as site:
        allowed = f"Access-Control-Allow-Origin: {origin}\r\n".encode()
        assert allowed in await _status(site)
        preflight = await _status(site, method="OPTIONS")
        assert allowed in preflight
        assert b"Access-Control-Allow-Headers: Last-Event-ID\r\n" in preflight
    async with serving() as site:
        assert b"Allow-Origin" not in await _status(site)


async def test_bad_topics_are_refused() -> None:
    """A topic nobody can publish to, and too many of them, are told."""
    async with serving() as site:
        for query in ("?topic=a%20b", "?topic=", "?" + "&".join(f"topic={n}" for n in range(21))):
            answer = await site.http.get(f"{site.url}/events{query}", timeout=2)
            assert answer.status_code == 400
            assert "topic is" in answer.json()["error"]


async def test_no_more_than_the_limits_are_let_in(backend: Backend) -> None:
    """In all, and for each address; the others are refused, told when to come back, later each
    time, and counted. Who leaves makes room.
    """
    settings = replace(QUICK, max_connections=3, max_connections_per_client=2, proxy="127.0.0.1")
    async with serving(settings, backend) as site:
        one = [await _open(site, "", "X-Forwarded-For: 10.0.0.1") for _ in range(2)]
        refused = await _status(site, "/events", "X-Forwarded-For: 10.0.0.1")
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 2\r\n" in refused
        # Only the proxy's own entry counts, which is the last.
        other = await _open(site, "", "X-Forwarded-For: 10.0.0.1, 10.0.0.2")
        waits = []
        for _ in range(8):
            head = await _status(site, "/events", "X-Forwarded-For: 10.0.0.3")
            waits.append(int(head.partition(b"Retry-After: ")[2].partition(b"\r\n")[0]))
        assert waits == sorted(waits)
        assert waits[-1] > waits[0]
        reasons = {
            reason: count(backend, "server.rejected_connections", reason=reason)
            for reason in ("connections", "connections_per_client")
        }
        assert reasons == {"connections": 8, "connections_per_client": 1}
        assert count(backend, "server.errors", **{"class": "rate_limit"}) == 9
        await one[0].close()
        await until(lambda: _live(site) == 2)
        again = await _open(site, "", "X-Forwarded-For: 10.0.0.1")
        for client in (one[1], other, again):
            await client.close()
        await until(lambda: _live(site) == 0)
        assert not site.app[LIMITS]._clients


async def test_the_address_that_the_proxy_names_is_told(backend: Backend, instrument: Any) -> None:
    """The stream's telemetry has the client's own address, as the application knows it."""
    instrument()
    async with serving(replace(QUICK, proxy="127.0.0.1"), backend) as site:
        client = await _open(site, "", "X-Forwarded-For: 10.0.0.1")
        (opened,) = backend.events("sse.connection.opened")
        assert opened.attributes["client.address"] == "10.0.0.1"
        await client.close()
        await until(lambda: _live(site) == 0)


async def test_an_address_that_no_proxy_told_is_not_believed() -> None:
    """Without a proxy the header is anybody's word, and the limit is for the real address."""
    async with serving(replace(QUICK, max_connections_per_client=1)) as site:
        client = await _open(site, "", "X-Forwarded-For: 10.0.0.1")
        head = await _status(site, "/events", "X-Forwarded-For: 10.0.0.2")
        assert head.startswith(b"HTTP/1.1 503")
        await client.close()


async def _ending(site: Site, backend: Backend, client: RawClient) -> tuple[bytes, str, list[Any]]:
    """The last of a stream, and the reason and drops that are told of it."""
    rest = await asyncio.wait_for(client.until(END), 10)
    await client.close()
    (closed,) = await until(lambda: backend.events("sse.connection.closed"))
    await until(lambda: _live(site) == 0)
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
    """It ends in order, with the wish to come back; heartbeats are no life; told as a time-out."""
    monkeypatch.setattr(limits_module, "SWEEP_SECONDS", 0.05)
    instrument()
    async with serving(settings, backend) as site:
        client = await _open(site)
        rest, reason, _ = await _ending(site, backend, client)
        assert b"\nretry: " in rest or b"\r\nretry: " in rest
        assert reason == "timeout"
        assert count(backend, "server.limited_connections", limit=limit) == 1


async def _stuck(site: Site) -> RawClient:
    """A client that has connected and reads nothing, with no room in its socket."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", site.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1)
    writer.write(b"GET /events?topic=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
    before = _live(site)
    await until(lambda: _live(site) > before)
    await asyncio.sleep(0.05)
    # asyncio reads ahead by itself.
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return RawClient(reader, writer)


async def _flood(site: Site, times: int) -> None:
    for number in range(times):
        await site.publish(f"{number} {'x' * 60_000}")


async def test_a_slow_client_drops_its_oldest_and_holds_up_nobody(
    backend: Backend, instrument: Any
) -> None:
    """What it is not sent is told, its queue stays in its bounds, and others get all of it."""
    instrument()
    settings = replace(QUICK, compress_from=0, queue_bytes=MIB)
    async with serving(settings, backend) as site:
        stuck = await _stuck(site)
        found: list[str] = []

        async def read() -> None:
            async for event in site.events("?topic=a"):
                found.append(event.data.partition(" ")[0])
                if event.data.startswith("149 "):
                    return

        reading = asyncio.create_task(read())
        await until(lambda: _live(site) == 2)
        await asyncio.sleep(0.05)
        await _flood(site, 150)
        await asyncio.wait_for(reading, 20)
        assert found == [str(n) for n in range(150)]
        slow = site.app[LIMITS].outlets[0]
        assert 0 < slow.bytes <= MIB
        dropped = backend.value("sse.server.dropped_messages", sse__drop__reason="slow_client")
        assert dropped > 0
        stuck.reset()
        await until(lambda: _live(site) == 0)


async def test_or_a_slow_client_is_disconnected_at_once(backend: Backend, instrument: Any) -> None:
    """It is cut although it does not read, and told; it may come back for all of it."""
    instrument()
    settings = replace(QUICK, compress_from=0, queue_bytes=MIB, slow_client=DISCONNECT)
    async with serving(settings, backend) as site:
        stuck = await _stuck(site)
        await _flood(site, 150)
        stuck.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await until(lambda: _live(site) == 0)
        (closed,) = await until(lambda: backend.events("sse.connection.closed"))
        assert closed.attributes["sse.close.reason"] == "timeout"
        assert count(backend, "server.limited_connections", limit="slow_client") == 1
        assert backend.value("sse.server.dropped_messages", sse__drop__reason="slow_client") > 0
        stuck.reset()


async def test_memory_above_the_limit_is_an_emergency(backend: Backend, instrument: Any) -> None:
    """The process's real memory is above a limit: what waits for slow clients is thrown away, the
    slowest is cut, nobody is let in; below it again, the server is as before.
    """
    instrument()
    settings = replace(QUICK, compress_from=0, memory_limit_mb=1)
    async with serving(settings, backend) as site:
        limits = site.app[LIMITS]
        used = [0]
        limits._memory = lambda: used[0]
        quick = await _open(site)
        stuck = [await _stuck(site) for _ in range(2)]
        await _flood(site, 120)
        behind = [each for each in limits.outlets if each.bytes]
        assert len(behind) >= 2
        for each in behind:
            # As if they had done nothing for so long.
            each._since -= 10
        used[0] = resident()
        assert used[0] > MIB
        limits.look()
        assert not any(each.bytes for each in limits.outlets)
        await until(lambda: _live(site) == 2)
        refused = await _status(site)
        assert refused.startswith(b"HTTP/1.1 503")
        assert count(backend, "server.rejected_connections", reason="memory") == 1
        assert count(backend, "server.limited_connections", limit="memory") == 1
        assert count(backend, "server.errors", **{"class": "memory_exhausted"}) == 1
        assert count(backend, "server.recoveries", action="emergency_cleanup") == 1
        assert backend.value("sse.server.dropped_messages", sse__drop__reason="memory") > 0
        # Nothing more to throw away is no new error.
        limits.look()
        assert count(backend, "server.errors", **{"class": "memory_exhausted"}) == 1
        used[0] = 0
        limits.look()
        assert (await _status(site)).startswith(b"HTTP/1.1 200")
        for client in (quick, *stuck):
            client.reset()
        await until(lambda: _live(site) == 0)


async def test_an_emergency_costs_only_those_who_are_behind(backend: Backend) -> None:
    """A client whose batch waits for its time loses nothing, however long memory is short, and
    its batch is no reason for another clean-up.
    """
    meters = Meters(backend.meter_provider)
    settings = replace(QUICK, memory_limit_mb=1, batch_seconds=60)
    limits = Limits(settings, Errors(meters), meters, lambda: 2 * MIB)
    told = Told(), Told()
    quick, stuck = (Outlet(settings, frozenset(), each, bool, limits.limited) for each in told)  # type: ignore[arg-type]
    with limits.admitted(quick, "a"), limits.admitted(stuck, "b"):
        for outlet in (quick, stuck):
            outlet.put(message(1))
        stuck._since -= 100
        limits.look()
        limits.look()
    assert told[0].drops == told[0].reasons == []
    assert told[1].drops == [(1, "memory")]
    assert told[1].reasons == ["timeout"]
    assert count(backend, "server.recoveries", action="emergency_cleanup") == 1
    assert quick.bytes > 0


async def test_a_client_that_leaves_is_forgotten_at_once(backend: Backend) -> None:
    """Its handler, its queue and its place among the readers go without a write that fails."""
    async with serving(replace(QUICK, heartbeat_seconds=60), backend) as site:
        for _ in range(3):
            client = await _open(site, "?topic=a")
            client.reset()
            await until(lambda: _live(site) == 0)
        assert not site.app[STREAMS]._broker._readers


async def test_a_drain_flushes_and_ends_in_order(backend: Backend, instrument: Any) -> None:
    """/healthz says so first and new clients are refused, then queues are sent and streams end
    with the wish to come back; a client that does not read is cut after a while.
    """
    instrument()
    settings = replace(QUICK, batch_seconds=60, drain_seconds=0.3, compress_from=0)
    async with serving(settings, backend) as site:
        assert await site.health() == 200
        client = await _open(site, "?topic=b")
        stuck = await _stuck(site)
        await _flood(site, 120)
        await site.publish("last words", topic="b")
        draining = asyncio.create_task(site.app[STREAMS].drain())
        await asyncio.sleep(0)
        assert await site.health() == 503
        assert b"Retry-After: 1\r\n" in await _status(site)
        assert _live(site) == 2
        rest = await asyncio.wait_for(client.until(END), 10)
        await client.close()
        assert b"data: last words\n\n" in rest
        assert rest.index(b"last words") < rest.index(b"retry: ")
        await asyncio.wait_for(draining, 10)
        await until(lambda: _live(site) == 0)
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
