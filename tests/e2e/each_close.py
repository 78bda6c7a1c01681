"""The endings of streams on a server: a real process, a real receiver. For tests of frameworks."""

import asyncio
import contextlib
import signal
import socket
import sys
from pathlib import Path

import pytest
from e2e.closes import HYPERCORN_WAITS, Close, Server
from helpers.otlp import Receiver, Span
from helpers.processes import BIN, PATIENCE, Served, serve
from helpers.waiting import until

BEGUN = b"data: begun\n\n"
NO_STREAM = ("plain", "raises-before")
# How far the client reads; Daphne does not close a connection whose application has raised.
NEEDLES = {
    **dict.fromkeys(("ends", *NO_STREAM), b"never"),
    "raises-first": b"\r\n\r\n",
    "stopped": b"data: more\n\n",
}


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


async def check(server: Server, receiver: Receiver, programs: Path = BIN) -> None:
    """One span, one closed event and one duration have the reason; the counts are what the clients
    have read; the work of a generator is its stream's child; and the server stops as it would.
    """
    if server.command.startswith("hypercorn") and sys.version_info >= HYPERCORN_WAITS:
        pytest.skip("hypercorn waits for connections that do not close")
    closes = server.closes
    reported = {ending: each for ending, each in closes.items() if ending not in server.lost}
    env = {"OTEL_BLRP_SCHEDULE_DELAY": "100", **server.env}
    around: Receiver | None = receiver
    if not server.instrumented:
        around, env = None, {**receiver.environment, **env}
    with (
        serve(server.command, around, programs=programs, **env) as served,
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
        if server.lost:
            # By its intervals, not by its end.
            await until(lambda: len(receiver.spans("SSE")) == ended)
            await until(lambda: receiver.value("sse.server.connections") == len(closes))
            await until(lambda: sum(_active(receiver)) == len(server.lost))
        status, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
    assert status == server.status, output
    assert "otel_sse: " not in output

    name = "SSE" if server.route is None else f"SSE {server.route}"
    assert [each.name for each in receiver.spans("SSE")] == [name] * len(reported), output
    for close in reported.values():
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
    active = _active(receiver)
    assert sum(active) == len(server.lost)
    assert server.lost or set(active) == {0}
    limits = receiver.points("sse.server.connection.limit")
    assert {(each.value, *each.attributes) for each in limits} == (
        set() if server.limit is None else {(server.limit,)}
    )


def _active(receiver: Receiver) -> list[float]:
    """The live streams of each worker, by its last export."""
    return [each.value for each in receiver.points("sse.server.active_connections")]
