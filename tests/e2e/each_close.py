"""The endings of streams on a server: a real process, a real receiver. For tests of frameworks."""

import asyncio
import contextlib
import dataclasses
import signal
import socket
from collections.abc import Mapping

from helpers.otlp import Receiver, Span
from helpers.processes import PATIENCE, Served, serve
from helpers.waiting import until

BEGUN = b"data: begun\n\n"
# The reason, the type of the error, and the messages: None where they depend on the time.
Close = tuple[str, str | None, int | None]
EXPECTED: Mapping[str, Close] = {
    "ends": ("completed", None, 2),
    "raises-first": ("error", "LookupError", 0),
    "raises-midway": ("error", "json.decoder.JSONDecodeError", 1),
    "closes": ("client_disconnect", None, None),
    "stopped": ("server_shutdown", None, None),
    "silent": ("server_shutdown", None, 1),
}
# Where neither the application nor its server notices a client that closes.
UNNOTICED: Mapping[str, Close] = {"closes": ("completed", None, 41)}
NO_STREAM = ("plain", "raises-before")
# How far the client reads; Daphne does not close a connection whose application has raised.
NEEDLES = {
    **dict.fromkeys(("ends", *NO_STREAM), b"never"),
    "raises-first": b"\r\n\r\n",
    "stopped": b"data: more\n\n",
}


@dataclasses.dataclass(frozen=True)
class Server:
    """A server's command line, for the applications of ``apps/endings_*.py``.

    ``route`` is that of its streams. ``limit`` is how many streams it reports that it can hold.
    ``without`` are endings that it does not have, ``differs`` what is reported otherwise than in
    ``EXPECTED``. ``status`` is its exit status after SIGTERM.
    """

    command: str
    route: str | None = None
    limit: int | None = None
    without: tuple[str, ...] = ()
    differs: Mapping[str, Close] = dataclasses.field(default_factory=dict)
    status: int = 0


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


def kind_of(span: Span) -> Close:
    reason, messages = span.attributes["sse.close.reason"], span.attributes["sse.messages"]
    timed = reason == "client_disconnect" or (reason == "server_shutdown" and messages > 1)
    return reason, span.attributes.get("error.type"), None if timed else messages


def span_of(receiver: Receiver, close: Close) -> Span:
    """The one span whose stream closed so."""
    spans = [each for each in receiver.spans("SSE") if kind_of(each) == close]
    assert len(spans) == 1, (close, [kind_of(each) for each in receiver.spans("SSE")])
    return spans[0]


async def check(server: Server, receiver: Receiver) -> None:
    """One span, one closed event and one duration have the reason; the counts are what the clients
    have read; the work of a generator is its stream's child; and the server stops as it would.
    """
    closes = {
        ending: server.differs.get(ending, close)
        for ending, close in EXPECTED.items()
        if ending not in server.without
    }
    command = server.command
    with (
        serve(command, receiver, OTEL_BLRP_SCHEDULE_DELAY="100") as served,
        contextlib.ExitStack() as stack,
    ):
        await served.started()
        for ending in (*NO_STREAM, *closes):
            client = await asyncio.to_thread(request, served, ending, NEEDLES.get(ending, BEGUN))
            stack.callback(client.close)
            if ending == "closes":
                client.close()
        ended = len({*closes} - {"stopped", "silent"})
        await until(lambda: len(receiver.records("sse.connection.closed")) == ended)
        status, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
    assert status == server.status, output
    assert "otel_sse: " not in output

    name = "SSE" if server.route is None else f"SSE {server.route}"
    assert [each.name for each in receiver.spans("SSE")] == [name] * len(closes), output
    for close in closes.values():
        reason, error_type, _ = close
        span = span_of(receiver, close)
        found = [
            each
            for each in receiver.records("sse.connection.closed")
            if each.span_id == span.span_id
        ]
        assert [each.attributes["sse.close.reason"] for each in found] == [reason]
        assert span.status == ("ERROR" if error_type else "UNSET")
    ends = span_of(receiver, closes["ends"])
    assert (ends.attributes["sse.comments"], ends.attributes["sse.io"]) == (1, 42)
    (work,), (step,) = receiver.spans("work"), receiver.spans("step")
    assert (work.parent_id, step.parent_id) == (ends.span_id, work.span_id)
    assert receiver.value("sse.server.connections") == len(closes)
    # One of each worker.
    active = receiver.points("sse.server.active_connections")
    assert {each.value for each in active} == {0}
    limits = receiver.points("sse.server.connection.limit")
    assert [(each.value, each.attributes) for each in limits] == (
        [] if server.limit is None else [(server.limit, {})]
    )
