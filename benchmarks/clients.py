"""Workers that read: the CPU of a client's process, for each message or response.

The server is a process of its own, which sends as fast as the client takes.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any

import variants


class Meter:
    """CPU between the end of a warm-up and the last of ``count`` messages or requests."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.warm = count // 10
        self._seen = 0
        self._began = self._ended = 0.0

    def tick(self) -> None:
        """Notes one."""
        self._seen += 1
        if self._seen == self.warm:
            self._began = process_time()
        elif self._seen == self.warm + self.count:
            self._ended = process_time()

    def micros(self) -> float:
        """CPU for each of them, in microseconds."""
        return (self._ended - self._began) / self.count * 1e6


def httpx_stream(variant: str, messages: int) -> dict[str, float]:
    """One stream, read by the lines of a blocking httpx client."""
    import httpx

    def read(url: str, meter: Meter) -> None:
        with httpx.Client() as client, client.stream("GET", url) as response:
            for line in response.iter_lines():
                if not line:
                    meter.tick()

    return _stream("httpx", variant, messages, read)


def aiohttp_client_stream(variant: str, messages: int) -> dict[str, float]:
    """One stream, read by the lines of an aiohttp client."""
    import aiohttp

    async def read(url: str, meter: Meter) -> None:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            async for line in response.content:
                if line == b"\n":
                    meter.tick()

    return _stream("aiohttp", variant, messages, lambda *args: asyncio.run(read(*args)))


def httpx_json(variant: str, requests: int) -> dict[str, float]:
    """Requests of a blocking httpx client to an application in its own process, which answers with
    a little JSON: on sockets, one run differs from the next by ten times the budget.
    """
    import httpx

    def answer(_: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "application/json")])
        return [b'{"status":"ok"}']

    _set_up("httpx", variant)
    meter = Meter(requests)
    with httpx.Client(transport=httpx.WSGITransport(answer)) as client:
        for _ in range(meter.warm + meter.count):
            client.get("http://localhost/json")
            meter.tick()
    return {"us": meter.micros()}


def aiohttp_client_json(variant: str, requests: int) -> dict[str, float]:
    """Requests of an aiohttp client, one after the other, that get a little JSON from a transport
    in memory: on sockets, one run differs from the next by ten times the budget.
    """
    import aiohttp
    from aiohttp.client_proto import ResponseHandler

    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
        b'{"status":"ok"}'
    )

    class Transport(asyncio.Transport):
        """Answers each write, which is a request, in the loop's next turn."""

        def __init__(self, loop: asyncio.AbstractEventLoop, protocol: ResponseHandler) -> None:
            super().__init__()
            self._loop = loop
            self._protocol = protocol

        def write(self, data: bytes | bytearray | memoryview) -> None:
            self._loop.call_soon(self._protocol.data_received, answer)

        def is_closing(self) -> bool:
            return False

        def close(self) -> None:
            self._protocol.connection_lost(None)

    class Connector(aiohttp.BaseConnector):
        async def _create_connection(self, *_: Any) -> ResponseHandler:
            protocol = ResponseHandler(self._loop)
            protocol.connection_made(Transport(self._loop, protocol))
            return protocol

    async def read() -> None:
        async with aiohttp.ClientSession(connector=Connector()) as session:
            for _ in range(meter.warm + meter.count):
                async with session.get("http://localhost/json") as response:
                    await response.read()
                meter.tick()

    _set_up("aiohttp", variant)
    meter = Meter(requests)
    asyncio.run(read())
    return {"us": meter.micros()}


def _stream(
    library: str, variant: str, messages: int, read: Callable[[str, Meter], None]
) -> dict[str, float]:
    reader = _set_up(library, variant)
    meter = Meter(messages)
    with _source(meter.warm + messages) as url:
        read(url + "/stream", meter)
    if variant == variants.OURS:
        variants.check(reader, meter.warm + messages, "sse.client.messages")
    return {"us": meter.micros()}


def _set_up(library: str, variant: str) -> Any:
    """Instruments ``library`` in this process."""
    if variant == variants.PLAIN:
        return None
    reader = variants.provide()
    if variant == variants.CONTRIB:
        _contrib(library)
    else:
        _ours(library)
    return reader


def _ours(library: str) -> None:
    if library == "httpx":
        from otel_sse.frameworks import SSEHttpxInstrumentor

        SSEHttpxInstrumentor().instrument()
    else:
        from otel_sse.frameworks import SSEAiohttpClientInstrumentor

        SSEAiohttpClientInstrumentor().instrument()


def _contrib(library: str) -> None:
    if library == "httpx":
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

        HTTPXClientInstrumentor().instrument()
    else:
        from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor

        AioHttpClientInstrumentor().instrument()


@contextmanager
def _source(messages: int) -> Iterator[str]:
    source = str(Path(__file__).with_name("source.py"))
    with subprocess.Popen(
        [sys.executable, source, str(messages)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
