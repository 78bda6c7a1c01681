"""The server of a client's benchmark, in a process of its own; its CPU is not measured.

``python source.py MESSAGES`` prints its port and serves one connection: ``/stream`` is that many
messages, each a chunk of its own, as fast as they are taken; anything else a little JSON, again
and again.
"""

import socket
import sys
from itertools import cycle, islice

from variants import MESSAGES

_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
_PORTION = 256


def main(messages: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        peer, _ = listener.accept()
    with peer:
        while request := peer.recv(1 << 16):
            if not request.startswith(b"GET /stream"):
                peer.sendall(_JSON + b'{"status":"ok"}')
                continue
            peer.sendall(_STREAM)
            chunks = (b"%x\r\n%s\r\n" % (len(each), each) for each in cycle(MESSAGES))
            for sent in range(0, messages, _PORTION):
                peer.sendall(b"".join(islice(chunks, min(_PORTION, messages - sent))))
            peer.sendall(b"0\r\n\r\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
