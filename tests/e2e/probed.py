"""Servers and proxies on real sockets for the probe: each byte, and its time, is the test's."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
)


class Exchange:
    """One request, and the way to answer it."""

    def __init__(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = lines[0].split(" ", 2)
        self.headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        self.body = body
        self._writer = writer

    async def raw(self, data: bytes | str) -> None:
        self._writer.write(data.encode() if isinstance(data, str) else data)
        await self._writer.drain()

    async def start(self, extra: str = "") -> None:
        """The head of an event stream, with further header lines."""
        await self.raw(HEAD.replace("\r\n\r\n", f"\r\n{extra}\r\n") if extra else HEAD)

    async def send(self, data: bytes | str) -> None:
        """One chunk."""
        body = data.encode() if isinstance(data, str) else data
        await self.raw(b"%x\r\n%s\r\n" % (len(body), body))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")


Handler = Callable[[Exchange], Awaitable[None]]


@contextlib.asynccontextmanager
async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Answers each connection's one request by ``handler``; yields the URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            exchange = Exchange(head, b"", writer)
            length = int(exchange.headers.get("content-length", "0"))
            exchange.body = await reader.readexactly(length)
            await handler(exchange)
        except (ConnectionError, asyncio.IncompleteReadError):
            # The client has disconnected.
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    scheme = "https" if tls else "http"
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def buffering_proxy(port: int, size: int) -> AsyncIterator[str]:
    """A proxy that hands a response's body on in blocks of ``size`` bytes; yields its URL.

    The head goes on at once, as nginx does it.
    """

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(await reader.readuntil(b"\r\n\r\n"))
            held = b""
            while data := await reader.read(65536):
                held += data
                while len(held) >= size:
                    writer.write(held[:size])
                    held = held[size:]
                    await writer.drain()
            writer.write(held)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, onward = await asyncio.open_connection("127.0.0.1", port)
        request = asyncio.create_task(forward(reader, onward))
        response = asyncio.create_task(hold(behind, writer))
        try:
            await asyncio.wait([request, response], return_when=asyncio.FIRST_COMPLETED)
        finally:
            request.cancel()
            response.cancel()
            onward.close()
            writer.close()

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
