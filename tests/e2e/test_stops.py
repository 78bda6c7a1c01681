"""Servers that stop in other ways than by a signal that ends them: recycled workers, programs that
stop their server, parents that signal nobody. What ends the streams is the server all the same.
"""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
from helpers.otlp import Receiver
from helpers.processes import Served, opened, serve
from helpers.raw_client import RawClient
from helpers.servers import AIOHTTP_SSE_3

pytestmark = [pytest.mark.timeout(300), AIOHTTP_SSE_3]

# Streams of each kind, and requests that recycle a worker.
STREAMS = 2
MAX_REQUESTS = 20
# A process that is killed ten seconds after it was asked to stop has reported everything by then.
KILLED_AFTER = 10.0


async def _recycle(served: Served) -> None:
    """Requests that are no stream: as many as a worker takes before it is recycled."""
    for _ in range(2 * MAX_REQUESTS):
        try:
            client = await RawClient.get(served.port, "/other", "Connection: close")
        except OSError:
            return
        try:
            await asyncio.wait_for(client.reader.read(-1), 2)
        except (OSError, asyncio.TimeoutError):
            return
        finally:
            client.writer.transport.abort()


async def _terminate(served: Served) -> None:
    served.process.send_signal(signal.SIGTERM)


async def _ask(served: Served) -> None:
    served.process.send_signal(signal.SIGUSR1)


class Way(NamedTuple):
    """A command, the streams that are live, and how the server comes to stop."""

    command: str
    paths: tuple[str, ...]
    stop: Callable[[Served], Awaitable[None]]


ASGI = ("/plain", "/cleaning", "/sse-starlette", "/twice")
AIOHTTP = ("/plain", "/cleaning", "/writing", "/aiohttp-sse")
_UVICORN = (
    "uvicorn stops_asgi:app --port {port} --timeout-graceful-shutdown 1"
    f" --limit-max-requests {MAX_REQUESTS} --timeout-worker-healthcheck 60"
)
_HYPERCORN = "hypercorn {app} -b 127.0.0.1:{{port}} --graceful-timeout 1"
_GUNICORN = (
    "gunicorn -b 127.0.0.1:{port} --graceful-timeout 2 --timeout 120"
    f" --max-requests {MAX_REQUESTS}"
)
WAYS = {
    "uvicorn-recycled": Way(f"{_UVICORN} --loop asyncio --http h11", ASGI, _recycle),
    "uvicorn-uvloop-recycled": Way(f"{_UVICORN} --loop uvloop --http httptools", ASGI, _recycle),
    "uvicorn-worker-recycled": Way(f"{_UVICORN} --workers 2", ASGI, _recycle),
    "uvicorn-in-a-thread": Way("python stops_asgi.py {port} thread", ASGI, _terminate),
    "uvicorn-should-exit": Way("python stops_asgi.py {port} main", ASGI, _ask),
    "uvicorn-signal": Way(_UVICORN, ASGI, _terminate),
    "gunicorn-recycled": Way(f"{_GUNICORN} -k stops_worker.Worker stops_asgi:app", ASGI, _recycle),
    "hypercorn-recycled": Way(
        f"{_HYPERCORN.format(app='stops_asgi:app')} --max-requests {MAX_REQUESTS}", ASGI, _recycle
    ),
    "hypercorn-signal": Way(_HYPERCORN.format(app="stops_asgi:app"), ASGI, _terminate),
    "hypercorn-uvloop-signal": Way(
        f"{_HYPERCORN.format(app='stops_asgi:app')} -k uvloop", ASGI, _terminate
    ),
    "hypercorn-trio-signal": Way(
        f"{_HYPERCORN.format(app='trio_app:app')} -k trio", ("/silent",), _terminate
    ),
    "aiohttp-signal": Way("python stops_aiohttp.py {port} run_app", AIOHTTP, _terminate),
    "aiohttp-cleanup": Way("python stops_aiohttp.py {port} cleanup", AIOHTTP, _ask),
    "gunicorn-aiohttp-recycled": Way(
        f"{_GUNICORN} -k aiohttp.GunicornWebWorker stops_aiohttp:app", AIOHTTP, _recycle
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_server_that_stops_is_what_ends_its_streams(way: Way, receiver: Receiver) -> None:
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
            await way.stop(served)
            count = STREAMS * len(way.paths)
            with contextlib.suppress(AssertionError):
                await asyncio.to_thread(
                    receiver.wait_for,
                    lambda: all(each.total() >= count for each in reasons()),
                    KILLED_AFTER,
                )
    expected = Counter({(path, "server_shutdown"): STREAMS for path in way.paths})
    assert reasons() == (expected, expected, expected)


def _reason(attributes: object) -> tuple[str, str]:
    assert isinstance(attributes, dict)
    return attributes["http.route"], attributes["sse.close.reason"]
