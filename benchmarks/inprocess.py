"""Workers without sockets: the ASGI application is called as a server calls it.

What stands for the server takes every message and does nothing with it, so what is measured is
the application, Starlette and the instrumentation alone.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from itertools import cycle, islice
from math import inf
from time import perf_counter, process_time, thread_time
from typing import Any, TypeVar

import answers
import variants
from opentelemetry import _logs, trace

# A browser's, because its length is held for each connection.
_USER_AGENT = (
    b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"Chrome/130.0.0.0 Safari/537.36"
)
_TICK = 0.001
# Requests of a turn, and turns before the first that counts.
_REQUESTS = 100
_WARM = 20

T = TypeVar("T")
Requests = Callable[[], Awaitable[None]]


class Cycle:
    """A server's side of one request, with what is behind it: a transport and its socket."""

    def __init__(self, peer: socket.socket) -> None:
        self.transport = Transport(peer)

    def scope(self, path: str) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50000),
            "scheme": "http",
            "method": "GET",
            "root_path": "",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1:8000"), (b"user-agent", _USER_AGENT)],
            "state": {},
        }

    async def receive(self) -> dict[str, Any]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(self, message: Any) -> None:
        pass


class Transport:
    """What a backlog is read from."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, _: str) -> socket.socket:
        return self._peer


class Live:
    """Streams that are open at once and send as many messages as asked for."""

    def __init__(self, variant: str, connections: int) -> None:
        self.connections = connections
        self.app = variants.starlette_app(variant, self._source)
        self._gates: list[asyncio.Event] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._sockets = socket.socketpair()
        self._count = 0
        self._busy = 0
        self._polite = False
        self._rested = asyncio.Event()
        # What the last stream to begin found as its current span.
        self.span: Any = None

    async def open(self, count: int) -> None:
        """Opens the connections; each sends ``count`` messages."""
        self._count, self._busy, self._polite = count, self.connections, False
        for _ in range(self.connections):
            cycle = Cycle(self._sockets[0])
            call = self.app(cycle.scope("/stream"), cycle.receive, cycle.send)
            self._tasks.append(asyncio.create_task(call))
        await self._rest()

    async def send(self, count: int, senders: int, *, in_turn: bool = True) -> float:
        """Has ``senders`` connections send, one message each in turn, or one after the other;
        returns the CPU (s) that it took.
        """
        self._count, self._busy, self._polite = count, senders, in_turn
        began = process_time()
        for gate in self._gates[:senders]:
            gate.set()
        await self._rest()
        return process_time() - began

    async def _source(self) -> AsyncIterator[bytes]:
        messages = cycle(variants.MESSAGES)
        gate = asyncio.Event()
        self._gates.append(gate)
        self.span = trace.get_current_span()
        while True:
            for message in islice(messages, self._count):
                yield message
                if self._polite:
                    await asyncio.sleep(0)
            self._busy -= 1
            if not self._busy:
                self._rested.set()
            await gate.wait()
            gate.clear()

    async def _rest(self) -> None:
        await self._rested.wait()
        self._rested.clear()


def _run(work: Coroutine[Any, Any, T]) -> T:
    # Not asyncio.run, which would cancel thousands of streams at its end.
    return asyncio.new_event_loop().run_until_complete(work)


def starlette_json(variant: str, turns: int) -> dict[str, float]:
    """CPU (us) of a request to Starlette that is answered with a little JSON."""

    async def build() -> Requests:
        return _asgi_requests(Live(variants.PLAIN, 0).app)

    return _fastest("starlette", variant, build, turns)


def litestar_json(variant: str, turns: int) -> dict[str, float]:
    """The same of Litestar."""

    async def build() -> Requests:
        from litestar import Litestar, get

        @get("/json", sync_to_thread=False)
        def answer() -> dict[str, str]:
            return {"status": "ok"}

        return _asgi_requests(Litestar([answer], openapi_config=None))

    return _fastest("litestar", variant, build, turns)


def aiohttp_json(variant: str, turns: int) -> dict[str, float]:
    """The same of aiohttp.web, of many requests that come at once."""

    async def build() -> Requests:
        from aiohttp import web

        runner = web.AppRunner(variants.aiohttp_app(_nothing), access_log=None)
        await runner.setup()
        server: Any = runner.server

        async def requests() -> None:
            pipe = _Pipe(_REQUESTS)
            protocol = server()
            protocol.connection_made(pipe)
            protocol.data_received(b"GET /json HTTP/1.1\r\nHost: localhost\r\n\r\n" * _REQUESTS)
            await pipe.answered.wait()
            protocol.connection_lost(None)

        return requests

    return _fastest("aiohttp", variant, build, turns)


def tornado_json(variant: str, turns: int) -> dict[str, float]:
    """The same of Tornado, from a request whose headers are parsed."""

    async def build() -> Requests:
        request = answers.tornado_request("/json")

        async def requests() -> None:
            for _ in range(_REQUESTS):
                await request()

        return requests

    return _fastest("tornado", variant, build, turns)


def flask_json(variant: str, turns: int) -> dict[str, float]:
    """The same of Flask, as a WSGI server calls it."""

    async def build() -> Requests:
        from flask import Flask

        app = Flask(__name__)
        app.add_url_rule("/json", "json", lambda: {"status": "ok"})
        return _wsgi_requests(app)

    return _fastest("flask", variant, build, turns)


def django_json(variant: str, turns: int) -> dict[str, float]:
    """The same of Django by WSGI, without middleware."""

    async def build() -> Requests:
        return _wsgi_requests(answers.django_app())

    return _fastest("django", variant, build, turns)


def _asgi_requests(app: Any) -> Requests:
    cycle = Cycle(socket.socket())
    scope = cycle.scope("/json") | {"root_path": ""}

    async def requests() -> None:
        for _ in range(_REQUESTS):
            await app(dict(scope), cycle.receive, cycle.send)

    return requests


def _wsgi_requests(app: Any) -> Requests:
    request = answers.wsgi_request(app, "/json")

    async def requests() -> None:
        for _ in range(_REQUESTS):
            request()

    return requests


def _fastest(
    framework: str, variant: str, build: Callable[[], Awaitable[Requests]], turns: int
) -> dict[str, float]:
    """The fastest turn of a process that has the variant from the start, as an application has.

    Were it patched and restored by turns, the interpreter would give up what it specialises for the
    classes that are patched.
    """
    variants.provide()

    async def run() -> float:
        with variants.instrumented(framework, variant):
            requests = await build()
            for _ in range(_WARM):
                await requests()
            fastest = inf
            for _ in range(turns):
                began = process_time()
                await requests()
                fastest = min(fastest, process_time() - began)
            return fastest

    return {"us": _run(run()) / _REQUESTS * 1e6}


async def _nothing(_: str) -> AsyncIterator[bytes]:
    return
    yield b""


class _Pipe(asyncio.Transport):
    """A server's side of a connection, on which so many answers are awaited."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.answered = asyncio.Event()
        self._remaining = answers

    def write(self, data: Any) -> None:
        self._remaining -= bytes(data).count(b"HTTP/1.1 200")
        if not self._remaining:
            self.answered.set()

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


def memory(variant: str, connections: int, few: int, many: int) -> dict[str, float]:
    """Traced bytes of a live connection after ``few`` messages and after ``many``; and of the
    SDK span of each alone, with its context and attributes.
    """
    variants.set_up(variant)

    async def run() -> dict[str, float]:
        warm = Live(variant, 8)
        await warm.open(few)
        tracemalloc.start()
        before = _traced()
        live = Live(variant, connections)
        await live.open(few)
        first = _traced() - before
        await live.send(many - few, connections, in_turn=False)
        second = _traced() - before
        before = _traced()
        spans = [] if variant == variants.PLAIN else _alike(live.span, connections)
        alone = _traced() - before
        assert len(spans) in (0, connections)
        each = (first / connections, second / connections, alone / connections)
        return dict(zip(("few", "many", "span"), each, strict=True))

    return _run(run())


def _alike(model: Any, count: int) -> list[trace.Span]:
    tracer = trace.get_tracer("otel_sse")
    # What is not sampled has no attributes that it could hold.
    attributes = dict(getattr(model, "attributes", None) or {})
    return [
        tracer.start_span(
            "SSE /stream",
            attributes={
                **attributes,
                "sse.connection.id": secrets.token_hex(8),
                "user_agent.original": _USER_AGENT.decode(),
            },
        )
        for _ in range(count)
    ]


def _traced() -> int:
    flush = getattr(_logs.get_logger_provider(), "force_flush", None)
    if flush is not None:
        flush()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def crowd(variant: str, connections: int, messages: int) -> dict[str, float]:
    """CPU (us) of a message while so many connections are live: when all send in turn, and when
    one alone does. Where there is something to collect, also what that takes; see ``_collect``.
    """
    reader = variants.set_up(variant)

    async def run() -> dict[str, float]:
        live = Live(variant, connections)
        await live.open(3)
        each = max(1, messages // connections)
        in_turn = await live.send(each, connections) / (each * connections)
        alone = await live.send(messages, 1) / messages
        variants.check(reader, (3 + each) * connections + messages)
        found = {"in_turn": in_turn * 1e6, "alone": alone * 1e6}
        if reader is not None:
            found |= await _collect(reader)
        return found

    return _run(run())


async def _collect(reader: Any) -> dict[str, float]:
    """One metric collection on a thread, as a reader does it: its wall time and its CPU (ms);
    and how late (ms) the event loop was at worst, meanwhile and over as long a time before.
    """
    wall: list[float] = []
    cpu: list[float] = []

    def collect() -> None:
        began, began_cpu = perf_counter(), thread_time()
        reader.collect()
        wall.append(perf_counter() - began)
        cpu.append(thread_time() - began_cpu)

    collect()
    until = perf_counter() + wall[0]
    calm = await _late(lambda: perf_counter() < until)
    held = []
    for _ in range(5):
        thread = threading.Thread(target=collect)
        thread.start()
        held.append(await _late(thread.is_alive))
    return {
        "wall": sorted(wall[1:])[2] * 1e3,
        "cpu": sorted(cpu[1:])[2] * 1e3,
        "calm": calm * 1e3,
        "held": max(held) * 1e3,
    }


async def _late(going_on: Callable[[], bool]) -> float:
    worst = 0.0
    while going_on():
        began = perf_counter()
        await asyncio.sleep(_TICK)
        worst = max(worst, perf_counter() - began - _TICK)
    return worst
