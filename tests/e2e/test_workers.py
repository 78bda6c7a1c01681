"""Servers with several worker processes: each reports its own streams, all of them and no other.

What workers export is read off the OTLP wire. A stream is identified by its caller's trace, a
process by its ``service.instance.id``.
"""

import asyncio
import contextlib
import http.client
import itertools
import os
import secrets
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.otlp import Receiver
from helpers.processes import APPS, BIN, Served, serve
from helpers.waiting import wait_until

INSTANCE = "service.instance.id"


class ReceivedStream(NamedTuple):
    """What a client has received: from which process, in which trace, how many messages."""

    worker: str
    trace_id: str
    messages: int


class Fleet:
    """The workers of a server; ``streams`` are those that clients have read from them."""

    def __init__(self, served: Served, receiver: Receiver) -> None:
        self.served = served
        self.receiver = receiver
        self.streams: list[ReceivedStream] = []
        self._held: list[socket.socket] = []

    def read(self, count: int, query: str = "") -> ReceivedStream:
        """Reads a stream of ``count`` messages to its end; a ``live`` or ``busy`` one so far."""
        trace_id, last = secrets.token_hex(16), b"data: %d\n\n" % (count - 1)
        traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-01"
        connection = http.client.HTTPConnection("127.0.0.1", self.served.port, timeout=90)
        connection.request("GET", f"/stream/{count}?{query}", headers={"traceparent": traceparent})
        response = connection.getresponse()
        assert response.status == 200
        worker, body = response.headers["x-worker"], b""
        while not (body.endswith(last) if query else response.isclosed()):
            body += response.read1()
        if query and connection.sock is not None:
            self._held.append(connection.sock)
        else:
            connection.close()
        self.streams.append(ReceivedStream(worker, trace_id, body.count(b"data:")))
        return self.streams[-1]

    def until(self, workers: int, read: Callable[[], object]) -> None:
        """Reads until so many workers have served; one that ends may refuse to."""
        deadline = time.monotonic() + 180
        while len({stream.worker for stream in self.streams}) < workers:
            assert time.monotonic() < deadline, self.streams
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                read()

    def disconnect(self) -> None:
        """The clients of live streams disconnect."""
        while self._held:
            self._held.pop().close()

    def stop(self) -> None:
        """Ends the server as an orchestrator does."""
        self.disconnect()
        status, output = self.served.ended(signal.SIGTERM)
        assert status in (0, -signal.SIGTERM), output


@contextlib.contextmanager
def running(
    command: str, receiver: Receiver, *, instrument: bool = True, **env: str
) -> Iterator[Fleet]:
    program = command.split()[0]
    if not (BIN / program).exists() and "CI" not in os.environ:
        pytest.skip(f"{program} is not installed")
    with serve(command, receiver if instrument else None, **env) as served:
        fleet = Fleet(served, receiver)
        try:
            asyncio.run(served.started())
            yield fleet
        finally:
            fleet.disconnect()


def by_instance(receiver: Receiver, name: str) -> "Counter[str]":
    """A metric's values, a histogram's counts, of each process where they are not zero."""
    found: Counter[str] = Counter()
    for point in receiver.points(f"sse.server.{name}"):
        found[point.resource[INSTANCE]] += int(point.value)
    return Counter({instance: value for instance, value in found.items() if value})


METRICS = (
    "active_connections",
    "connections",
    "messages",
    "connection.duration",
    "connection.time_to_first_message",
)


def assert_exact(fleet: Fleet, *, master: int = 0) -> None:
    """All streams have ended, and each worker has reported all of its own and no other; the
    process from which they are forked has reported ``master``, of five messages each.
    """
    receiver = fleet.receiver
    streams = {stream.trace_id: stream for stream in fleet.streams}
    instances: dict[str, str] = {}
    for found in (receiver.spans("SSE"), receiver.records("sse.connection.closed")):
        reports = [each for each in found if each.trace_id in streams]
        assert sorted(each.trace_id for each in reports) == sorted(streams)
        assert len(found) == len(reports) + master
        for each in reports:
            stream, instance = streams[each.trace_id], each.resource[INSTANCE]
            assert instances.setdefault(stream.worker, instance) == instance
            assert each.attributes["sse.messages"] == stream.messages
    assert len(set(instances.values())) == len(instances)

    connections = Counter(instances[stream.worker] for stream in fleet.streams)
    messages: Counter[str] = Counter()
    for stream in fleet.streams:
        messages[instances[stream.worker]] += stream.messages
    if master:
        (first,) = set(by_instance(receiver, "connections")) - set(connections)
        connections[first], messages[first] = master, master * 5
    figures = {name: by_instance(receiver, name) for name in METRICS}
    assert not figures.pop("active_connections")
    assert figures.pop("messages") == messages
    assert figures == dict.fromkeys(figures, connections)


UVICORN = "uvicorn workers_starlette:app --port {port} --log-level critical"
# Before a worker is killed that its server has asked to end, in seconds. Where a live stream holds
# it up, as aiohttp's do, it waits for 95 % of that; the rest has to do for its exporters. No
# server kills a worker that ends on its own.
PATIENCE, HELD_UP, ALONE = 60, 12, 5
GUNICORN = f"gunicorn -b 127.0.0.1:{{port}} -w 2 --graceful-timeout {PATIENCE} --log-level critical"
SERVERS = {
    "uvicorn": f"{UVICORN} --workers 2 --timeout-graceful-shutdown 1",
    "hypercorn": "hypercorn workers_starlette:app -b 127.0.0.1:{port} -w 2 --graceful-timeout 1",
    "granian": "granian --interface asgi workers_starlette:app --port {port} --workers 2"
    f" --log-level critical --workers-kill-timeout {PATIENCE}",
    "gunicorn": f"{GUNICORN} -k workers_gunicorn.Worker workers_starlette:app",
    "gunicorn and aiohttp": f"{GUNICORN} --graceful-timeout {HELD_UP}"
    " -k aiohttp.GunicornWebWorker workers_aiohttp:app",
}
PRELOADED = {
    f"{server}, preloaded": f"{SERVERS[server]} --preload"
    for server in ("gunicorn", "gunicorn and aiohttp")
}


def serve_from_both(fleet: Fleet) -> None:
    """Reads streams of all kinds until two workers have served some."""
    count = itertools.count(1)

    def read() -> None:
        # While this one's worker is busy, the other one takes the next.
        for query in ("busy", "", "live"):
            fleet.read(next(count), query)

    fleet.until(2, read)
    read()


@pytest.mark.parametrize("server", [*SERVERS, *PRELOADED])
def test_each_worker_reports_its_own(server: str, receiver: Receiver) -> None:
    """Under every server, and where the application is imported before the fork: no worker
    reports another's streams, each has an instance id of its own, and the totals are exact.
    """
    with running({**SERVERS, **PRELOADED}[server], receiver) as fleet:
        serve_from_both(fleet)
        fleet.stop()
    assert_exact(fleet)


def test_a_master_that_has_served_gives_its_workers_nothing(receiver: Receiver) -> None:
    """What was counted and recorded before the fork, and what lives there, is the master's."""
    with running(PRELOADED["gunicorn, preloaded"], receiver, SERVE_FIRST="1") as fleet:
        serve_from_both(fleet)
        fleet.stop()
    assert_exact(fleet, master=3)


def test_workers_that_set_their_telemetry_up(receiver: Receiver) -> None:
    """By gunicorn's ``post_fork``, with a master that has none: frequent exports are exact too."""
    command = f"{PRELOADED['gunicorn, preloaded']} -c workers_gunicorn.py"
    env = receiver.environment
    for delay in ("METRIC_EXPORT_INTERVAL", "BSP_SCHEDULE_DELAY", "BLRP_SCHEDULE_DELAY"):
        env[f"OTEL_{delay}"] = "50"
    with running(command, receiver, instrument=False, **env) as fleet:
        serve_from_both(fleet)
        fleet.stop()
    assert_exact(fleet)


RECYCLED = {
    # It kills a worker that does not answer for that long, which a busy machine may keep from it;
    # it waits as long for one that ends before it answers.
    "uvicorn": f"{SERVERS['uvicorn']} --limit-max-requests 5 --timeout-worker-healthcheck 20",
    "hypercorn": f"{SERVERS['hypercorn']} --max-requests 5",
    **{
        server: f"{command} --max-requests 5 --graceful-timeout {ALONE}"
        for server, command in {**SERVERS, **PRELOADED}.items()
        if server.startswith("gunicorn")
    },
}


@pytest.mark.parametrize("server", RECYCLED)
def test_a_worker_that_is_recycled_reports_everything(server: str, receiver: Receiver) -> None:
    """A worker that ends after N requests reports them all, and the stream that it cuts,
    though its exporters would have waited for a minute.
    """
    with running(RECYCLED[server], receiver) as fleet:
        fleet.read(3, "live")
        fleet.until(3, lambda: fleet.read(3))
        # uvicorn gives SIGTERM its default action back before its process is over: one whose end
        # has begun is left to it. aiohttp's and Hypercorn's workers end with one request more.
        completed = Counter(stream.worker for stream in fleet.streams[3:])
        limit = 6 if "aiohttp" in server or server == "hypercorn" else 5
        ending = [worker for worker, count in completed.items() if count >= limit]
        wait_until(lambda: not any(Path("/proc", worker).exists() for worker in ending))
        fleet.stop()
    assert_exact(fleet)


def test_a_reload_reports_everything(receiver: Receiver, tmp_path: Path) -> None:
    """A developer saves a file: the live streams are reported as cut, the ended ones too, and the
    next process begins with nothing.
    """
    app = tmp_path / "workers_starlette.py"
    shutil.copy(APPS / app.name, app)
    command = f"{UVICORN} --timeout-graceful-shutdown 1 --reload"
    with running(f"{command} --app-dir {tmp_path} --reload-dir {tmp_path}", receiver) as fleet:
        for query in ("", "live", "live"):
            fleet.read(4, query)
        os.utime(app)
        fleet.until(2, lambda: fleet.read(4))
        fleet.stop()
    assert_exact(fleet)
    reasons = Counter(span.attributes["sse.close.reason"] for span in receiver.spans("SSE"))
    assert reasons == {"server_shutdown": 2, "completed": len(fleet.streams) - 2}


CHILDREN = [
    ("spawn", "nothing"),
    ("forkserver", "nothing"),
    ("fork", "nothing"),
    ("os.fork", "nothing"),
    ("os.fork", "ours"),
    ("os.fork", "setup"),
    ("os.fork", "collecting"),
]


@pytest.mark.parametrize(("how", "held"), CHILDREN)
def test_a_child_of_a_process_that_serves(how: str, held: str, receiver: Receiver) -> None:
    """However it is made, and whatever a thread of its parent holds meanwhile: it serves,
    reports its own streams and no other, and ends on its own.
    """
    with serve(f"python workers_forks.py {how} {held}", receiver) as served:
        status, output = served.ended()
        assert status == 0, output
    totals = {name: by_instance(receiver, name) for name in METRICS}
    assert not totals.pop("active_connections")
    assert sorted(totals.pop("messages").values()) == [15, 20]
    assert {name: sorted(counts.values()) for name, counts in totals.items()} == {
        name: [3, 4] for name in totals
    }
    for found in (receiver.spans("SSE"), receiver.records("sse.connection.closed")):
        assert Counter(each.resource[INSTANCE] for each in found) == totals["connections"]
