"""Applications that do not import us, started by ``opentelemetry-instrument``, each a process
and a socket of its own, read by real clients; what they export is read off the OTLP wire.

An SDK is imported where it is used: that takes seconds, and every process collects this file.
"""

import asyncio
import contextlib
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from helpers import oracle
from helpers.otlp import Receiver, Span
from helpers.processes import ALONE, APPS, BIN, INSTRUMENT
from helpers.servers import AIOHTTP_SSE_3

BASE = ("http.request.method", "http.route", "url.scheme")
CLOSE = ("sse.close.reason", "http.response.status_code")


class ServerProcess:
    """An application in a process of its own. It inherits its listening socket, so that a client
    can connect at once and wait.
    """

    def __init__(self, module: str, receiver: Receiver, *, contrib: bool) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        number = str(self.listener.fileno())
        command = [BIN / "uvicorn", "--app-dir", APPS, f"{module}:app", "--fd", number]
        command += ["--log-level", "warning"]
        if module.startswith("aiohttp"):
            command = [sys.executable, APPS / f"{module}.py", number]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        environment |= {
            "OTEL_SERVICE_NAME": module,
            **receiver.environment,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip" if contrib else "none",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BLRP_SCHEDULE_DELAY": "50",
        }
        if not contrib:
            environment |= ALONE
        self.process = subprocess.Popen(
            [INSTRUMENT, *command],
            env=environment,
            # The launcher puts it on the path: not the checkout, which may not be what is tested.
            cwd=APPS,
            pass_fds=[self.listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_it_answers(self) -> None:
        """Asks for what there is not, which is no stream."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/nowhere")
            assert connection.getresponse().status == 404

    def stop(self) -> str:
        """Ends the process as an orchestrator does; what it has written to stderr."""
        self.process.terminate()
        try:
            _, errors = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
            self.process.wait()
            self.listener.close()
        return errors


@dataclass
class Exchange:
    """A response as its client received it: ``body`` is every byte of it, unchunked."""

    trace_id: str
    parent_id: str
    method: str
    route: str
    body: bytearray = field(default_factory=bytearray)
    content_type: str = ""
    reasons: tuple[str, ...] = ("completed",)
    resumed: bool = False

    @property
    def base(self) -> tuple[str, str, str]:
        """The values of the base attributes."""
        return (self.method, self.route, "http")

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")


def exchange(method: str, route: str, **options: Any) -> tuple[Exchange, str]:
    """An exchange of a new trace, and its ``traceparent``."""
    made = Exchange(secrets.token_hex(16), secrets.token_hex(8), method, route, **options)
    return made, f"00-{made.trace_id}-{made.parent_id}-01"


def raw(
    port: int, method: str, path: str, route: str, body: Any = None, **headers: str
) -> Exchange:
    """Reads a response to its end."""
    made, traceparent = exchange(method, route, resumed="last_event_id" in headers)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        sent = {"traceparent": traceparent, "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        response = connection.getresponse()
        assert response.status == 200
        made.content_type = response.headers["Content-Type"]
        made.body += response.read()
    return made


def disconnect_after(port: int, path: str, route: str, after: bytes) -> Exchange:
    """Reads an endless response until its bytes end with ``after``, and then disconnects."""
    made, traceparent = exchange("GET", route, reasons=("client_disconnect",))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"traceparent": traceparent})
        response = connection.getresponse()
        made.content_type = response.headers["Content-Type"]
        while not made.body.endswith(after):
            made.body += response.read1()
        response.close()
    return made


class Tapped(httpx2.HTTPTransport):
    """The SDK's own transport; it remembers the exchanges of the client above it."""

    def __init__(self, route: str) -> None:
        super().__init__()
        self.route = route
        self.exchanges: list[Exchange] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        made = _send(self, request)
        response = super().handle_request(request)
        return _received(response, made, _TappedStream(response.stream, made))


class AsyncTapped(httpx2.AsyncHTTPTransport):
    """The same for asynchronous clients."""

    def __init__(self, route: str) -> None:
        super().__init__()
        self.route = route
        self.exchanges: list[Exchange] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        made = _send(self, request)
        response = await super().handle_async_request(request)
        return _received(response, made, _AsyncTappedStream(response.stream, made))


def _send(tapped: Tapped | AsyncTapped, request: httpx2.Request) -> Exchange:
    made, request.headers["traceparent"] = exchange(request.method, tapped.route)
    tapped.exchanges.append(made)
    return made


def _received(response: Any, made: Exchange, stream: Any) -> httpx2.Response:
    made.content_type = response.headers.get("Content-Type", "")
    response.stream = stream
    return response  # type: ignore[no-any-return]


class _TappedStream(httpx2.SyncByteStream):
    def __init__(self, stream: Any, made: Exchange) -> None:
        self._stream = stream
        self._made = made

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._made.body += chunk
            yield chunk

    def close(self) -> None:
        self._stream.close()


class _AsyncTappedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, made: Exchange) -> None:
        self._stream = stream
        self._made = made

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._made.body += chunk
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


@contextlib.contextmanager
def running(module: str, receiver: Receiver, *, contrib: bool) -> Iterator[ServerProcess]:
    """A server for the length of the block. It must not complain, not even while it ends."""
    server = ServerProcess(module, receiver, contrib=contrib)
    try:
        server.wait_until_it_answers()
        yield server
    finally:
        errors = server.stop()
    assert errors == ""


def assert_received(receiver: Receiver, exchanges: list[Exchange], *, below_http: bool) -> None:
    """Everything that the conventions list for these streams, and no other, has been received.

    ``below_http``: something makes an HTTP server span for each request.
    """
    streams = [each for each in exchanges if each.is_stream]
    readings = {each.trace_id: oracle.read(bytes(each.body)) for each in streams}
    messages: Counter[tuple[str, ...]] = Counter()
    comments: Counter[tuple[str, ...]] = Counter()
    io: Counter[tuple[str, ...]] = Counter()
    opened: Counter[tuple[Any, ...]] = Counter()
    ended: Counter[tuple[str, ...]] = Counter()
    for each in streams:
        found, commented = readings[each.trace_id]
        messages.update((*each.base, message.type) for message in found)
        comments[each.base] += commented
        io[each.base] += len(each.body)
        opened[(*each.base, each.resumed)] += 1
        ended[each.base] += 1

    def table(name: str, *extra: str) -> dict[tuple[Any, ...], float]:
        keys = (*BASE, *extra)
        points = receiver.points(f"sse.server.{name}")
        assert all(set(point.attributes) == set(keys) for point in points)
        return {tuple(point.attributes[key] for key in keys): point.value for point in points}

    assert table("messages", "sse.event.type") == messages
    assert table("comments") == {base: comments[base] for base in ended}
    assert table("io") == {base: io[base] for base in ended}
    assert table("active_connections") == dict.fromkeys(ended, 0)
    assert +Counter(table("connections", "sse.resumed")) == opened
    durations: Counter[tuple[str, ...]] = Counter()
    for key, count in table("connection.duration", *CLOSE).items():
        durations[key[: len(BASE)]] += int(count)
    assert durations == ended

    spans = {span.trace_id: span for span in receiver.spans("SSE")}
    assert len(receiver.spans("SSE")) == len(streams)
    assert set(spans) == set(readings)
    for each in streams:
        span = spans[each.trace_id]
        found, commented = readings[each.trace_id]
        assert span.name == f"SSE {each.route}"
        assert span.scope == "otel_sse"
        found_attributes = span.attributes
        assert found_attributes["sse.close.reason"] in each.reasons
        wanted = {
            "http.request.method": each.method,
            "http.route": each.route,
            "url.scheme": "http",
            "http.response.status_code": 200,
            "client.address": "127.0.0.1",
            "network.protocol.version": "1.1",
            "sse.resumed": each.resumed,
            "sse.segment.index": 0,
            "sse.segment.final": True,
            "sse.messages": len(found),
            "sse.comments": commented,
            "sse.io": len(each.body),
        }
        assert {key: found_attributes.get(key) for key in wanted} == wanted
        sequences = [event.attributes["sse.message.sequence"] for event in span.events]
        edges = [n for n in range(1, len(found) + 1) if n <= 16 or n > len(found) - 16]
        assert sequences == edges
        types = [event.attributes["sse.event.type"] for event in span.events]
        assert types == [found[number - 1].type for number in edges]
        _assert_placed(receiver, each, span, below_http=below_http)
        _assert_events(receiver, each, span)
    assert len(receiver.records("sse.connection.")) == 2 * len(streams)


def _assert_placed(receiver: Receiver, each: Exchange, span: Span, *, below_http: bool) -> None:
    """The span is below the HTTP server span, which knows it, or else below the caller's."""
    if not below_http:
        assert (span.kind, span.parent_id) == ("SERVER", each.parent_id)
        return
    assert span.kind == "INTERNAL"
    (parent,) = [other for other in receiver.spans() if other.span_id == span.parent_id]
    assert (parent.kind, parent.trace_id) == ("SERVER", each.trace_id)
    assert parent.parent_id == each.parent_id
    assert parent.attributes["sse.connection.id"] == span.attributes["sse.connection.id"]


def _assert_events(receiver: Receiver, each: Exchange, span: Span) -> None:
    """One opened, one closed, both within the span."""
    connection_id = span.attributes["sse.connection.id"]
    opened, closed = (
        record
        for record in receiver.records("sse.connection.")
        if record.attributes["sse.connection.id"] == connection_id
    )
    assert opened.event_name == "sse.connection.opened"
    assert closed.event_name == "sse.connection.closed"
    for record in (opened, closed):
        assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
        assert (record.severity, record.severity_text) == (9, "INFO")
    assert closed.attributes["sse.close.reason"] in each.reasons
    for name in ("sse.messages", "sse.comments", "sse.io", "sse.connection.duration"):
        assert closed.attributes[name] == span.attributes[name]


def wait(receiver: Receiver, exchanges: list[Exchange]) -> None:
    """Waits until each stream's end, and a collection that comes after it, have been received."""
    count = sum(each.is_stream for each in exchanges)

    def received() -> bool:
        return (
            len(receiver.spans("SSE")) >= count
            and len(receiver.records("sse.connection.closed")) >= count
            and receiver.value("sse.server.connection.duration") >= count
        )

    receiver.wait_for(received)


BOTH = pytest.mark.parametrize("contrib", [False, True], ids=["contrib off", "contrib on"])


@BOTH
@pytest.mark.parametrize(
    "module",
    ["native", "sse_responses", pytest.param("aiohttp_responses", marks=AIOHTTP_SSE_3)],
)
def test_a_frameworks_own_streams(module: str, contrib: bool, receiver: Receiver) -> None:
    """FastAPI's native SSE, sse-starlette and aiohttp-sse export, on the OTLP wire, exactly what
    raw clients received: finite, resumed, posted, concurrent and abandoned streams alike.
    """
    events = ("/api/rooms/blue/events", "/api/rooms/{room}/events")
    endless = ("/api/rooms/blue/endless", "/api/rooms/{room}/endless")
    newline = b"\n" if module == "native" else b"\r\n"
    last = newline.join([b"data: [DONE]", b"retry: 100", b"", b""])
    with running(module, receiver, contrib=contrib) as server:

        def ask(method: str, n: int, **headers: str) -> Exchange:
            path, route = events
            return raw(server.port, method, f"{path}?n={n}", route, **headers)

        exchanges = [ask("GET", 40), ask("GET", 0, last_event_id="39"), ask("POST", 3)]
        with ThreadPoolExecutor(4) as pool:
            exchanges += pool.map(lambda n: ask("GET", n), range(20, 28))
        path, route = endless
        exchanges.append(disconnect_after(server.port, f"{path}?n=5", route, last))
        wait(receiver, exchanges)
    assert all(each.is_stream for each in exchanges)
    assert [each.body.count(b"event: tick") for each in exchanges[:3]] == [40, 0, 3]
    # FastAPI makes an HTTP server span of its own.
    assert_received(receiver, exchanges, below_http=contrib or module == "native")


@BOTH
async def test_an_mcp_server_and_its_own_client(contrib: bool, receiver: Receiver) -> None:
    """A server of the ``mcp`` package, called over streamable HTTP by the package's client, in
    the current and in the handshake-era protocol: every stream of both, the client's messages in
    them, and not the responses that are JSON.
    """
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    tapped = AsyncTapped("/mcp")
    progress: list[float] = []
    current = 0

    async def progressed(done: float, total: float | None, message: str | None) -> None:
        progress.append(done)

    with running("tools", receiver, contrib=contrib) as server:
        url = f"http://127.0.0.1:{server.port}/mcp"
        async with httpx2.AsyncClient(transport=tapped, timeout=60) as connection:
            for mode in ("2026-07-28", "legacy"):
                transport = streamable_http_client(url, http_client=connection)
                async with Client(transport, mode=mode) as client:
                    for n in (30, 2):
                        called = await client.call_tool(
                            "count", {"n": n}, progress_callback=progressed
                        )
                        assert called.content[0].text == f"counted to {n}"
                current = current or len(tapped.exchanges)
        await asyncio.to_thread(wait, receiver, tapped.exchanges)
    assert progress == [*range(1, 31), 1, 2] * 2
    types = Counter((each.method, each.is_stream) for each in tapped.exchanges)
    # Handshake-era servers answer every call with a stream, and the client listens on one more.
    assert types["GET", True] == 1
    assert types["POST", True] >= 5
    assert types["POST", False] >= 1
    for each in tapped.exchanges[current:]:
        # The client closes a stream at its last message, which comes before the stream's end, and
        # the one that it listens on after its DELETE; the server may be faster or slower.
        each.reasons = ("completed", "client_disconnect")
    received = [message for each in tapped.exchanges for message in read(each)]
    assert sum("progressToken" in message.data for message in received) == len(progress)
    assert_received(receiver, tapped.exchanges, below_http=contrib)


def read(each: Exchange) -> list[oracle.Message]:
    return oracle.read(bytes(each.body))[0] if each.is_stream else []


@BOTH
async def test_chat_completions_and_the_openai_client(contrib: bool, receiver: Receiver) -> None:
    """An endpoint as model servers have it, read by the real ``openai`` client, blocking and
    asynchronous: one message a chunk and one for ``[DONE]``; an answer in one piece is no stream.
    """
    import openai

    route = "/v1/chat/completions"
    tapped, async_tapped = Tapped(route), AsyncTapped(route)
    text = " ".join(f"word{n}" for n in range(50))
    question: Any = {"model": "parrot", "messages": [{"role": "user", "content": text}]}
    chunks = []
    with running("chat", receiver, contrib=contrib) as server:
        options: Any = {"base_url": f"http://127.0.0.1:{server.port}/v1", "api_key": "none"}
        with openai.OpenAI(**options, http_client=httpx2.Client(transport=tapped)) as client:
            whole = await asyncio.to_thread(client.chat.completions.create, **question)
            assert whole.choices[0].message.content == text

            def stream() -> None:
                chunks.extend(client.chat.completions.create(**question, stream=True))

            await asyncio.to_thread(stream)
        async with openai.AsyncOpenAI(
            **options, http_client=httpx2.AsyncClient(transport=async_tapped)
        ) as async_client:
            answer = await async_client.chat.completions.create(**question, stream=True)
            chunks += [chunk async for chunk in answer]
        exchanges = [*tapped.exchanges, *async_tapped.exchanges]
        ask = {**question, "stream": True}
        exchanges.append(await asyncio.to_thread(raw, server.port, "POST", route, route, ask))
        await asyncio.to_thread(wait, receiver, exchanges)
    words = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(words).split() == [*text.split(), *text.split()]
    assert [len(read(each)) for each in exchanges] == [0, *[len(chunks) // 2 + 1] * 2, 52]
    assert_received(receiver, exchanges, below_http=True)
