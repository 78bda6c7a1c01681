"""Servers that stop in other ways than by a signal that ends them: recycled workers, programs that
stop their server, parents that signal nobody. What ends the streams is the server all the same.
"""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from e2e.stops import STOPS, Stop
from helpers.otlp import Receiver
from helpers.processes import PATIENCE, Served, opened, serve
from helpers.raw_client import RawClient
from helpers.servers import AIOHTTP_SSE_3

pytestmark = [pytest.mark.timeout(300), AIOHTTP_SSE_3]

# Streams of each kind.
STREAMS = 2
# A process that is killed ten seconds after it was asked to stop has reported everything by then.
# A worker that ends on its own is killed by nobody, and its server decides when its turn comes.
KILLED_AFTER = 10.0


async def _recycle(served: Served) -> None:
    """Requests that are no stream, without an end: a server's workers take as many as they take,
    and none while one of them is recycled.
    """
    while True:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            client = await RawClient.get(served.port, "/other", "Connection: close")
            try:
                await asyncio.wait_for(client.reader.read(-1), 2)
            finally:
                client.writer.transport.abort()
        await asyncio.sleep(0)


async def _terminate(served: Served) -> None:
    served.process.send_signal(signal.SIGTERM)


async def _ask(served: Served) -> None:
    served.process.send_signal(signal.SIGUSR1)


_BY: dict[str, Callable[[Served], Awaitable[None]]] = {
    "recycled": _recycle,
    "signal": _terminate,
    "asked": _ask,
}


@pytest.mark.parametrize("way", STOPS.values(), ids=STOPS)
async def test_a_server_that_stops_is_what_ends_its_streams(way: Stop, receiver: Receiver) -> None:
    """Each live stream is reported as ``server_shutdown``, by span, event and metric, before the
    process would be killed, whatever its clean-up does.
    """

    def reasons() -> tuple[Counter[tuple[str, str]], ...]:
        spans = receiver.spans("SSE")
        closed = receiver.records("sse.connection.closed")
        durations = receiver.points("sse.server.connection.duration")
        found = tuple(
            Counter(_reason(each.attributes) for each in these) for these in (spans, closed)
        )
        counted: Counter[tuple[str, str]] = Counter()
        for point in durations:
            counted[_reason(point.attributes)] += int(point.value)
        return (*found, counted)

    with serve(way.command, receiver) as served:
        await served.started()
        async with contextlib.AsyncExitStack() as stack:
            for path in way.paths:
                await stack.enter_async_context(opened(served, path, STREAMS))
            stopping = asyncio.ensure_future(_BY[way.by](served))
            count = STREAMS * len(way.paths)
            with contextlib.suppress(AssertionError):
                await asyncio.to_thread(
                    receiver.wait_for,
                    lambda: all(each.total() >= count for each in reasons()),
                    PATIENCE if way.by == "recycled" else KILLED_AFTER,
                )
            stopping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await stopping
        expected = Counter({(path, "server_shutdown"): STREAMS for path in way.paths})
        found = reasons()
        assert found == (expected, expected, expected), served.ended(signal.SIGKILL)


def _reason(attributes: object) -> tuple[str, str]:
    assert isinstance(attributes, dict)
    return attributes["http.route"], attributes["sse.close.reason"]
