"""Clients that people use read real streams from a real socket, and each tells what it read."""

import asyncio
import concurrent.futures
import contextlib
import gc
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import Any

import aiohttp
import httpx
import httpx2
import httpx_sse
import pytest
import requests
import sseclient
from aiohttp_sse_client2.client import EventSource
from helpers.asgi import START, Fed, Stream
from helpers.backend import Backend
from helpers.client_streams import (
    CHUNKED,
    FIRST,
    INSTRUMENTORS,
    Server,
    Wire,
    assert_read,
    serving,
    table,
)
from helpers.streams import STREAM
from helpers.waiting import until
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_sse.asgi import SSEMiddleware
from otel_sse.reading import Reading

# Reads a response, and gives what it read where that is every byte.
Way = Callable[[Any], Any]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


@pytest.fixture
def told(backend: Backend) -> Iterator[Backend]:
    with _instrumented(backend):
        yield backend


@contextlib.contextmanager
def _instrumented(backend: Backend, **options: Any) -> Iterator[None]:
    used = [kind() for kind in INSTRUMENTORS]
    for each in used:
        each.instrument(**backend.providers, **options)
    try:
        yield
    finally:
        for each in used:
            each.uninstrument()


# --- clients: each asks, has the response read in a way, and lets go of it -------------------


async def _sync(package: Any, way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    def run() -> Any:
        with (
            package.Client(timeout=wait, follow_redirects=True) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            return way(response)

    return await asyncio.to_thread(run)


async def _async(package: Any, way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    async with (
        package.AsyncClient(timeout=wait, follow_redirects=True) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        return await way(response)


async def _aiohttp(way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    timeout = aiohttp.ClientTimeout(sock_read=wait)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(url, headers=headers) as response,
    ):
        return await way(response)


async def _requests(way: Way, url: str, wait: float = 20, **headers: str) -> Any:
    def run() -> Any:
        with requests.get(url, stream=True, timeout=wait, headers=headers) as response:
            return way(response)

    return await asyncio.to_thread(run)


CLIENTS: dict[str, Callable[..., Awaitable[Any]]] = {
    "httpx": partial(_sync, httpx),
    "httpx-async": partial(_async, httpx),
    "httpx2": partial(_sync, httpx2),
    "httpx2-async": partial(_async, httpx2),
    "aiohttp": _aiohttp,
    "requests": _requests,
}


# --- ways of reading ----------------------------------------------------------------------------


def _lines(response: Any) -> None:
    for _ in response.iter_lines():
        pass


def _first_line(response: Any) -> None:
    for _ in response.iter_lines():
        break


async def _alines(response: Any) -> None:
    async for _ in response.aiter_lines():
        pass


async def _first_aline(response: Any) -> None:
    async for _ in response.aiter_lines():
        break


async def _content(response: Any) -> bytes:
    return b"".join([line async for line in response.content])


async def _first_of_content(response: Any) -> None:
    async for _ in response.content:
        break


def _first_by_requests(response: Any) -> None:
    for _ in response.iter_lines(chunk_size=1):
        break


def _joined(pieces: Callable[[Any], Any]) -> Way:
    return lambda response: b"".join(pieces(response))


def _gathered(pieces: Callable[[Any], Any]) -> Way:
    async def read(response: Any) -> bytes:
        return b"".join([piece async for piece in pieces(response)])

    return read


def _taken(take: Callable[[Any], Awaitable[Any]]) -> Way:
    """Until a read gives nothing more."""

    async def read(response: Any) -> bytes:
        taken = b""
        while not response.content.at_eof():
            taken += await take(response.content)
        return taken

    return read


async def _chunk(content: Any) -> bytes:
    data, _ = await content.readchunk()
    return bytes(data)


async def _exactly(content: Any) -> bytes:
    try:
        return bytes(await content.readexactly(100))
    except asyncio.IncompleteReadError as end:
        return end.partial


async def _tuples(response: Any) -> bytes:
    return b"".join([data async for data, _ in response.content.iter_chunks()])


def _all_events(response: Any) -> None:
    assert [*httpx_sse.EventSource(response).iter_sse()]


async def _all_aevents(response: Any) -> None:
    assert [event async for event in httpx_sse.EventSource(response).aiter_sse()]


def _sseclient(response: Any) -> None:
    assert [*sseclient.SSEClient(response).events()]


def _unicode(response: Any) -> bytes:
    text = "".join(response.iter_content(64, decode_unicode=True))
    return text.encode(response.encoding)


LEAVING: dict[str, Way] = {
    "httpx": _first_line,
    "httpx-async": _first_aline,
    "httpx2": _first_line,
    "httpx2-async": _first_aline,
    "aiohttp": _first_of_content,
    "requests": _first_by_requests,
}
# What a client is mostly read by.
USUAL: dict[str, Way] = {
    "httpx": _lines,
    "httpx-async": _alines,
    "httpx2": _lines,
    "httpx2-async": _alines,
    "aiohttp": _content,
    "requests": _lines,
}
_HTTPX: dict[str, Way] = {
    "iter_lines": _lines,
    "iter_bytes": _joined(lambda response: response.iter_bytes()),
    "iter_bytes-3": _joined(lambda response: response.iter_bytes(3)),
    "iter_text": lambda response: "".join(response.iter_text()).encode(response.encoding),
    "read": lambda response: response.read(),
}
_HTTPX_ASYNC: dict[str, Way] = {
    "aiter_lines": _alines,
    "aiter_bytes": _gathered(lambda response: response.aiter_bytes()),
    "aiter_bytes-3": _gathered(lambda response: response.aiter_bytes(3)),
    "aread": lambda response: response.aread(),
}
WAYS: dict[str, dict[str, Way]] = {
    "httpx": {**_HTTPX, "httpx-sse": _all_events},
    "httpx-async": {**_HTTPX_ASYNC, "httpx-sse": _all_aevents},
    "httpx2": _HTTPX,
    "httpx2-async": _HTTPX_ASYNC,
    "aiohttp": {
        "async for": _content,
        "read-7": _taken(lambda content: content.read(7)),
        "readany": _taken(lambda content: content.readany()),
        "readchunk": _taken(_chunk),
        "readline": _taken(lambda content: content.readline()),
        "readuntil": _taken(lambda content: content.readuntil(b"\n\n")),
        "readexactly": _taken(_exactly),
        "iter_chunked": _gathered(lambda response: response.content.iter_chunked(11)),
        "iter_any": _gathered(lambda response: response.content.iter_any()),
        "iter_chunks": _tuples,
        "content.read": lambda response: response.content.read(),
        "read": lambda response: response.read(),
        "text": lambda response: response.text(),
    },
    "requests": {
        "iter_lines": _lines,
        "iter_content-1": _joined(lambda response: response.iter_content()),
        "iter_content-64": _joined(lambda response: response.iter_content(64)),
        "iter_content-none": _joined(lambda response: response.iter_content(None)),
        "decode_unicode": _unicode,
        "for": _joined(iter),
        "content": lambda response: response.content,
        "text": lambda response: response.text.encode(response.encoding),
        "sseclient": _sseclient,
    },
}
# Those that read without decoding: there is nothing to count where the content is coded.
RAW: dict[str, Way] = {
    "httpx": _joined(lambda response: response.iter_raw()),
    "httpx-async": _gathered(lambda response: response.aiter_raw()),
    "httpx2": _joined(lambda response: response.iter_raw()),
    "httpx2-async": _gathered(lambda response: response.aiter_raw()),
}
client = pytest.mark.parametrize("name", CLIENTS)
asynchronous = pytest.mark.parametrize("name", ["httpx-async", "httpx2-async", "aiohttp"])
synchronous = pytest.mark.parametrize("name", ["httpx", "httpx2", "requests"])


@pytest.mark.parametrize("path", ["/all", "/gzip", "/unicode"])
@pytest.mark.parametrize(("name", "way"), [(n, w) for n, ways in WAYS.items() for w in ways])
async def test_each_way_of_reading_is_counted_exactly(
    name: str, way: str, path: str, server: Server, told: Backend
) -> None:
    """Messages by type, comments and bytes are what the oracle finds, after content decoding, and
    the reader gets every byte.
    """
    read = await CLIENTS[name](WAYS[name][way], server.url + path)
    if isinstance(read, bytes):
        assert read == STREAM
    await assert_read(told, server.port)


@pytest.mark.parametrize("name", RAW)
async def test_what_is_read_raw_is_counted(name: str, server: Server, told: Backend) -> None:
    """Where nothing is coded there is nothing to decode."""
    assert await CLIENTS[name](RAW[name], server.url + "/all") == STREAM
    await assert_read(told, server.port)


@pytest.mark.parametrize("name", RAW)
async def test_what_nobody_decodes_is_not_read(name: str, server: Server, told: Backend) -> None:
    """The compressed bytes are no event stream: none of them counts, and it still ends."""
    assert await CLIENTS[name](RAW[name], server.url + "/gzip") != STREAM
    await assert_read(told, server.port, b"")


async def test_what_aiohttp_is_told_not_to_decode_is_not_read(
    server: Server, told: Backend
) -> None:
    """Nor is it where each response would be decoded, but for a setting of the session."""
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(server.url + "/gzip") as response,
    ):
        assert await response.read() != STREAM
        async with session.get(server.url + "/all") as plain:
            assert await plain.read() == STREAM
    await until(lambda: len(told.spans("SSE")) == 2)
    found = [span.attributes for span in told.spans("SSE")]
    assert [each["sse.close.reason"] for each in found] == ["completed"] * 2
    assert [each["sse.io"] for each in found] == [0, len(STREAM)]


@pytest.mark.filterwarnings("ignore:unread_data:DeprecationWarning")
async def test_what_is_put_back_counts_once(server: Server, told: Backend) -> None:
    """Aiohttp lets a reader look ahead: what is read again is the same, and its rest also."""

    async def ahead(response: Any) -> bytes:
        content = response.content
        read = b""
        while data := await content.read(7):
            content.unread_data(data[2:])
            content.unread_data(data[:2])
            read += await content.read(5)
        return read

    assert await _aiohttp(ahead, server.url + "/all") == STREAM
    await assert_read(told, server.port)


@client
@pytest.mark.parametrize("path", ["/deflate", "/br", "/zstd"])
async def test_other_content_codings(name: str, path: str, server: Server, told: Backend) -> None:
    """What a client can decode is counted decoded."""
    if path in ("/br", "/zstd"):
        pytest.importorskip("brotli")
        pytest.importorskip("zstandard")
    await CLIENTS[name](USUAL[name], server.url + path)
    await assert_read(told, server.port)


@client
async def test_a_body_in_one_piece(name: str, server: Server, told: Backend) -> None:
    """A Content-Length makes no difference."""
    await CLIENTS[name](USUAL[name], server.url + "/unicode")
    await assert_read(told, server.port)


@client
async def test_an_empty_body(name: str, server: Server, told: Backend) -> None:
    """A stream without a byte is one that has been read to its end."""
    await CLIENTS[name](USUAL[name], server.url + "/empty")
    await assert_read(told, server.port, b"")


@client
async def test_another_media_type_is_not_told(name: str, server: Server, told: Backend) -> None:
    """Only event streams are."""
    await CLIENTS[name](USUAL[name], server.url + "/html")
    assert told.spans("SSE") == []
    assert told.events() == []


@client
async def test_a_redirect_is_no_stream(name: str, server: Server, told: Backend) -> None:
    """One stream, that at the end of the way."""
    await CLIENTS[name](USUAL[name], server.url + "/redirect")
    assert [request.path for request in server.requests] == ["/redirect", "/all"]
    span = await assert_read(told, server.port)
    assert span.attributes["url.path"] == "/all"


@client
async def test_a_status_of_500_is_an_error(name: str, server: Server, told: Backend) -> None:
    """A stream may come with any status; it is told to its end."""
    await CLIENTS[name](USUAL[name], server.url + "/broken")
    await assert_read(told, server.port, FIRST, status=503, error_type="503")


@client
async def test_the_request_is_left_alone(name: str, server: Server, told: Backend) -> None:
    """Nothing is injected, and a request that resumes is told as such."""
    bare = {"last-event-id": "7"}
    with told.tracer.start_as_current_span("caller") as caller:
        await CLIENTS[name](USUAL[name], server.url + "/all?key=secret", **bare)
    (request,) = server.requests
    assert "traceparent" not in request.headers
    span = await assert_read(told, server.port, resumed=True)
    assert span.parent.span_id == caller.get_span_context().span_id
    assert "secret" not in span.to_json()


@client
async def test_the_span_starts_with_the_request(name: str, told: Backend) -> None:
    """Not with the response: a server that is slow to answer shows."""

    async def answer(wire: Wire) -> None:
        await asyncio.sleep(0.3)
        await wire.head(f"Content-Length: {len(FIRST)}")
        await wire.send(FIRST)

    async with serving(answer) as server:
        before = time.time_ns()
        await CLIENTS[name](USUAL[name], server.url)
        span = await assert_read(told, server.port, FIRST)
    assert before - 1e6 <= span.start_time <= span.end_time - 0.3e9
    ((_, connected),) = told.points("sse.client.connect.duration")
    ((_, first),) = told.points("sse.client.connection.time_to_first_message")
    assert 0.3 <= connected.sum <= first.sum <= (span.end_time - span.start_time) / 1e9


# --- endings --------------------------------------------------------------------------------------


async def _ended(backend: Backend) -> Any:
    """The reason of the one stream that there was, told in three places and live no more."""
    await until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    found = span.attributes["sse.close.reason"]
    _, closed = backend.events("sse.connection.")
    assert closed.attributes["sse.close.reason"] == found
    assert backend.value("sse.client.connection.duration", sse__close__reason=found) == 1
    assert backend.value("sse.client.active_connections") == 0
    return found


@client
@pytest.mark.parametrize("path", ["/endless", "/ticking"])
async def test_leaving_the_loop_is_a_close(
    name: str, path: str, server: Server, told: Backend
) -> None:
    """A reader that has had enough is no error."""
    await CLIENTS[name](LEAVING[name], server.url + path)
    assert await _ended(told) == "client_close"


@client
async def test_a_response_that_nobody_reads_is_closed(
    name: str, server: Server, told: Backend
) -> None:
    """Its client lets go of it at once."""
    nobody = (lambda _: None) if name in ("httpx", "httpx2", "requests") else _look_away
    await CLIENTS[name](nobody, server.url + "/endless")
    await assert_read(told, server.port, b"", reason="client_close")


async def _look_away(_: Any) -> None:
    pass


@client
async def test_an_error_of_the_reader_is_a_close(name: str, server: Server, told: Backend) -> None:
    """What goes wrong in the loop's body is not the stream's."""

    def fail(_: Any) -> None:
        raise LookupError

    async def afail(_: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await CLIENTS[name](
            fail if name in ("httpx", "httpx2", "requests") else afail, server.url + "/endless"
        )
    assert await _ended(told) == "client_close"


@client
@pytest.mark.parametrize("path", ["/cut", "/short"])
async def test_a_stream_that_the_server_cuts_is_disconnected(
    name: str, path: str, server: Server, told: Backend
) -> None:
    """The end of the network connection in the middle of a body, chunked or of a known length."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        await CLIENTS[name](USUAL[name], server.url + path)
    # Of a body that is cut short, requests gives none of what it still waits to make a chunk of.
    given = b"" if (name, path) == ("requests", "/short") else FIRST
    await assert_read(told, server.port, given, reason="disconnected")


@client
async def test_a_server_that_goes_away(name: str, server: Server, told: Backend) -> None:
    """The same, while the reader waits."""
    task = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url + "/endless"))
    await until(lambda: told.value("sse.client.messages") == 1)
    await server.stop(cut=True)
    with pytest.raises(Exception):  # noqa: B017, PT011
        await task
    await assert_read(told, server.port, FIRST, reason="disconnected")
    await server.start()


@client
async def test_a_read_that_takes_too_long_is_a_timeout(
    name: str, server: Server, told: Backend
) -> None:
    """The client's own time-out, with its error type."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        await CLIENTS[name](USUAL[name], server.url + "/endless", wait=1)
    assert await _ended(told) == "timeout"
    (span,) = told.spans("SSE")
    assert "imeout" in span.attributes["error.type"]
    assert not span.status.is_ok


@client
async def test_a_body_that_cannot_be_decoded_is_an_error(
    name: str, server: Server, told: Backend
) -> None:
    """It says that it is compressed, but is not."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        await CLIENTS[name](USUAL[name], server.url + "/not-gzip")
    assert await _ended(told) == "error"
    (span,) = told.spans("SSE")
    assert not span.status.is_ok


@asynchronous
async def test_a_cancelled_reader_has_closed(name: str, server: Server, told: Backend) -> None:
    """Cancellation leaves the loop, too."""
    task = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url + "/endless"))
    await until(lambda: told.value("sse.client.messages") == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_read(told, server.port, FIRST, reason="client_close")


@synchronous
async def test_a_close_by_another_thread_is_a_close(
    name: str, server: Server, told: Backend
) -> None:
    """Whatever its reader finds then: requests' close itself waits for the read under way."""
    begun: list[Any] = []

    def read(response: Any) -> None:
        for _ in response.iter_lines(**({"chunk_size": 1} if name == "requests" else {})):
            begun.append(response)

    reading = asyncio.ensure_future(CLIENTS[name](read, server.url + "/endless"))
    await until(lambda: begun)
    closing = asyncio.ensure_future(asyncio.to_thread(begun[0].close))
    # Its telling comes before the closing, which has to be there when the server ends it all.
    await until(lambda: told.spans("SSE"))
    await server.stop(cut=True)
    await asyncio.gather(reading, closing, return_exceptions=True)
    assert await _ended(told) == "client_close"
    await server.start()


async def test_a_read_that_is_given_up_is_not_the_end(told: Backend) -> None:
    """A reader may stop to wait, and wait again: only the stream's own end is one."""
    go_on = asyncio.Event()

    async def answer(wire: Wire) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        await go_on.wait()
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    async with (
        serving(answer) as server,
        aiohttp.ClientSession() as session,
        session.get(server.url) as response,
    ):
        assert await response.content.readuntil(b"\n\n") == FIRST
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(response.content.readline(), 0.1)
        assert told.value("sse.client.active_connections") == 1
        go_on.set()
        assert await response.content.read() == FIRST
        await assert_read(told, server.port, FIRST * 2)


@pytest.mark.parametrize("busy", [False, True])
async def test_aiohttps_time_for_the_whole_response(
    busy: bool, server: Server, told: Backend
) -> None:
    """It may end while the reader waits, or be found to have ended when it reads again."""

    async def read_on(content: Any) -> None:
        while True:
            await content.readany()
            await asyncio.sleep(2 if busy else 0)

    timeout = aiohttp.ClientTimeout(total=1)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(server.url + "/ticking") as response,
    ):
        with pytest.raises(asyncio.TimeoutError):
            await read_on(response.content)
    assert await _ended(told) == "timeout"


@pytest.mark.parametrize("chunked", [False, True])
async def test_requests_may_be_read_on(chunked: bool, told: Backend) -> None:
    """Who leaves a loop over a requests response may begin another one, where urllib3 leaves its
    connection open: not in a chunked body.
    """

    async def answer(wire: Wire) -> None:
        if chunked:
            await wire.head(CHUNKED)
            await wire.chunk(FIRST)
            await wire.left()
        else:
            await wire.head(f"Content-Length: {3 * len(FIRST)}")
            await wire.send(3 * FIRST)

    def read(response: Any) -> None:
        for chunk in response.iter_content(len(FIRST)):
            assert chunk == FIRST
            break
        rest = b"".join(response.iter_content(len(FIRST)))
        assert rest == (b"" if chunked else FIRST * 2)

    async with serving(answer) as server:
        await _requests(read, server.url)
        if chunked:
            await assert_read(told, server.port, FIRST, reason="client_close")
        else:
            await assert_read(told, server.port, FIRST * 3)


# --- whoever forgets a stream has closed it -----------------------------------------------------


class _Holder:
    """Holds itself, so that only the garbage collector ends it."""

    def __init__(self, *held: Any) -> None:
        self.held = (self, *held)


def _forget_sync(client: Any, url: str) -> None:
    response = client.send(client.build_request("GET", url), stream=True)
    lines = response.iter_lines()
    assert next(lines) == "data: 1"
    _Holder(lines)


async def _forget_async(client: Any, url: str) -> None:
    response = await client.send(client.build_request("GET", url), stream=True)
    lines = response.aiter_lines()
    assert await anext(lines) == "data: 1"
    _Holder(lines)


async def _forget_aiohttp(client: Any, url: str) -> None:
    response = await client.get(url)
    assert await response.content.readline() == b"data: 1\n"
    _Holder(response)


def _forget_requests(client: Any, url: str) -> None:
    response = client.get(url, stream=True)
    lines = response.iter_lines(chunk_size=1)
    assert next(lines) == b"data: 1"
    _Holder(lines)


SESSIONS: dict[str, tuple[Callable[[], Any], Callable[[Any, str], Any]]] = {
    "httpx": (httpx.Client, _forget_sync),
    "httpx-async": (httpx.AsyncClient, _forget_async),
    "httpx2": (httpx2.Client, _forget_sync),
    "httpx2-async": (httpx2.AsyncClient, _forget_async),
    "aiohttp": (aiohttp.ClientSession, _forget_aiohttp),
    "requests": (requests.Session, _forget_requests),
}


@contextlib.asynccontextmanager
async def _session(name: str) -> AsyncIterator[tuple[Any, Callable[[str], Awaitable[None]]]]:
    """A client, and what forgets a stream that it has begun to read."""
    make, forget = SESSIONS[name]
    session = make()
    try:
        if name in ("httpx", "httpx2", "requests"):
            yield session, partial(asyncio.to_thread, forget, session)
        else:
            yield session, partial(forget, session)
    finally:
        closed = session.aclose() if "async" in name else session.close()
        if closed is not None:
            await closed


@pytest.mark.parametrize("read", [True, False])
async def test_what_outlives_its_response_is_read(read: bool, told: Backend) -> None:
    """The content of an aiohttp response may be kept alone: it ends when it is read or forgotten,
    though the response has gone when all had come.
    """
    pieces = [FIRST, FIRST * 2]

    async def answer(wire: Wire) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(pieces[0])
        await wire.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(pieces[1]), pieces[1]))

    async with serving(answer) as server, aiohttp.ClientSession() as session:
        content = (await session.get(server.url)).content
        assert await content.readexactly(len(FIRST)) == FIRST
        await until(content.is_eof)
        assert told.value("sse.client.active_connections") == 1
        if read:
            assert await content.read() == FIRST * 2
        del content
        await until(lambda: gc.collect() >= 0 and told.spans("SSE"))
        if read:
            await assert_read(told, server.port, FIRST * 3)
        else:
            assert await _ended(told) == "client_close"


# A socket that is garbage is warned of.
forgetting = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@client
@forgetting
async def test_a_forgotten_stream_is_closed(name: str, server: Server, told: Backend) -> None:
    """Nobody closes it, only the garbage collector finds it: it has been told to its end."""
    async with _session(name) as (session, forget):
        await forget(server.url + "/endless")
        if name == "aiohttp":
            # Its connection holds the response.
            assert told.value("sse.client.active_connections") == 1
            await session.close()
        # The thread that has asked may hold it for a moment more.
        await until(lambda: gc.collect() >= 0 and told.spans("SSE"))
        assert await _ended(told) == "client_close"
        # What a connection that is dropped now says of its stream comes too late.
        await asyncio.sleep(0.05)
        assert len(told.spans("SSE")) == 1


@client
@forgetting
async def test_a_forgotten_response_is_closed(name: str, server: Server, told: Backend) -> None:
    """The same, where nobody has begun to read it."""
    async with _session(name) as (session, _):
        if name == "aiohttp":
            _Holder(await session.get(server.url + "/endless"))
            await session.close()
        elif name == "requests":
            _Holder(await asyncio.to_thread(session.get, server.url + "/endless", stream=True))
        elif "async" in name:
            request = session.build_request("GET", server.url + "/endless")
            _Holder(await session.send(request, stream=True))
        else:
            request = session.build_request("GET", server.url + "/endless")
            _Holder(await asyncio.to_thread(session.send, request, stream=True))
        # The thread that has asked may hold it for a moment more.
        await until(lambda: gc.collect() >= 0 and told.spans("SSE"))
        assert await _ended(told) == "client_close"


@client
@forgetting
async def test_garbage_waits_for_no_lock(name: str, server: Server, told: Backend) -> None:
    """The collector may run wherever something is allocated, also where telemetry's own locks or
    the SDK's are held: what it finds then does not ask for them.
    """
    lock = next(kind().telemetry for kind in INSTRUMENTORS).lock
    assert all(kind().telemetry.lock is lock for kind in INSTRUMENTORS)
    async with _session(name) as (session, forget):
        gc.disable()
        try:
            await forget(server.url + "/endless")
            if name == "aiohttp":
                await session.close()
            collected = threading.Event()

            def collect() -> None:
                with lock:
                    gc.collect()
                collected.set()

            threading.Thread(target=collect, daemon=True).start()
            await until(collected.is_set)
        finally:
            gc.enable()
        assert await _ended(told) == "client_close"


@client
async def test_nothing_of_ours_stays(name: str, server: Server, told: Backend) -> None:
    """A stream that has ended leaves no object of ours behind."""
    await CLIENTS[name](USUAL[name], server.url + "/all")
    await CLIENTS[name](LEAVING[name], server.url + "/endless")
    with pytest.raises(Exception):  # noqa: B017, PT011
        await CLIENTS[name](USUAL[name], server.url + "/cut")
    await until(lambda: len(told.spans("SSE")) == 3)

    def left() -> list[Reading]:
        gc.collect()
        # Not isinstance, which asks lazy proxies of others for their class.
        readings = [each for each in gc.get_objects() if type(each) is Reading]
        return [each for each in readings if each._telemetry.providers.meter is told.meter_provider]

    await until(lambda: not left())


# --- the one who reads --------------------------------------------------------------------------


@client
async def test_the_readers_own_work_is_not_in_the_gap(
    name: str, server: Server, told: Backend
) -> None:
    """Only the waiting counts: a reader that is busy between two messages does not slow them."""
    worked: list[float] = []

    def work(response: Any) -> None:
        for line in response.iter_lines():
            if not line:
                began = time.perf_counter()
                time.sleep(0.1)
                worked.append(time.perf_counter() - began)

    async def awork(lines: Any) -> None:
        async for line in lines:
            if not line.strip():
                began = time.perf_counter()
                await asyncio.sleep(0.1)
                worked.append(time.perf_counter() - began)

    ways: dict[str, Way] = {
        "aiohttp": lambda response: awork(response.content),
        "httpx-async": lambda response: awork(response.aiter_lines()),
        "httpx2-async": lambda response: awork(response.aiter_lines()),
    }
    began = time.perf_counter()
    await CLIENTS[name](ways.get(name, work), server.url + "/all")
    took = time.perf_counter() - began
    assert sum(worked) > 1
    ((_, point),) = told.points("sse.client.message.gap")
    # Whatever else took its time: nothing is in both.
    assert point.sum + sum(worked) <= took


@client
async def test_waiting_is_in_the_gap(name: str, told: Backend) -> None:
    """What the stream takes from one message to the next is told as such."""

    async def answer(wire: Wire) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        await asyncio.sleep(0.3)
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    async with serving(answer) as server:
        await CLIENTS[name](USUAL[name], server.url)
    ((_, point),) = told.points("sse.client.message.gap")
    assert point.count == 1
    assert point.sum > 0.25


@asynchronous
async def test_the_readers_context_stays_its_own(name: str, server: Server, told: Backend) -> None:
    """Nothing is attached to it, before, within and after the stream."""
    seen = []

    def look() -> None:
        seen.append({variable: id(value) for variable, value in copy_context().items()})

    async def read(response: Any) -> None:
        look()
        pieces = response.content if name == "aiohttp" else response.aiter_lines()
        async for _ in pieces:
            look()

    look()
    await CLIENTS[name](read, server.url + "/all")
    look()
    assert len(seen) > 10
    assert all(each == seen[0] for each in seen)


@client
async def test_a_stream_that_goes_on_is_told_meanwhile(
    name: str, server: Server, backend: Backend
) -> None:
    """In segments, as long as it lasts."""
    with _instrumented(backend, segment_seconds=0.2):
        task = asyncio.ensure_future(CLIENTS[name](_until_left(name), server.url + "/ticking"))
        await until(lambda: len(backend.spans("SSE")) >= 2)
        assert not task.done()
        assert backend.value("sse.client.active_connections") == 1
        await server.stop(cut=True)
        with pytest.raises(Exception):  # noqa: B017, PT011
            await task
    segments = backend.spans("SSE")
    assert [span.attributes["sse.segment.index"] for span in segments] == [*range(len(segments))]
    assert [span.attributes.get("sse.close.reason") for span in segments[:-1]] == [None] * (
        len(segments) - 1
    )
    assert segments[-1].attributes["sse.close.reason"] == "disconnected"
    total = sum(span.attributes["sse.segment.messages"] for span in segments)
    assert segments[-1].attributes["sse.messages"] == total
    await server.start()


def _until_left(name: str) -> Way:
    return USUAL[name] if name != "requests" else lambda response: [*response.iter_content(1)]


@client
async def test_a_silent_stream_is_told_meanwhile(
    name: str, server: Server, backend: Backend
) -> None:
    """Its stall and its segments, though its reader only waits, and be it a blocked thread."""
    with _instrumented(backend, segment_seconds=0.2, stall_seconds=0.1):
        task = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url + "/endless"))
        await until(lambda: backend.metrics() and backend.events("sse.connection.stalled"))
        await until(lambda: backend.metrics() and len(backend.spans("SSE")) >= 2)
        assert backend.value("sse.client.stalled_connections") == 1
        assert len(backend.events("sse.connection.stalled")) == 1
        await server.stop(cut=True)
        with pytest.raises(Exception):  # noqa: B017, PT011
            await task
    await server.start()


@synchronous
async def test_a_busy_reader_is_no_silent_stream(
    name: str, server: Server, backend: Backend
) -> None:
    """A thread that has not asked for more is not told or counted as stalled, until it waits."""
    busy, work = threading.Event(), threading.Event()

    def read(response: Any) -> None:
        for _ in response.iter_lines(**({"chunk_size": 1} if name == "requests" else {})):
            busy.set()
            work.wait(20)

    await _busy_then_silent(name, read, busy, work, server, backend)


@asynchronous
async def test_a_busy_task_is_no_silent_stream(name: str, server: Server, backend: Backend) -> None:
    """Nor is a reader that has a loop, which may be read in any other thread."""
    busy, work = asyncio.Event(), asyncio.Event()

    async def read(response: Any) -> None:
        async for _ in response.content if name == "aiohttp" else response.aiter_lines():
            busy.set()
            await work.wait()

    await _busy_then_silent(name, read, busy, work, server, backend)


async def _busy_then_silent(
    name: str, read: Way, busy: Any, work: Any, server: Server, backend: Backend
) -> None:
    with _instrumented(backend, segment_seconds=0.1, stall_seconds=0.1):
        task = asyncio.ensure_future(CLIENTS[name](read, server.url + "/endless"))
        await until(busy.is_set)
        for _ in range(10):
            await asyncio.sleep(0.03)
            assert backend.value("sse.client.stalled_connections") == 0
        assert backend.events("sse.connection.stalled") == backend.spans("SSE") == []
        work.set()
        await until(lambda: backend.metrics() and backend.events("sse.connection.stalled"))
        await server.stop(cut=True)
        with pytest.raises(Exception):  # noqa: B017, PT011
            await task
    await server.start()


class _Gate(SpanProcessor):
    """Holds up a span's end in any thread but the readers' own."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def on_end(self, span: ReadableSpan) -> None:
        if not threading.current_thread().name.startswith("asyncio"):
            self.reached.set()
            self.open.wait(20)


@synchronous
async def test_a_reader_waits_for_who_tells_its_silence(name: str, backend: Backend) -> None:
    """While another thread ends the segment of its silent stream, no message is told into it."""
    gate, go_on = _Gate(), asyncio.Event()
    backend.tracer_provider.add_span_processor(gate)

    async def answer(wire: Wire) -> None:
        await wire.head(CHUNKED)
        await wire.chunk(FIRST)
        await go_on.wait()
        await wire.chunk(FIRST)
        await wire.chunk(b"")

    with _instrumented(backend, segment_seconds=0.2):
        async with serving(answer) as server:
            read = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url))
            await until(lambda: backend.metrics() and gate.reached.is_set())
            go_on.set()
            await asyncio.sleep(0.2)
            assert backend.value("sse.client.messages") == 1
            gate.open.set()
            await read
    told = [span.attributes["sse.segment.messages"] for span in backend.spans("SSE")]
    assert len(told) > 1
    assert sum(told) == 2


@synchronous
async def test_threads_share_a_client(name: str, server: Server, told: Backend) -> None:
    """Each of many threads reads streams at the same time, while they are collected: every message
    counts once.
    """
    threads, each = 8, 6
    session = {"httpx": httpx.Client, "httpx2": httpx2.Client, "requests": requests.Session}[name]()

    def read() -> None:
        for _ in range(each):
            if name == "requests":
                assert session.get(server.url + "/all").content == STREAM
            else:
                assert session.get(server.url + "/all", timeout=60).content == STREAM

    with session, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        reads = [asyncio.wrap_future(pool.submit(read)) for _ in range(threads)]
        while not all(future.done() for future in reads):
            told.metrics()
            await asyncio.sleep(0.01)
        await asyncio.gather(*reads)
    base = ("GET", "127.0.0.1", server.port)
    count = threads * each
    assert table(told, "connections", "sse.resumed") == {(*base, False): count, (*base, True): 0}
    assert table(told, "io") == {base: count * len(STREAM)}
    assert table(told, "messages", "sse.event.type")[(*base, "tick")] == count * 2
    assert table(told, "connection.duration", "sse.close.reason") == {(*base, "completed"): count}
    assert table(told, "active_connections") == {base: 0}
    assert len(told.spans("SSE")) == count


async def test_a_stream_that_is_resumed(told: Backend) -> None:
    """aiohttp-sse-client2 connects again after an end, with the id of the last message."""

    async def answer(wire: Wire) -> None:
        last = int(wire.request.headers.get("last-event-id", 0))
        if last == 3:
            await wire.head("Content-Length: 0", status="204 No Content")
            return
        await wire.head(CHUNKED)
        await wire.chunk(b"id: %d\ndata: x\n\n" % (last + 1))
        await wire.chunk(b"")

    async with serving(answer) as server:
        with contextlib.suppress(ConnectionError):
            async with EventSource(
                server.url, reconnection_time=timedelta(milliseconds=5)
            ) as source:
                assert [event.last_event_id async for event in source] == ["1", "2", "3"]
        assert len(server.requests) == 4
        base = ("GET", "127.0.0.1", server.port)
    assert table(told, "connections", "sse.resumed") == {(*base, False): 1, (*base, True): 2}
    assert table(told, "reconnections") == {base: 2}
    assert table(told, "messages") == {base: 3}
    spans = told.spans("SSE")
    assert [span.attributes["sse.resumed"] for span in spans] == [False, True, True]
    assert {span.attributes["sse.close.reason"] for span in spans} == {"completed"}
    # Nothing of a message's id.
    assert "last_event_id" not in json.dumps([span.to_json() for span in spans])


# --- transports -----------------------------------------------------------------------------------


def _mock(package: Any, pieces: list[bytes]) -> Any:
    """A transport that answers with these pieces of an event stream."""
    headers = {"Content-Type": "text/event-stream"}
    return package.MockTransport(
        lambda _: package.Response(200, headers=headers, content=iter(pieces))
    )


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_a_response_that_is_made_up_passes(package: Any, told: Backend) -> None:
    """What a mock gives is no stream that is read: it goes through as it is."""

    def answer(request: Any) -> Any:
        return package.Response(200, headers={"Content-Type": "text/event-stream"}, content=FIRST)

    with package.Client(transport=package.MockTransport(answer)) as client:
        assert client.get("http://mock/").content == FIRST
        with client.stream("GET", "http://mock/") as response:
            assert [*response.iter_lines()] == ["data: 1", ""]
    assert told.spans("SSE") == []
    assert told.value("sse.client.active_connections") == 0


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_a_mock_that_streams_is_told(package: Any, told: Backend) -> None:
    """Also where its response is of a class of its own."""

    class Response(package.Response):
        pass

    def answer(request: Any) -> Any:
        headers = {"Content-Type": "text/event-stream"}
        return Response(200, headers=headers, content=iter([FIRST, FIRST]))

    with package.Client(transport=package.MockTransport(answer)) as client:
        assert client.get("http://mock/").content == FIRST * 2
    (span,) = told.spans("SSE")
    assert span.attributes["sse.messages"] == 2
    assert span.attributes["sse.close.reason"] == "completed"


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_a_comment_that_is_cut_where_marks_are_given_up_is_counted(
    package: Any, told: Backend
) -> None:
    """Its first byte might have been a mark's, until a message had come without one."""
    pieces = [FIRST + b":", b" ping\n\n", FIRST]

    with package.Client(transport=_mock(package, pieces)) as client:
        assert client.get("http://mock/").content == b"".join(pieces)
    assert told.value("sse.client.messages") == 2
    assert told.value("sse.client.comments") == 1
    assert told.value("sse.client.io") == len(b"".join(pieces))


@pytest.mark.parametrize("package", [httpx, httpx2])
async def test_an_application_without_a_server(package: Any, told: Backend) -> None:
    """ASGITransport calls the application; its response is told as any other."""
    app = Fed()
    app.end(FIRST, FIRST, None)
    transport = package.ASGITransport(app=app)
    async with package.AsyncClient(transport=transport, base_url="http://app") as client:
        assert (await client.get("/")).content == FIRST * 2
    (span,) = told.spans("SSE")
    assert span.attributes["sse.messages"] == 2
    assert span.attributes["sse.close.reason"] == "completed"


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_an_application_without_a_server_has_calls_of_its_own(package: Any, told: Backend) -> None:
    """What it reads while it answers is another stream, not the one that it answers with."""
    upstream = _mock(package, [FIRST, FIRST])

    def app(environ: Any, start_response: Any) -> list[bytes]:
        with package.Client(transport=upstream) as client:
            body = client.get("http://upstream/").content
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return [body]

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        body = b"".join(app({}, lambda *_: None))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def ask() -> None:
        async with package.AsyncClient(transport=package.ASGITransport(app=asgi)) as client:
            assert (await client.get("http://app/")).content == FIRST * 2

    with package.Client(transport=package.WSGITransport(app=app)) as client:
        assert client.get("http://app/").content == FIRST * 2
    hosts = [span.attributes["server.address"] for span in told.spans("SSE")]
    assert hosts == ["upstream", "app"]
    asyncio.run(ask())
    hosts = [span.attributes["server.address"] for span in told.spans("SSE")]
    assert hosts == ["upstream", "app", "upstream"]
    assert told.value("sse.client.messages") == 6


async def test_a_stream_that_is_passed_on_keeps_its_place(backend: Backend) -> None:
    """What a server reads to serve it stays below the segment that it began in, though the server's
    own stream is told in a later one by then.
    """

    async def answer(_: Any) -> Any:
        headers = {"Content-Type": "text/event-stream"}
        return httpx.Response(200, headers=headers, content=_passing())

    async def _passing() -> AsyncIterator[bytes]:
        for _ in range(41):
            yield FIRST

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for _ in range(20):
            await send({"type": "http.response.body", "body": FIRST, "more_body": True})
        async with (
            httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client,
            client.stream("GET", "http://mock/") as response,
        ):
            async for chunk in response.aiter_bytes():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    with _instrumented(backend, message_event_detail="all"):
        served = SSEMiddleware(app, **backend.providers, message_event_detail="all")
        await Stream(served).task
    server, *_ = [span for span in backend.spans() if span.name == "SSE"]
    first, second = backend.spans("SSE GET")
    assert server.attributes["sse.segment.index"] == 0
    assert first.parent == second.parent == server.context


def test_an_interrupt_is_the_readers_own(told: Backend) -> None:
    """Who only reads may take it for anything, such as the end of one answer of many: its handler
    stays as it is, and every stream is told on.
    """
    own: Any = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGINT, own)
    try:
        with (
            httpx.Client(transport=_mock(httpx, [FIRST])) as session,
            session.stream("GET", "http://mock/"),
        ):
            assert told.value("sse.client.active_connections") == 1
            assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("package", [httpx, httpx2])
async def test_a_client_in_a_client_is_told_once(
    package: Any, server: Server, told: Backend
) -> None:
    """A transport that asks by another client that is watched: one stream, not two."""

    class Inner(package.AsyncBaseTransport):  # type: ignore[misc]
        def __init__(self, session: Any) -> None:
            self.session = session

        async def handle_async_request(self, request: Any) -> Any:
            response = await self.session.get(str(request.url))
            body = _Body(response, package)
            return package.Response(response.status, headers=response.headers, stream=body)

    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        package.AsyncClient(transport=Inner(session)) as client,
    ):
        assert (await client.get(server.url + "/gzip")).content == STREAM
        # Outside of such a call the inner one tells.
        async with session.get(server.url + "/endless") as response:
            assert await response.content.readany() == FIRST
    await until(lambda: len(told.spans("SSE")) == 2)
    assert [span.attributes["sse.io"] for span in told.spans("SSE")] == [len(STREAM), len(FIRST)]


def _Body(response: Any, package: Any) -> Any:
    class Body(package.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in response.content.iter_any():
                yield chunk

        async def aclose(self) -> None:
            response.release()

    return Body()


# --- on and off ---------------------------------------------------------------------------------


def test_uninstrument_restores_everything(backend: Backend) -> None:
    """Every patched class is what it was."""

    def classes() -> list[dict[str, Any]]:
        import httpx._client
        import httpx2._client

        kinds: list[Any] = [
            *(aiohttp.ClientSession, aiohttp.ClientResponse, aiohttp.StreamReader),
            *(requests.Response, requests.Session, requests.adapters.HTTPAdapter),
            *(
                getattr(module, kind)
                for module in (httpx._client, httpx2._client)
                for kind in ("Client", "AsyncClient", "BoundSyncStream", "BoundAsyncStream")
            ),
        ]
        return [dict(vars(kind)) for kind in kinds]

    before = classes()
    with _instrumented(backend):
        assert classes() != before
    assert classes() == before


@client
async def test_what_is_live_is_told_to_its_end(name: str, server: Server, backend: Backend) -> None:
    """Also after the instrumentation has been switched off."""
    with _instrumented(backend):
        task = asyncio.ensure_future(CLIENTS[name](USUAL[name], server.url + "/endless"))
        await until(lambda: backend.value("sse.client.messages") == 1)
    assert backend.value("sse.client.active_connections") == 1
    await server.stop(cut=True)
    with pytest.raises(Exception):  # noqa: B017, PT011
        await task
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == "disconnected"
    await server.start()


@client
async def test_an_excluded_url_is_not_told(name: str, server: Server, backend: Backend) -> None:
    """By scheme, host and path."""
    with _instrumented(backend, excluded_urls="127.0.0.1/al"):
        await CLIENTS[name](USUAL[name], server.url + "/all")
    assert backend.spans("SSE") == []
