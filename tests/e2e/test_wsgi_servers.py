"""The endings of WSGI streams on each server: real processes, a real receiver."""

import asyncio
import signal

import pytest
from e2e.each_close import EXPECTED, Server, check, kind_of, request, span_of
from helpers.otlp import Receiver
from helpers.processes import serve

_GUNICORN = "gunicorn -b 127.0.0.1:{port} --graceful-timeout 10 -w 1 -k"
_WAITRESS = "waitress-serve --listen=127.0.0.1:{port} --threads=12"
FLASK = BOTTLE = "/stream/<ending>"
DJANGO = "stream/<ending>"
SERVERS = {
    # A sync worker serves one stream at a time.
    "gunicorn, sync": Server(
        f"{_GUNICORN} sync endings_wsgi:flask_app", FLASK, 1, without=("silent",)
    ),
    "gunicorn, gthread": Server(
        f"{_GUNICORN} gthread --threads 12 endings_wsgi:django_app", DJANGO, 12
    ),
    "gunicorn, gevent": Server(f"{_GUNICORN} gevent endings_wsgi:flask_app", FLASK, 1000),
    "gunicorn, gevent_pywsgi": Server(
        f"{_GUNICORN} gevent_pywsgi --worker-connections 50 endings_wsgi:raw", limit=50
    ),
    # Bottle reads a first message before it starts the response.
    "waitress": Server(
        f"{_WAITRESS} endings_wsgi:bottle_app",
        BOTTLE,
        12,
        without=("raises-first",),
        status=-signal.SIGTERM,
    ),
    "waitress, raw": Server(f"{_WAITRESS} endings_wsgi:raw", limit=12, status=-signal.SIGTERM),
    "flask run": Server(
        "flask --app endings_wsgi:flask_app run --port {port}", FLASK, status=-signal.SIGTERM
    ),
    "wsgiref": Server("python wsgiref_served.py {port}", DJANGO, status=-signal.SIGTERM),
}


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
async def test_each_close_is_reported(server: Server, receiver: Receiver) -> None:
    """On a server that serves each stream in a thread or a greenlet: see ``each_close``."""
    await check(server, receiver)


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
