"""The client of a plan: one bare socket, and what was read from it, byte for byte."""

from __future__ import annotations

import contextlib
import socket
import time
import zlib
from typing import Any

from storm.plans import Plan

PATIENCE = 2.5


class Reply:
    """One response as it comes in: its bytes, its head, and its body without chunks and coding."""

    def __init__(self) -> None:
        self.raw = b""
        self.body = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        # Something that is no part of it was written into it.
        self.broken = False
        self._pending = b""
        self._length: int | None = None
        self._chunked = False
        self._inflate: Any = None
        self._head = True

    def feed(self, data: bytes, method: str) -> bytes:
        """Takes what has been read; returns what belongs to the next response."""
        self.raw += data
        self._pending += data
        if self._head:
            head, found, rest = self._pending.partition(b"\r\n\r\n")
            if not found:
                return b""
            self._head, self._pending = False, rest
            first, *lines = head.decode("latin-1").split("\r\n")
            self.status = int(first.split()[1])
            pairs = (line.partition(":") for line in lines)
            self.headers = {name.lower(): value.strip() for name, _, value in pairs}
            self._chunked = self.headers.get("transfer-encoding") == "chunked"
            if "content-length" in self.headers:
                self._length = int(self.headers["content-length"])
            if self.headers.get("content-encoding") == "gzip":
                self._inflate = zlib.decompressobj(31)
            if method == "HEAD" or self.status in (204, 304):
                self._length, self._chunked = 0, False
        if self._chunked:
            self._dechunk()
        elif self._length is not None:
            part, self._pending = self._pending[: self._length], self._pending[self._length :]
            self._length -= len(part)
            self._decode(part)
            self.complete = not self._length
        else:
            self._decode(self._pending)
            self._pending = b""
        rest = self._pending if self.complete else b""
        if rest:
            self.raw = self.raw[: -len(rest)]
        return rest

    def _dechunk(self) -> None:
        while not self.complete:
            size, found, rest = self._pending.partition(b"\r\n")
            if not found:
                return
            try:
                length = int(size, 16)
            except ValueError:
                # A server may write a second response into the first.
                self.broken = True
                self._pending = b""
                return
            if len(rest) < length + 2:
                return
            self._decode(rest[:length])
            self._pending = rest[length + 2 :]
            self.complete = not length

    def _decode(self, part: bytes) -> None:
        self.body += self._inflate.decompress(part) if self._inflate else part

    @property
    def is_stream(self) -> bool:
        kind = self.headers.get("content-type", "").partition(";")[0].strip()
        return kind == "text/event-stream"


class Client:
    """A kept-alive connection with a request after the other."""

    def __init__(self, plan: Plan, port: int) -> None:
        self.plan = plan
        self._socket = socket.socket()
        if plan.ending == "slowly":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(("127.0.0.1", port))
        self._rest = b""
        self._over = False
        self._broken = False

    def request(self, path: str, number: int, caller: str | None) -> None:
        plan = self.plan
        lines = [f"{plan.method} {path} HTTP/1.1", "Host: localhost", f"X-Number: {number}"]
        if "gzip" in plan.everywhere and not plan.acts:
            lines.append("Accept-Encoding: gzip")
        if caller:
            lines.append(f"traceparent: {caller}")
        if plan.method == "POST":
            lines.append("Content-Length: 0")
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def read(self, reply: Reply, needle: bytes | None = None) -> bool:
        """Reads to the response's end, or until its body holds ``needle``; whether it does."""
        while True:
            if self._rest:
                data, self._rest = self._rest, b""
            elif reply.complete or reply.broken or self._over:
                break
            else:
                data = self._receive()
                if not data:
                    self._over = True
                    break
            self._rest = reply.feed(data, self.plan.method)
            self._broken = reply.broken
            if needle is not None and needle in reply.body:
                return True
            if reply.complete or reply.broken:
                break
        return needle is not None and needle in reply.body

    def _receive(self) -> bytes:
        slowly = self.plan.ending == "slowly"
        if slowly:
            time.sleep(0.001)
        try:
            return self._socket.recv(4096 if slowly else 65536)
        except TimeoutError:
            raise
        except OSError:
            return b""

    @property
    def reusable(self) -> bool:
        return not self._over and not self._broken

    def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()
