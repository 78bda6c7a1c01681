"""The peer of a benchmark, in a process of its own: sends requests and throws the answers away.

Its CPU is not measured. ``python drain.py ADDRESS PATH REQUESTS``: the address is a TCP port of
this host or the path of a Unix socket. The requests of one connection are sent in batches, the
next one when the last one's answers are here; then it reads until the server closes.
"""

import socket
import sys

_BATCH = 50
_ANSWER = b"HTTP/1.1 200"


def main(address: str, path: str, requests: int) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: drain/1.0\r\n"
    with _connected(address) as peer:
        for at in range(0, requests, _BATCH):
            batch = min(_BATCH, requests - at)
            last = at + batch >= requests
            final = (request + "Connection: close\r\n\r\n").encode()
            peer.sendall((request + "\r\n").encode() * (batch - last) + final * last)
            answers = 0 if last else batch
            tail = b""
            while answers > 0:
                data = tail + peer.recv(1 << 16)
                answers -= data.count(_ANSWER)
                # One byte less than the wanted ones, so that none is counted twice.
                tail = data[-(len(_ANSWER) - 1) :]
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
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
