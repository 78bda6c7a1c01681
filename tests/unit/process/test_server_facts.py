"""What servers show of themselves, on objects of their own classes or with their names."""

from types import SimpleNamespace
from typing import Any

import hypercorn
import pytest
import uvicorn
from gunicorn.workers.base import Worker
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker

from otel_sse.process.server_facts import (
    find_transport,
    is_aiohttp_peer_lost,
    is_stop_requested,
    pool_of_request,
    pool_of_worker,
)


class Transport:
    closing = False

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 7

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (name, default)


def test_a_stream_of_hypercorn_closes_before_its_transport() -> None:
    """The transport may carry other streams; in all else the stream's is that one."""
    transport: Any = Transport()
    kind = type("Stream", (), {"__module__": f"{hypercorn.__name__}.protocol", "closed": False})
    stream: Any = kind()
    stream.writer = SimpleNamespace(transport=transport)

    async def app_send(message: Any) -> None: ...

    channel = SimpleNamespace(send=app_send, __wrapped__=stream)
    found = find_transport(channel)
    assert found is not None
    assert found.shared is transport  # type: ignore[attr-defined]
    assert found.get_write_buffer_size() == 7
    assert found.get_extra_info("socket", 1) == ("socket", 1)
    assert not found.is_closing()
    stream.closed = True
    assert found.is_closing()
    stream.closed, transport.closing = False, True
    assert found.is_closing()


@pytest.mark.parametrize(("kind", "streams"), [(SyncWorker, 1), (ThreadWorker, 5), (Worker, None)])
def test_a_worker_of_gunicorn_holds_as_many_streams_as_it_has_threads(
    kind: Any, streams: int | None
) -> None:
    """A class that is not known has no limit that is."""
    worker = kind.__new__(kind)
    worker.cfg = SimpleNamespace(threads=5, worker_connections=1000)
    assert pool_of_worker(worker) == streams


def test_a_worker_with_greenlets_holds_as_many_streams_as_connections() -> None:
    """Gevent's and eventlet's."""
    kind = type("GeventWorker", (type("AsyncWorker", (Worker,), {}),), {})
    worker = kind.__new__(kind)
    worker.cfg = SimpleNamespace(threads=5, worker_connections=1000)
    assert pool_of_worker(worker) == 1000


def test_waitress_shows_its_pool_by_a_method_of_its_channel() -> None:
    """Its servers of several sockets share one."""
    pool = object()

    class Channel:
        server = SimpleNamespace(task_dispatcher=pool, adj=SimpleNamespace(threads=4))

        def client_disconnected(self) -> bool:
            return False

    environ = {"waitress.client_disconnected": Channel().client_disconnected}
    assert pool_of_request(environ) == (pool, 4)
    assert pool_of_request({}) == (None, None)


def test_uvicorn_shows_that_it_is_asked_to_stop() -> None:
    """Before it does: a stream that it cuts then is the server's end."""
    server = uvicorn.Server(uvicorn.Config("app:app"))
    assert not is_stop_requested(server)
    server.should_exit = True
    assert is_stop_requested(server)
    assert not is_stop_requested(None)


def test_a_protocol_of_aiohttp_that_shows_no_manager_has_lost_its_peer() -> None:
    """As one whose connection is lost; a later version may have none at all."""
    assert is_aiohttp_peer_lost(SimpleNamespace(_manager=None))
    assert is_aiohttp_peer_lost(object())
    assert not is_aiohttp_peer_lost(SimpleNamespace(_manager=object()))
