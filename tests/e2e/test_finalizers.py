"""Streams whose frame is freed: its clean-up runs wherever that happens, and may wait for no lock.

Without a GIL an object is freed by the thread that made it, at any byte code, once another thread
has dropped its last reference. A frame that is closed where a lock is held behaves the same.
"""

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from time import perf_counter
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from aiohttp import web
from helpers.aiohttp_apps import aiohttp_app, start_stream
from helpers.asgi import START, http_scope, middleware
from helpers.backend import Backend
from helpers.client_readers import close_reason_of
from helpers.client_streams import INSTRUMENTORS, StreamServer
from helpers.raw_client import RawClient
from helpers.sanic_apps import TYPED, sanic_app, serve_sanic
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.tornado_apps import serve_tornado, tornado_app
from helpers.waiting import until, wait_until
from starlette.applications import Starlette
from starlette.routing import Mount

from otel_sse.frameworks import SSEStarletteInstrumentor
from otel_sse.process import gc_safety
from otel_sse.servers.wsgi import SSEWSGIMiddleware

MESSAGE = b"data: x\n\n"

# What is abandoned here warns of its sockets.
abandoning = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine .* was never awaited:RuntimeWarning",
)


def _lock_of(owner: Any) -> threading.Lock:
    """The lock that every close takes."""
    lock: threading.Lock = owner.telemetry.streams.lock
    return lock


def _free(lock: threading.Lock, *frees: Callable[[], Any]) -> None:
    """Calls ``frees`` in a thread that holds the lock."""

    def run() -> None:
        with lock:
            for free in frees:
                # What does not expect to be closed says so.
                with contextlib.suppress(RuntimeError):
                    free()
        done.set()

    done = threading.Event()
    threading.Thread(target=run, daemon=True).start()
    assert done.wait(30), "it waits for a lock"


def _started(coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    """Runs up to the first wait, in a context of its own, as a task does."""
    contextvars.copy_context().run(coroutine.send, None)
    return coroutine


class _Wait:
    """A wait that needs no event loop."""

    def __await__(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("last", [False, True], ids=["", "last"])
@pytest.mark.parametrize("waits", ["receive", "send"])
def test_an_asgi_application_that_is_freed(waits: str, last: bool, backend: Backend) -> None:
    """While it waits for its client, or for a send: what the server has by then is counted."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": MESSAGE, "more_body": not last})
        await receive()

    async def receive() -> Any:
        await _Wait()

    async def send(message: Any) -> None:
        if waits == "send" and message["type"] == "http.response.body":
            await _Wait()

    observed = middleware(backend, app)
    frame = _started(observed(http_scope(), receive, send))
    _free(observed.telemetry.streams.lock, frame.close)
    wait_until(lambda: backend.spans("SSE"))
    assert backend.value("sse.server.messages") == 1
    (span,) = backend.spans("SSE")
    assert (span.attributes or {})["sse.close.reason"] == ("completed" if last else "unknown")


def test_a_wsgi_response_that_is_freed(backend: Backend) -> None:
    """Its server has not closed it."""

    def answer(_: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return iter([MESSAGE, MESSAGE])

    app = SSEWSGIMiddleware(answer, **backend.providers)
    held = [app({"REQUEST_METHOD": "GET"}, lambda *_: None)]
    assert next(iter(held[0])) == MESSAGE
    _free(app.telemetry.streams.lock, held.clear)
    wait_until(lambda: backend.spans("SSE"))
    assert backend.value("sse.server.active_connections") == 0


Endless = Callable[[], Awaitable[Any]]


def _starlette(endless: Endless) -> Any:
    """Below uvicorn."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": MESSAGE, "more_body": True})
        await endless()

    return serve_asgi(Starlette(routes=[Mount("/", app)]))


def _aiohttp(endless: Endless) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(MESSAGE)
        await endless()
        return response

    return serve_aiohttp(aiohttp_app("/", handler))


def _tornado(endless: Endless) -> Any:
    async def write(handler: Any) -> None:
        handler.write(MESSAGE)
        await handler.flush()
        # One that the handler does not wait for.
        handler.write(MESSAGE)
        handler.flush()
        await endless()

    return serve_tornado(tornado_app("/", write))


def _sanic(endless: Endless) -> Any:
    async def handler(request: Any) -> None:
        response = await request.respond(**TYPED)
        await response.send(MESSAGE)
        await endless()

    return serve_sanic(sanic_app("/", handler))


@abandoning
@pytest.mark.parametrize("serve", [_starlette, _aiohttp, _tornado, _sanic])
async def test_a_handler_that_is_freed(
    serve: Callable[[Endless], Any], backend: Backend, instrument: Callable[..., None]
) -> None:
    """On each server with hooks of its own, in the middle of its stream."""
    instrument()
    tasks: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    async def endless() -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await over.wait()

    async with serve(endless) as port:
        client = await RawClient.get(port, "/")
        await client.until(MESSAGE)
        await until(lambda: tasks)
        frame: Any = tasks[0].get_coro()
        _free(SSEStarletteInstrumentor().telemetry.streams.lock, frame.close)
        await until(lambda: backend.spans("SSE"))
        over.set()
        await client.close()
    (span,) = backend.spans("SSE")
    messages = backend.value("sse.server.messages")
    assert ((span.attributes or {})["sse.messages"], messages) in ((1, 1), (2, 2))
    assert backend.value("sse.server.active_connections") == 0


def _read_sync(session: Any, url: str) -> Any:
    response = session.send(session.build_request("GET", url), stream=True)
    lines = response.iter_lines()
    next(lines)
    return lines


def _read_requests(session: Any, url: str) -> Any:
    lines = session.get(url, stream=True).iter_lines(chunk_size=1)
    next(lines)
    return lines


READERS: dict[str, tuple[Callable[[], Any], Callable[[Any, str], Any]]] = {
    "httpx": (httpx.Client, _read_sync),
    "httpx2": (httpx2.Client, _read_sync),
    "requests": (requests.Session, _read_requests),
}


@abandoning
@pytest.mark.parametrize("name", READERS)
async def test_a_generator_of_a_reader_that_is_freed(
    name: str, server: StreamServer, telemetry: Backend
) -> None:
    """Before the end of its stream; it closes it there."""
    make, read = READERS[name]
    with make() as session:
        held = [await asyncio.to_thread(read, session, server.url + "/endless")]
        _free(_lock_of(INSTRUMENTORS[0]()), held.clear, gc.collect)
        # Without a GIL the thread that made it frees it, when it runs again.
        await asyncio.to_thread(int)
        assert await close_reason_of(telemetry) == "client_close"


@abandoning
async def test_a_coroutine_of_a_reader_that_is_freed(
    server: StreamServer, telemetry: Backend
) -> None:
    """While it waits for the next message."""

    async def read() -> None:
        response = await session.get(server.url + "/endless")
        async for _ in response.content:
            pass

    async with aiohttp.ClientSession() as session:
        task = asyncio.ensure_future(read())
        await until(lambda: telemetry.value("sse.client.messages"))
        frame: Any = task.get_coro()
        _free(_lock_of(INSTRUMENTORS[0]()), frame.close, gc.collect)
        # Its connection holds the response.
        await session.close()
        await until(lambda: gc.collect() >= 0 and telemetry.spans("SSE"))
        assert await close_reason_of(telemetry) == "client_close"
        task.cancel()
        await asyncio.wait([task])
        task.exception()


def test_what_is_deferred_has_the_time_at_which_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its thread takes to start; outside of it time is what it is."""
    waiting: list[Callable[[], None]] = []
    seen: list[float | None] = []
    monkeypatch.setattr(gc_safety, "start_raw_thread", waiting.append)
    before = perf_counter()
    gc_safety.defer(lambda: seen.append(gc_safety.deferred_at()))
    after = perf_counter()
    gc_safety.run_deferred()
    assert seen[0] is not None
    assert before <= seen[0] <= after
    assert gc_safety.deferred_at() is None
