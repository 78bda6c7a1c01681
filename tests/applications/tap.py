"""A TCP proxy between a client and a server that reads HTTP/1.1 as it passes.

It changes no byte, and ends each side as the other ended. What it counts shares nothing with the
package: HTTP is parsed by httptools, event streams by ``oracle``.
"""

import contextlib
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import brotli
import httptools
import zstandard
from helpers import oracle
from helpers.waiting import PATIENCE

T = TypeVar("T")
_RESET: Final = b"\1\0\0\0\0\0\0\0"
_MEDIA_TYPE: Final = "text/event-stream"
_DECODERS: Final[dict[str, Callable[[], Any]]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "deflate": lambda: zlib.decompressobj(15),
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


@dataclass
class Exchange:
    """A request and its response, as far as it has passed.

    ``ended`` is empty while the response is live, then ``complete``, or ``client`` or ``server``:
    whichever closed the connection in the middle of it.
    """

    method: str
    target: str
    request_headers: dict[str, str]
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    encoded: bytearray = field(default_factory=bytearray, repr=False)
    ended: str = ""

    @property
    def path(self) -> str:
        """Without the query, as the server decodes it."""
        return unquote(self.target.partition("?")[0])

    @property
    def is_stream(self) -> bool:
        """Whether the response is an event stream, by its content type."""
        content_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        return content_type == _MEDIA_TYPE and self.status not in (0, 204, 304)

    @property
    def resumed(self) -> bool:
        return "last-event-id" in self.request_headers

    @property
    def body(self) -> bytes:
        """The body without its content coding, as far as it came."""
        coding = self.headers.get("content-encoding", "identity").lower()
        if coding == "identity":
            return bytes(self.encoded)
        if coding == "br":
            return bytes(brotli.Decompressor().process(bytes(self.encoded)))
        return bytes(_DECODERS[coding]().decompress(bytes(self.encoded)))

    @property
    def messages(self) -> list[oracle.Message]:
        return oracle.read(self.body)[0]

    @property
    def comments(self) -> int:
        return oracle.read(self.body)[1]

    @property
    def types(self) -> Counter[str]:
        """How many messages of each event type."""
        return Counter(message.type for message in self.messages)


class Tap:
    """Listens on a port of its own while its block lasts, and forwards to ``server_port``."""

    def __init__(self, server_port: int) -> None:
        self._server = ("127.0.0.1", server_port)
        self._changed = threading.Condition()
        self._exchanges: list[Exchange] = []
        self._errors: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "Tap":
        self._start(self._accept)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for each in self._sockets:
            each.close()
        if kind is None and self._errors:
            raise AssertionError("\n".join(self._errors))

    @property
    def exchanges(self) -> list[Exchange]:
        """In the order of their requests."""
        with self._changed:
            return list(self._exchanges)

    @property
    def streams(self) -> list[Exchange]:
        return [each for each in self.exchanges if each.is_stream]

    @property
    def live(self) -> list[Exchange]:
        """The streams that have not ended."""
        return [each for each in self.streams if not each.ended]

    def wait_for(self, predicate: Callable[[], T], timeout: float = PATIENCE) -> T:
        """What ``predicate`` gives once that is true; it is called whenever bytes have passed."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not (result := predicate()):
                if not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(f"not within {timeout} s; passed: {self._exchanges}")
            return result

    def _start(self, run: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, name="tap", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._server)
                except OSError:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    client.close()
                    continue
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [client, server]
                pipe = _Pipe(self._exchanges)
                self._start(self._pump, client, server, pipe.requests, pipe, "client")
                self._start(self._pump, server, client, pipe.responses, pipe, "server")

    def _pump(
        self, source: socket.socket, sink: socket.socket, parser: Any, pipe: "_Pipe", side: str
    ) -> None:
        reset = False
        while True:
            try:
                data = source.recv(65536)
            except OSError:
                data, reset = b"", True
            with self._changed:
                if data:
                    try:
                        parser.feed_data(data)
                    except Exception as error:
                        self._errors.append(f"the {side} sent no HTTP/1.1: {error!r}: {data!r}")
                else:
                    pipe.over(side)
                self._changed.notify_all()
            try:
                if data:
                    sink.sendall(data)
                    continue
                if reset:
                    sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    sink.close()
                else:
                    sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            return


class _Pipe:
    """One connection's two directions."""

    def __init__(self, exchanges: list[Exchange]) -> None:
        self.waiting: list[Exchange] = []
        self.requests = httptools.HttpRequestParser(_Requests(exchanges, self.waiting, self))
        self.responses = httptools.HttpResponseParser(_Responses(self.waiting, self))

    def over(self, side: str) -> None:
        for each in self.waiting:
            until_closed = side == "server" and each.status and not _is_delimited(each)
            each.ended = each.ended or ("complete" if until_closed else side)


class _Requests:
    """Called by the parser of one connection's requests."""

    def __init__(self, exchanges: list[Exchange], waiting: list[Exchange], pipe: _Pipe) -> None:
        self._exchanges, self._waiting, self._pipe = exchanges, waiting, pipe
        self._url, self._headers = b"", {}  # type: tuple[bytes, dict[str, str]]

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        method = self._pipe.requests.get_method().decode()
        assert method != "HEAD", "a response to HEAD cannot be parsed here"
        exchange = Exchange(method, self._url.decode(), self._headers)
        self._url, self._headers = b"", {}
        self._exchanges.append(exchange)
        self._waiting.append(exchange)


class _Responses:
    """Called by the parser of one connection's responses."""

    def __init__(self, waiting: list[Exchange], pipe: _Pipe) -> None:
        self._waiting, self._pipe = waiting, pipe
        self._headers: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        headers, self._headers = self._headers, {}
        status = self._pipe.responses.get_status_code()
        if status >= 200:
            self._waiting[0].status, self._waiting[0].headers = status, headers

    def on_body(self, body: bytes) -> None:
        self._waiting[0].encoded += body

    def on_message_complete(self) -> None:
        if self._waiting[0].status:
            self._waiting.pop(0).ended = "complete"


def _is_delimited(exchange: Exchange) -> bool:
    """Whether the body says itself where it ends."""
    return not {"content-length", "transfer-encoding"}.isdisjoint(exchange.headers)
