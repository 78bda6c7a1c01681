"""Bytes that a peer has not taken yet: in the transport's buffer and in the kernel's.

A server accepts megabytes before a send waits, most of them in the kernel, so the wait alone
shows a slow client late. ``TIOCOUTQ`` (Linux, tcp(7)) counts the bytes that the peer has not
acknowledged.
"""

import sys
from typing import Any, Final, Protocol

from otel_sse.semconv import KERNEL, TRANSPORT

if sys.platform == "linux":
    from fcntl import ioctl
    from termios import TIOCOUTQ


# The backlog of most connections: one object for all of them.
NO_BACKLOG: Final = {TRANSPORT: 0, KERNEL: 0}
_ZERO: Final = bytes(4)


class Transport(Protocol):
    """The part of an asyncio transport that is used here."""

    def is_closing(self) -> bool: ...

    def get_write_buffer_size(self) -> int: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


def read_backlog(transport: Transport) -> dict[str, int]:
    """The bytes that wait in each layer of ``transport``; a layer that cannot be read is absent.

    Safe from any thread. A transport reports that it is closing before its descriptor is closed,
    and never takes that back. So a value is the transport's own if it is not closing before and
    after the read: the descriptor's number cannot have been reused in between.
    """
    layers: dict[str, int] = {}
    try:
        if transport.is_closing():
            return {}
        layers[TRANSPORT] = int(transport.get_write_buffer_size())
        if sys.platform == "linux":
            sock = transport.get_extra_info("socket")
            if sock is not None:
                pending = ioctl(sock.fileno(), TIOCOUTQ, _ZERO)
                if pending == _ZERO and not layers[TRANSPORT]:
                    layers = NO_BACKLOG
                else:
                    layers[KERNEL] = int.from_bytes(pending, sys.byteorder)
        return {} if transport.is_closing() else layers
    except Exception:
        # A transport of another library, a TLS tunnel without a socket, a changing buffer.
        return {} if _is_closing(transport) else layers


def _is_closing(transport: Transport) -> bool:
    try:
        return bool(transport.is_closing())
    except Exception:
        return True
