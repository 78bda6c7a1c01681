"""The endings of WSGI streams on each server: real processes, a real receiver."""

import asyncio
import contextlib
import dataclasses
import signal
import socket
from collections.abc import Iterator

import pytest
from helpers.otlp import Receiver, Span
from helpers.processes import PATIENCE, Served, serve
from helpers.waiting import until

BEGUN = b"data: begun\n\n"


@dataclasses.dataclass(frozen=True)
class Server:
    """A server's command line.

    ``limit`` is how many streams it reports that it can hold. ``without`` are endings that it does
    not have: a sync worker serves one stream at a time, and Bottle reads a first message before it
    starts the response.
    ``status`` is its exit status after SIGTERM.
    """

    command: str
    app: str
    limit: int | None = None
    without: tuple[str, ...] = ()
    status: int = 0

    @property
    def route(self) -> str | None:
        routes = {"flask_app": "/", "bottle_app": "/", "django_app": ""}
        prefix = routes.get(self.app)
        return None if prefix is None else f"{prefix}stream/<ending>"


_GUNICORN = "gunicorn -b 127.0.0.1:{port} --graceful-timeout 10 -w 1 -k"
_WAITRESS = "waitress-serve --listen=127.0.0.1:{port} --threads=12"
SERVERS = {
    "gunicorn, sync": Server(f"{_GUNICORN} sync", "flask_app", limit=1, without=("silent",)),
    "gunicorn, gthread": Server(f"{_GUNICORN} gthread --threads 12", "django_app", limit=12),
    "gunicorn, gevent": Server(f"{_GUNICORN} gevent", "flask_app", limit=1000),
    "gunicorn, gevent_pywsgi": Server(
        f"{_GUNICORN} gevent_pywsgi --worker-connections 50", "raw", limit=50
    ),
    "waitress": Server(
        _WAITRESS, "bottle_app", 12, without=("raises-first",), status=-signal.SIGTERM
    ),
    "waitress, raw": Server(_WAITRESS, "raw", limit=12, status=-signal.SIGTERM),
    "flask run": Server(
        "flask --app endings_wsgi:flask_app run --port {port}", "flask_app", status=-signal.SIGTERM
    ),
    "wsgiref": Server("python wsgiref_served.py {port}", "django_app", status=-signal.SIGTERM),
}
EACH = pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
# The reason, the type of the error, and the messages: None where they depend on the time.
EXPECTED: dict[str, tuple[str, str | None, int | None]] = {
    "ends": ("completed", None, 2),
    "raises-first": ("error", "LookupError", 0),
    "raises-midway": ("error", "json.decoder.JSONDecodeError", 1),
    "closes": ("client_disconnect", None, None),
    "stopped": ("server_shutdown", None, None),
    "silent": ("server_shutdown", None, 1),
}
NO_STREAM = ("plain", "raises-before")


@contextlib.contextmanager
def run(server: Server, receiver: Receiver) -> Iterator[Served]:
    command = server.command
    if server.app not in command and "python" not in command:
        command = f"{command} endings_wsgi:{server.app}"
    with serve(command, receiver, OTEL_BLRP_SCHEDULE_DELAY="100") as served:
        yield served


def request(served: Served, ending: str, needle: bytes) -> socket.socket:
    """A client that has read as far as ``needle``, or to the end where that comes before."""
    client = socket.create_connection(("127.0.0.1", served.port), PATIENCE)
    head = f"GET /stream/{ending} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    client.sendall(head.encode())
    read = b""
    with contextlib.suppress(ConnectionError):
        while needle not in read and (data := client.recv(2**12)):
            read += data
    return client


def span_of(receiver: Receiver, ending: str) -> Span:
    """The one span whose stream ended in that way."""
    spans = [each for each in receiver.spans("SSE") if kind_of(each) == EXPECTED[ending]]
    assert len(spans) == 1, (ending, [kind_of(each) for each in receiver.spans("SSE")])
    return spans[0]


def kind_of(span: Span) -> tuple[str, str | None, int | None]:
    reason, messages = span.attributes["sse.close.reason"], span.attributes["sse.messages"]
    timed = reason == "client_disconnect" or (reason == "server_shutdown" and messages > 1)
    return reason, span.attributes.get("error.type"), None if timed else messages


@EACH
async def test_each_close_is_reported(server: Server, receiver: Receiver) -> None:
    """One span, one closed event and one duration have the reason; the counts are what the clients
    have read; the work of a generator is its stream's child; and the server stops as it would.
    """
    endings = [each for each in EXPECTED if each not in server.without]
    with run(server, receiver) as served, contextlib.ExitStack() as stack:
        await served.started()
        for ending in (*NO_STREAM, *endings):
            live = ending in ("closes", "stopped", "silent")
            needle = BEGUN if live else b"never"
            client = await asyncio.to_thread(request, served, ending, needle)
            stack.callback(client.close)
            if ending == "closes":
                client.close()
        ended = len({*endings} - {"stopped", "silent"})
        await until(lambda: len(receiver.records("sse.connection.closed")) == ended)
        status, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
    assert status == server.status, output
    assert "otel_sse: " not in output

    name = "SSE" if server.route is None else f"SSE {server.route}"
    assert [each.name for each in receiver.spans("SSE")] == [name] * len(endings), output
    for ending in endings:
        span = span_of(receiver, ending)
        reason, error_type, _ = EXPECTED[ending]
        found = [
            each
            for each in receiver.records("sse.connection.closed")
            if each.span_id == span.span_id
        ]
        assert [each.attributes["sse.close.reason"] for each in found] == [reason]
        assert span.status == ("ERROR" if error_type else "UNSET")
    ends = span_of(receiver, "ends")
    assert (ends.attributes["sse.comments"], ends.attributes["sse.io"]) == (1, 42)
    (work,), (step,) = receiver.spans("work"), receiver.spans("step")
    assert (work.parent_id, step.parent_id) == (ends.span_id, work.span_id)
    assert receiver.value("sse.server.connections") == len(endings)
    assert [each.value for each in receiver.points("sse.server.active_connections")] == [0]
    limits = receiver.points("sse.server.connection.limit")
    assert [(each.value, each.attributes) for each in limits] == (
        [] if server.limit is None else [(server.limit, {})]
    )


async def test_a_stream_below_a2wsgi_is_recorded_once(receiver: Receiver) -> None:
    """Flask's hook is within an ASGI application that is observed: that one records the stream."""
    command = "uvicorn a2wsgi_served:observed --port {port} --lifespan off"
    with serve(f"{command} --timeout-graceful-shutdown 1", receiver) as served:
        await served.started()
        for ending in ("ends", "raises-midway"):
            client = await asyncio.to_thread(request, served, ending, b"never")
            client.close()
        await asyncio.to_thread(served.ended, signal.SIGTERM)
    assert sorted(kind_of(each)[0] for each in receiver.spans("SSE")) == ["completed", "error"]
    assert span_of(receiver, "ends").attributes["sse.io"] == 42
    assert receiver.value("sse.server.connections") == 2
