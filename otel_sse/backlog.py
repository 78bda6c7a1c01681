"""How much a peer has not taken yet: bytes in the transport's buffer and in the kernel's.

A server absorbs megabytes before a send waits, most of them in the kernel, so the wait alone
shows a slow client late. ``TIOCOUTQ`` (Linux) counts the bytes that the peer has not
acknowledged.
"""

import sys
from typing import Any

from otel_sse.semconv import KERNEL, TRANSPORT

if sys.platform == "linux":
    from fcntl import ioctl
    from termios import TIOCOUTQ


def read(transport: Any) -> dict[str, int]:
    """The bytes that wait in each layer of ``transport``; a layer that cannot be read is absent.

    Safe from any thread. A transport says that it is closing before its descriptor is closed,
    and never takes it back: a reading before which and after which it says no was of its own.
    """
    layers: dict[str, int] = {}
    try:
        if transport.is_closing():
            return {}
        layers[TRANSPORT] = int(transport.get_write_buffer_size())
        if sys.platform == "linux":
            sock = transport.get_extra_info("socket")
            if sock is not None:
                pending = ioctl(sock.fileno(), TIOCOUTQ, b"\0\0\0\0")
                layers[KERNEL] = int.from_bytes(pending, sys.byteorder)
        return {} if transport.is_closing() else layers
    except Exception:
        # A foreign transport, a TLS tunnel without a socket, a buffer that changed while read.
        return {} if _closing(transport) else layers


def _closing(transport: Any) -> bool:
    try:
        return bool(transport.is_closing())
    except Exception:
        return True
