"""A client on a bare socket."""

import asyncio
import contextlib
import socket


class RawClient:
    """A client on a bare socket: it can close, reset, or stop reading."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def get(
        cls, port: int, path: str, *headers: str, method: str = "GET", limit: int = 2**16
    ) -> "RawClient":
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
        return cls(reader, writer)

    async def until(self, needle: bytes) -> bytes:
        """Reads up to and with ``needle``."""
        return await self.reader.readuntil(needle)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Drops the connection with an RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()
