"""Receivers that do not receive: each refuses OTLP in a way of its own, on a real socket."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc


@contextlib.asynccontextmanager
async def http_answering(status: str) -> AsyncIterator[str]:
    """Answers every request with this status line's end, ``401 Unauthorized`` for example."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """Takes connections, and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class _Services(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every method, or only those of one service."""

    def __init__(self, status: Any, only: str) -> None:
        self._status = status
        self._only = only
        self.calls: list[str] = []

    def service(self, details: Any) -> Any:
        if self._only not in details.method:
            return None
        self.calls.append(details.method)

        def export(request: bytes, context: Any) -> bytes:
            if self._status is not None:
                context.abort(self._status, "who are you?")
            return b""

        return grpc.unary_unary_rpc_method_handler(export)


@contextlib.contextmanager
def grpc_receiver(status: Any = None, only: str = "") -> Iterator[tuple[str, list[str]]]:
    """A gRPC server by grpcio; yields its endpoint and the methods that were called.

    Args:
        status: what each call is refused with; None: accepted.
        only: a part of the methods that exist.

    """
    services = _Services(status, only)
    server = grpc.server(ThreadPoolExecutor(4), handlers=(services,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", services.calls
    finally:
        server.stop(None).wait()
