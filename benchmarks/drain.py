"""The peer of a benchmark, in a process of its own: asks once and throws the answer away.

Its CPU is not measured. ``python drain.py ADDRESS PATH``: the address is a TCP port of this host or
the path of a Unix socket.
"""

import socket
import sys


def main(address: str, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: drain/1.0\r\n\r\n"
    with _connected(address) as peer:
        peer.sendall(request.encode())
        buffer = bytearray(1 << 18)
        while peer.recv_into(buffer):
            pass


def _connected(address: str) -> socket.socket:
    if address.isdigit():
        return socket.create_connection(("127.0.0.1", int(address)))
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(address)
    return peer


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
