"""The endings of WSGI streams on each server: real processes, a real receiver."""

import asyncio
import signal

import pytest
from e2e.closes import EXPECTED, WSGI_SERVERS, Server
from e2e.each_close import BEGUN, check, kind_of, request, span_of
from helpers.otlp import Receiver
from helpers.processes import serve
from helpers.streams import fetch


@pytest.mark.parametrize("server", WSGI_SERVERS.values(), ids=WSGI_SERVERS)
async def test_each_close_is_reported(server: Server, receiver: Receiver) -> None:
    """On a server that serves each stream in a thread or a greenlet: see ``each_close``."""
    await check(server, receiver)


@pytest.mark.parametrize("server", ["gunicorn, gevent_pywsgi", "waitress, raw", "eventlet, raw"])
async def test_a_list_arrives_whole(server: str, receiver: Receiver) -> None:
    """Gevent and eventlet go over it twice, for the length of the content, too."""
    chosen = WSGI_SERVERS[server]
    with serve(chosen.command, receiver, **chosen.env) as served:
        await served.started()
        reply = await fetch(served.port, "/stream/listed")
        await asyncio.to_thread(served.ended, signal.SIGTERM)
    assert reply.body == BEGUN + b"data: 2\n\n"
    (span,) = receiver.spans("SSE")
    assert kind_of(span) == ("completed", None, 2)


@pytest.mark.parametrize("name", ["observed", "app"])
async def test_a_stream_below_a2wsgi_is_recorded_once(name: str, receiver: Receiver) -> None:
    """Flask's hook is within an ASGI application that is observed, by hand or by the server's hook:
    that one records the stream.
    """
    command = f"uvicorn a2wsgi_served:{name} --port {{port}} --lifespan off"
    with serve(f"{command} --timeout-graceful-shutdown 1", receiver) as served:
        await served.started()
        for ending in ("ends", "raises-midway"):
            client = await asyncio.to_thread(request, served, ending, b"never")
            client.close()
        await asyncio.to_thread(served.ended, signal.SIGTERM)
    assert sorted(kind_of(each)[0] for each in receiver.spans("SSE")) == ["completed", "error"]
    assert span_of(receiver, EXPECTED["ends"]).attributes["sse.io"] == 42
    assert receiver.value("sse.server.connections") == 2
