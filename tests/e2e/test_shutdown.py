"""Servers that stop with live streams: all is reported before the process ends."""

import asyncio
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest
from e2e.closes import HYPERCORN_WAITS
from helpers.otlp import Receiver
from helpers.processes import opened, serve

GRACE = 6
# gunicorn and granian kill at this limit, in seconds; streams are reported in its last 5 s.
KILLED_AFTER = 10
UVICORN = "uvicorn stop_asgi:app --port {port} --log-level error"
GUNICORN = f"gunicorn -b 127.0.0.1:{{port}} -w 2 --graceful-timeout {KILLED_AFTER}"
SERVERS = {
    "uvicorn": f"{UVICORN} --timeout-graceful-shutdown {GRACE} --loop asyncio",
    "uvicorn-uvloop": f"{UVICORN} --timeout-graceful-shutdown {GRACE} --loop uvloop",
    "uvicorn-workers": f"{UVICORN} --timeout-graceful-shutdown {GRACE} --workers 2"
    # By default a worker that is slow to start is killed after five seconds.
    " --timeout-worker-healthcheck 60",
    "gunicorn-uvicorn": f"{GUNICORN} -k uvicorn.workers.UvicornWorker stop_asgi:app",
    "hypercorn": f"hypercorn stop_asgi:app -b 127.0.0.1:{{port}} --graceful-timeout {GRACE}",
    "granian": "granian stop_asgi:app --interface asgi --port {port} --log-level critical"
    f" --loop uvloop --workers-kill-timeout {KILLED_AFTER}",
    "granian-asyncio": "granian stop_asgi:app --interface asgi --port {port} --log-level critical"
    f" --loop asyncio --workers-kill-timeout {KILLED_AFTER}",
    "aiohttp": f"python stop_aiohttp.py {{port}} {GRACE}",
    "gunicorn-aiohttp": f"{GUNICORN} -k aiohttp.GunicornWebWorker stop_aiohttp:app",
    "gunicorn-aiohttp-uvloop": f"{GUNICORN} -k aiohttp.GunicornUVLoopWebWorker stop_aiohttp:app",
}
WAITING = ("hypercorn",) if sys.version_info >= HYPERCORN_WAITS else ()
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop(NamedTuple):
    status: int
    output: str
    seconds: float
    reasons: Counter[tuple[str, str]]
    closed: Counter[tuple[str, str]]
    durations: Counter[tuple[str, str]]
    active: float
    messages: float


async def _stop(command: str, number: signal.Signals, streams: int, *, instrumented: bool) -> Stop:
    """Stops a server while that many endless streams are live, and a short one."""
    with Receiver() as receiver, serve(command, receiver if instrumented else None) as served:
        await served.started()
        async with opened(served, "/endless", streams), opened(served, "/short", 1):
            began = time.monotonic()
            status, output = await asyncio.to_thread(served.ended, number)
            seconds = time.monotonic() - began
        return Stop(
            status,
            output,
            seconds,
            Counter(_key(span.attributes) for span in receiver.spans("SSE")),
            Counter(_key(each.attributes) for each in receiver.records("sse.connection.closed")),
            _durations(receiver),
            receiver.value("sse.server.active_connections"),
            receiver.value("sse.server.messages"),
        )


def _key(attributes: object) -> tuple[str, str]:
    assert isinstance(attributes, dict)
    return attributes["http.route"], attributes["sse.close.reason"]


def _durations(receiver: Receiver) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for point in receiver.points("sse.server.connection.duration"):
        found[_key(point.attributes)] += int(point.value)
    return found


Stops = dict[tuple[str, signal.Signals, bool], "Future[Stop]"]


@pytest.fixture(scope="module")
def stops() -> Iterator[Stops]:
    """All stops, some at a time: most of each is waiting. Few: a process that ends gives its
    exporters ten seconds, of which they must get some.
    """
    with ThreadPoolExecutor(3) as pool:
        yield {
            (name, number, instrumented): pool.submit(
                lambda command, number, instrumented: asyncio.run(
                    _stop(command, number, 100 if instrumented else 5, instrumented=instrumented)
                ),
                command,
                number,
                instrumented,
            )
            for name, command in SERVERS.items()
            if name not in WAITING
            for number in SIGNALS
            for instrumented in (True, False)
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", SERVERS)
def test_a_stop_loses_nothing(name: str, number: signal.Signals, stops: Stops) -> None:
    """A hundred live streams end as cut by the server, one that has ended as completed; and
    the server ends as it would without us: with the same status, hardly later.
    """
    if name in WAITING:
        pytest.skip("hypercorn waits for connections that do not close")
    stop = stops[name, number, True].result()
    expected = {("/endless", "server_shutdown"): 100, ("/short", "completed"): 1}
    assert stop.reasons == expected, stop.output
    assert stop.closed == expected
    assert stop.durations == expected
    assert stop.active == 0
    assert stop.messages == 102
    assert "otel_sse:" not in stop.output
    assert "Unhandled" not in stop.output
    plain = stops[name, number, False].result()
    assert stop.status == plain.status
    assert stop.seconds < plain.seconds + 20


@pytest.mark.timeout(300)
def test_a_server_that_stops_reports_five_thousand_live_streams() -> None:
    """More than the SDK's queues hold end in one moment, on real sockets, and all arrive."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 12_000:
        pytest.skip(f"it needs 12,000 open files, and the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        stop = asyncio.run(_stop(SERVERS["uvicorn"], signal.SIGTERM, 5000, instrumented=True))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    expected = {("/endless", "server_shutdown"): 5000, ("/short", "completed"): 1}
    assert stop.reasons == stop.closed == stop.durations == expected, stop.output
    assert stop.active == 0
    assert stop.messages == 5002
    assert "queue is full" not in stop.output.lower()
