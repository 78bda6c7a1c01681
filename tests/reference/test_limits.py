"""Limits of number, of memory and of what waits for a client, on real sockets."""

import asyncio
from dataclasses import replace
from typing import Any

from helpers.backend import Backend
from helpers.waiting import until
from reference.served import (
    QUICK,
    StreamRecorder,
    count,
    flood,
    head_of,
    live,
    message,
    open_stream,
    serving,
    stuck_client,
)
from server.app import LIMITS
from server.errors import Errors
from server.limits import Limits, resident
from server.meters import Meters
from server.outlet import Outlet
from server.settings import CLIENT_BUFFER_BYTES, DISCONNECT, MIB

import otel_sse


async def test_no_more_than_the_limits_are_let_in(backend: Backend) -> None:
    """In all, and for each address; the others are refused with a Retry-After, longer each
    time, and counted. Who leaves makes room.
    """
    settings = replace(QUICK, max_connections=3, max_connections_per_client=2, proxy="127.0.0.1")
    async with serving(settings, backend) as site:
        one = [await open_stream(site, "", "X-Forwarded-For: 10.0.0.1") for _ in range(2)]
        refused = await head_of(site, "/events", "X-Forwarded-For: 10.0.0.1")
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 2\r\n" in refused
        # Only the proxy's own entry counts, which is the last.
        other = await open_stream(site, "", "X-Forwarded-For: 10.0.0.1, 10.0.0.2")
        waits = []
        for _ in range(8):
            head = await head_of(site, "/events", "X-Forwarded-For: 10.0.0.3")
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
        await until(lambda: live(site) == 2)
        again = await open_stream(site, "", "X-Forwarded-For: 10.0.0.1")
        for client in (one[1], other, again):
            await client.close()
        await until(lambda: live(site) == 0)
        assert not site.app[LIMITS]._clients


async def test_a_slow_client_drops_its_oldest_and_holds_up_no_other(
    backend: Backend, instrument: Any
) -> None:
    """What it is not sent is recorded, its queue stays in its bounds, and others get all of it."""
    instrument()
    settings = replace(QUICK, compress_from=0, queue_bytes=MIB)
    async with serving(settings, backend) as site:
        stuck = await stuck_client(site)
        found: list[str] = []

        async def read() -> None:
            async for event in site.events("?topic=a"):
                found.append(event.data.partition(" ")[0])
                if event.data.startswith("149 "):
                    return

        reading = asyncio.create_task(read())
        await until(lambda: live(site) == 2)
        await asyncio.sleep(0.05)
        await flood(site, 150)
        await asyncio.wait_for(reading, 20)
        assert found == [str(n) for n in range(150)]
        slow = site.app[LIMITS].outlets[0]
        assert 0 < slow.bytes <= MIB
        dropped = backend.value("sse.server.dropped_messages", sse__drop__reason="slow_client")
        assert dropped > 0
        stuck.reset()
        await until(lambda: live(site) == 0)


async def test_or_a_slow_client_is_disconnected_at_once(backend: Backend, instrument: Any) -> None:
    """It is cut although it does not read, and recorded; it may come back for all of it."""
    instrument()
    settings = replace(QUICK, compress_from=0, queue_bytes=MIB, slow_client=DISCONNECT)
    async with serving(settings, backend) as site:
        stuck = await stuck_client(site)
        await flood(site, 150)
        stuck.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await until(lambda: live(site) == 0)
        (closed,) = await until(lambda: backend.events("sse.connection.closed"))
        assert closed.attributes["sse.close.reason"] == "timeout"
        assert count(backend, "server.limited_connections", limit="slow_client") == 1
        assert backend.value("sse.server.dropped_messages", sse__drop__reason="slow_client") > 0
        stuck.reset()


async def test_memory_above_the_limit_is_an_emergency(backend: Backend, instrument: Any) -> None:
    """The process's real memory is above a limit: what waits for slow clients is thrown away, the
    slowest is cut, no client is let in; below it again, the server is as before.
    """
    instrument()
    settings = replace(QUICK, compress_from=0, memory_limit_mb=1)
    async with serving(settings, backend) as site:
        limits = site.app[LIMITS]
        used = [0]
        limits._memory = lambda: used[0]
        quick = await open_stream(site)
        stuck = [await stuck_client(site) for _ in range(2)]
        await flood(site, 120)
        behind = [each for each in limits.outlets if each.bytes]
        assert len(behind) >= 2
        for each in behind:
            # As if they had done nothing for so long.
            each._since -= 10
        used[0] = resident()
        assert used[0] > MIB
        limits.enforce()
        assert not any(each.bytes for each in limits.outlets)
        await until(lambda: live(site) == 2)
        refused = await head_of(site)
        assert refused.startswith(b"HTTP/1.1 503")
        assert count(backend, "server.rejected_connections", reason="memory") == 1
        assert count(backend, "server.limited_connections", limit="memory") == 1
        assert count(backend, "server.errors", **{"class": "memory_exhausted"}) == 1
        assert count(backend, "server.recoveries", action="emergency_cleanup") == 1
        assert backend.value("sse.server.dropped_messages", sse__drop__reason="memory") > 0
        # Nothing more to throw away is no new error.
        limits.enforce()
        assert count(backend, "server.errors", **{"class": "memory_exhausted"}) == 1
        used[0] = 0
        limits.enforce()
        assert (await head_of(site)).startswith(b"HTTP/1.1 200")
        for client in (quick, *stuck):
            client.reset()
        await until(lambda: live(site) == 0)


async def test_an_emergency_costs_only_those_who_are_behind(backend: Backend) -> None:
    """A client whose batch waits for its time loses nothing, however long memory is short, and
    its batch is no reason for another clean-up.
    """
    meters = Meters(backend.meter_provider)
    settings = replace(QUICK, memory_limit_mb=1, batch_seconds=60)
    limits = Limits(settings, Errors(meters), meters, lambda: 2 * MIB)
    streams = StreamRecorder(), StreamRecorder()
    quick, stuck = (Outlet(settings, frozenset(), each, bool, limits.limited) for each in streams)  # type: ignore[arg-type]
    with limits.admitted(quick, "a"), limits.admitted(stuck, "b"):
        for outlet in (quick, stuck):
            outlet.put(message(1))
        stuck._since -= 100
        limits.enforce()
        limits.enforce()
    assert streams[0].drops == streams[0].reasons == []
    assert streams[1].drops == [(1, "memory")]
    assert streams[1].reasons == ["timeout"]
    assert count(backend, "server.recoveries", action="emergency_cleanup") == 1
    assert quick.bytes > 0


async def test_a_client_that_does_not_read_holds_little_beyond_its_queue(
    backend: Backend, instrument: Any
) -> None:
    """The kernel would take megabytes for each of them; what it and asyncio hold is what the
    settings have as the client's buffer, and a message that was half written.
    """
    instrument()
    settings = replace(QUICK, compress_from=0, queue_bytes=MIB)
    async with serving(settings, backend) as site:
        stuck = [await stuck_client(site) for _ in range(5)]
        await flood(site, 150)
        held = [each.backlog or 0 for each in otel_sse.connections()]
        assert len(held) == 5
        # The queues are full: nothing else keeps the kernel from taking more.
        assert all(each.bytes > MIB - 61_000 for each in site.app[LIMITS].outlets)
        assert min(held) > 0
        # A segment of the network may be unsent beyond the limit.
        assert max(held) < CLIENT_BUFFER_BYTES + 3 * 65_536
        for each in stuck:
            each.reset()
        await until(lambda: live(site) == 0)
