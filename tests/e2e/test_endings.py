"""Every way in which a stream closes, on every server: real processes, a real receiver."""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from e2e.endings import SERVERS, Ending, ServerCommand, endings_of, expected
from helpers.otlp import Point, Receiver, Record, Span
from helpers.processes import ALONE, APPS, BIN, INSTRUMENT

pytestmark = pytest.mark.timeout(600)

TESTS = Path(__file__).parent.parent
CONTRIB = "opentelemetry.instrumentation."
# How long anything may take on a machine that is busy.
PATIENCE = 150.0
CELLS = [
    pytest.param(server, kind, ending, id=f"{server.name}-{kind}-{ending.path}")
    for server in SERVERS
    for kind in server.kinds
    for ending in endings_of(kind)
]
UNPLUGGED = [
    next(server for server in SERVERS if server.name == f"{name} (asyncio)")
    for name in ("uvicorn", "hypercorn", "granian", "aiohttp")
]
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
EACH_SERVER = pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)


class SocketClient:
    """A request on a bare socket with a small buffer, which ends as asked."""

    def __init__(self, port: int, path: str, method: str) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**13)
        self._socket.settimeout(PATIENCE)
        self.read = b""
        try:
            self._socket.connect(("127.0.0.1", port))
            self._socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        except OSError:
            self._socket.close()
            raise

    def until(self, needle: bytes) -> None:
        """Reads up to ``needle``, or to the end where that comes before."""
        while needle not in self.read and (data := self._socket.recv(2**8)):
            self.read += data

    def closes(self) -> None:
        self._socket.close()

    def resets(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()


@dataclasses.dataclass
class Run:
    """What a server's process has reported, what its clients have read, and how it went.

    ``ended`` is what was reported before the server was asked to stop, ``remaining`` how many
    connections the server still had when the network was down.
    """

    receiver: Receiver
    read: dict[str, bytes] = dataclasses.field(default_factory=dict)
    status: int | None = None
    output: str = ""
    ended: frozenset[str] = frozenset()
    remaining: int = 0

    def spans(self, route: str) -> list[Span]:
        return [
            span for span in self.receiver.spans("SSE") if span.attributes.get("url.path") == route
        ]

    def closed(self, route: str) -> list[Record]:
        records = self.receiver.records("sse.connection.closed")
        return [record for record in records if record.attributes.get("url.path") == route]

    def durations(self, route: str) -> list[Point]:
        return self.receiver.points("sse.server.connection.duration", http__route=route)


@contextlib.contextmanager
def process(server: ServerCommand, run: Run) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A server that serves, and its port; afterwards it has stopped, and ``run`` has its output."""
    with socket.socket() as reserved, tempfile.TemporaryFile() as output:
        # Bound, so that no other process gets the port; not listening, so that the server may.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        program, *arguments = server.command.format(port=port).split()
        started = subprocess.Popen(
            [INSTRUMENT, BIN / program, *arguments],
            env={
                **os.environ,
                "PYTHONPATH": str(TESTS),
                **run.receiver.environment,
                # All but the events comes when the process stops, or never.
                "OTEL_METRIC_EXPORT_INTERVAL": "600000",
                "OTEL_BSP_SCHEDULE_DELAY": "600000",
                "OTEL_BLRP_SCHEDULE_DELAY": "100",
                **({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ""} if server.contrib else ALONE),
            },
            # Not the checkout: opentelemetry-instrument puts the working directory on the path.
            cwd=APPS,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            until(lambda: listens(port) or started.poll() is not None)
            yield started, port
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.status = started.wait(PATIENCE)
        except OSError as error:
            output.seek(0)
            raise AssertionError(output.read().decode(errors="replace")) from error
        finally:
            # Its workers, too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            output.seek(0)
            run.output = output.read().decode(errors="replace")


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), PATIENCE):
        return True
    return False


def until(condition: Callable[[], Any]) -> None:
    """At most ``PATIENCE`` seconds: a test of its own fails for what has not come by then."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def drive(server: ServerCommand) -> Run:
    """Has every ending happen on the server, and then stops it."""
    with Receiver() as receiver:
        run = Run(receiver)
        with contextlib.ExitStack() as stack, process(server, run) as (started, port):
            clients: dict[tuple[str, Ending], SocketClient] = {}
            awaited = set()
            for kind in server.kinds:
                for ending in endings_of(kind):
                    route = f"/{kind}/{ending.path}"
                    clients[kind, ending] = client = SocketClient(port, route, ending.method)
                    stack.callback(client.closes)
                    client.until(b"begun" if ending.reason else b"\r\n\r\n")
                    run.read[route] = client.read
                    wanted = expected(server, kind, ending)
                    if ending.reason not in (None, "server_shutdown") and not wanted.late:
                        awaited.add(route)
                    if ending.client in ("closes", "resets"):
                        getattr(client, ending.client)()
            # A client that stalls is one whose server has had to wait.
            until(lambda: any(run.closed(f"/{kind}/stops-reading") for kind in server.kinds))
            for (_, ending), client in clients.items():
                if ending.client == "stalls":
                    client.resets()
            until(lambda: all(run.closed(route) for route in awaited))
            run.ended = frozenset(route for route in run.read if run.closed(route))
            started.send_signal(signal.SIGTERM)
    return run


def unplug(server: ServerCommand) -> Run:
    """Has two clients' network go without a word, while the server sends to one of them.

    The server is alone with them in a network of its own, where TCP soon gives up.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network of one's own")
    network(up=True)
    Path("/proc/sys/net/ipv4/tcp_retries2").write_text("3")
    kind, *_ = server.kinds
    sending, silent = f"/{kind}/stopped", f"/{kind}/silent"
    with Receiver() as receiver:
        run = Run(receiver)
        with contextlib.ExitStack() as stack, process(server, run) as (started, port):
            for route in (sending, silent):
                client = SocketClient(port, route, "GET")
                stack.callback(client.closes)
                client.until(b"begun")
            network(up=False)
            until(lambda: established(port) == 1)
            run.remaining = established(port)
            network(up=True)
            until(lambda: run.closed(sending))
            started.send_signal(signal.SIGTERM)
    return run


def network(*, up: bool) -> None:
    """Switches the loopback of the calling thread's network."""
    with socket.socket() as any_socket:
        flags = IFF_UP if up else 0
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


def established(port: int) -> int:
    """How many connections the server's port has in the calling thread's network."""
    lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    pairs = ((line.split()[1], line.split()[3]) for line in lines)
    return sum(local.endswith(f":{port:04X}") and state == "01" for local, state in pairs)


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest) -> Iterator[Callable[..., Run]]:
    """The run of a server; all that the session's tests ask for are started, some at a time."""
    parameters = [getattr(item, "callspec", None) for item in request.session.items]
    futures: dict[Any, Future[Run]] = {}
    with contextlib.ExitStack() as stack:
        # Threads of their own: a thread that unshared the network cannot return to it. Few: a
        # process that ends gives its exporters ten seconds, of which they must get some.
        for name, work, threads in (("server", drive, 3), ("unplugged", unplug, 1)):
            pool = stack.enter_context(ThreadPoolExecutor(threads))
            # Others' parameters of that name may not be hashable.
            wanted = [found.params.get(name) for found in parameters if found is not None]
            for server in SERVERS:
                if server in wanted:
                    futures[name, server] = pool.submit(work, server)
        yield lambda server, name="server": futures[name, server].result()
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize(("server", "kind", "ending"), CELLS)
def test_each_close_is_reported(
    server: ServerCommand, kind: str, ending: Ending, runs: Callable[..., Run]
) -> None:
    """One span, one closed event and one duration report the table's reason; nothing stays live,
    and what is no stream is not reported.
    """
    run = runs(server)
    route = f"/{kind}/{ending.path}"
    wanted = expected(server, kind, ending)
    spans, closed, durations = run.spans(route), run.closed(route), run.durations(route)
    if wanted.reason is None:
        assert run.read[route].startswith(b"HTTP/1.1 %d " % ending.status), run.output
        claims = b"text/event-stream" in run.read[route]
        assert claims is (ending.path != "raises-before")
        assert (spans, closed, durations) == ([], [], [])
        assert not run.receiver.points("sse.server.connections", http__route=route)
        return
    failed = error_type(wanted.error_type)
    words = (wanted.reason, failed, ending.status)
    assert [words_of(each) for each in (*spans, *closed, *durations)] == [words] * 3, run.output
    (span,), (event,), (duration,) = spans, closed, durations
    assert duration.value == 1
    at_the_stop = wanted.late or wanted.reason == "server_shutdown"
    assert (route in run.ended) is not at_the_stop
    assert set(duration.attributes) == {
        "http.request.method",
        "http.route",
        "url.scheme",
        "http.response.status_code",
        "sse.close.reason",
        *(["error.type"] if failed else []),
    }
    assert span.status == ("ERROR" if failed else "UNSET")
    assert event.severity_text == ("ERROR" if wanted.reason == "error" else "INFO")
    assert (event.trace_id, event.span_id) == (span.trace_id, span.span_id)
    assert run.receiver.value("sse.server.connections", http__route=route) == 1
    active = run.receiver.points("sse.server.active_connections", http__route=route)
    assert [point.value for point in active] == [0]


def words_of(each: Span | Record | Point) -> tuple[Any, ...]:
    names = ("sse.close.reason", "error.type", "http.response.status_code")
    return tuple(each.attributes.get(name) for name in names)


def error_type(name: str | None) -> str | None:
    """The name of what ``wait_for`` raises differs in Python 3.10."""
    if name == "TimeoutError" and sys.version_info < (3, 11):
        return "asyncio.exceptions.TimeoutError"
    return name


@EACH_SERVER
def test_the_server_stops_as_it_would(server: ServerCommand, runs: Callable[..., Run]) -> None:
    """Without a kill, with its own exit status, and without a complaint of the telemetry's, which
    has reported no other streams.
    """
    run = runs(server)
    pairs = [(kind, ending) for kind in server.kinds for ending in endings_of(kind)]
    streams = sum(expected(server, kind, ending).reason is not None for kind, ending in pairs)
    assert len(run.receiver.spans("SSE")) == streams
    assert len(run.receiver.records("sse.connection.closed")) == streams
    own = -signal.SIGTERM if server.name.startswith("uvicorn (") else 0
    assert run.status == own, run.output
    assert "otel_sse: " not in run.output


@EACH_SERVER
def test_contrib_is_there_where_the_table_says_so(
    server: ServerCommand, runs: Callable[..., Run]
) -> None:
    """With contrib's instrumentation on, its spans enclose ours; without it there are none."""
    run = runs(server)
    contribs = {span.span_id for span in run.receiver.spans() if span.scope.startswith(CONTRIB)}
    enclosed = [span for span in run.receiver.spans("SSE") if span.parent_id in contribs]
    assert bool(contribs) is server.contrib
    assert bool(enclosed) is server.contrib


@pytest.mark.parametrize("unplugged", UNPLUGGED, ids=lambda server: server.name)
def test_a_client_whose_network_goes_is_disconnected_once_the_kernel_gives_up(
    unplugged: ServerCommand, runs: Callable[..., Run]
) -> None:
    """Without a FIN the server knows nothing until what it sends is not acknowledged. That is a
    disconnect, and no error. A silent stream is live until the server stops.
    """
    try:
        run = runs(unplugged, "unplugged")
    except OSError as error:
        if error.errno != errno.EPERM or "CI" in os.environ:
            raise
        pytest.skip("a network of one's own takes root")
    assert run.remaining == 1, run.output
    kind, *_ = unplugged.kinds
    for ending, reason in (("stopped", "client_disconnect"), ("silent", "server_shutdown")):
        route = f"/{kind}/{ending}"
        reports = (*run.spans(route), *run.closed(route), *run.durations(route))
        assert [words_of(each) for each in reports] == [(reason, None, 200)] * 3, run.output
    assert {span.status for span in run.receiver.spans("SSE")} == {"UNSET"}
    assert run.receiver.value("sse.server.active_connections") == 0
