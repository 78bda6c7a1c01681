"""niquests, whose own urllib3 takes the place of the usual one, and requests above it."""

import asyncio
import contextlib
import json
import os
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from applications.runs import run_script
from helpers import oracle
from helpers.certificates import self_signed
from helpers.client_streams import FIRST, ServerSide, answer_by_path, compress, serving
from helpers.otlp import Receiver
from helpers.streams import PIECES, STREAM
from hypercorn.asyncio import serve
from hypercorn.config import Config

pytestmark = pytest.mark.applications

client = pytest.mark.parametrize("script", ["niquests_client.py", "niquests_async_client.py"])


# Of a body that is cut short, what waits to make a chunk of the wanted size is not given.
_WITHHELD = {
    "niquests_client.py": {
        *("/content/cut", "/content/short"),
        *("/multiplexed/cut", "/multiplexed/short"),
    },
    "niquests_async_client.py": {
        *("/content/cut", "/content/short", "/iter_content/cut", "/iter_content/short"),
        *("/streamed_content/cut", "/streamed_content/short"),
    },
}


class _Run(NamedTuple):
    """What the client printed, the paths that it asked for, and the spans by path."""

    found: dict[str, Any]
    paths: Counter[str]
    spans: dict[str, list[Any]]


async def _run(script: str, *args: str, instrumented: bool, receiver: Receiver) -> Any:
    output, errors = await run_script(
        "niquests", script, *args, instrumented=instrumented, receiver=receiver
    )
    assert not errors, errors
    return json.loads(output)


def _spans(receiver: Receiver) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for span in receiver.spans("SSE"):
        found.setdefault(span.attributes["url.path"], []).append(span)
    return found


async def _kept(wire: ServerSide) -> None:
    """Answers each request of one connection."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            length = f"Content-Length: {len(STREAM)}"
            head = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", length, "", ""]
            await wire.send("\r\n".join(head).encode() + STREAM)
            await wire.reader.readuntil(b"\r\n\r\n")


async def _answer(wire: ServerSide) -> None:
    _, way, name = wire.request.path.split("/")
    if name == "kept":
        await _kept(wire)
    elif name == "redirect":
        location = f"Location: /{way}/redirected"
        await wire.head(location, "Content-Length: 0", status="302 Found")
    elif name == "missing":
        await wire.head("Content-Length: 0", status="404 Not Found", kind="plain")
    else:
        name = "all" if name == "redirected" else name
        await answer_by_path(wire._replace(request=wire.request._replace(path=f"/{name}")))


async def _read(script: str, *, instrumented: bool) -> _Run:
    with Receiver() as receiver:
        async with serving(_answer) as server:
            found = await _run(script, server.url, instrumented=instrumented, receiver=receiver)
            paths = Counter(each.path for each in server.requests)
        # Errors name the server's port.
        named = {path: re.sub(r"port=\d+", "", str(value)) for path, value in found.items()}
        return _Run(named, paths, _spans(receiver))


def _end(script: str, path: str) -> tuple[bytes | int, str, str | None] | None:
    """What is recorded: the bytes, or the number of encoded ones, the close reason, and the error
    type; None where that is nothing.
    """
    _, way, answer = path.split("/")
    raw = way == "iter_raw"
    if answer in ("html", "redirect"):
        return None
    if answer in ("gzip", "deflate", "br") and raw:
        return len(compress(answer, STREAM)), "completed", None
    if answer == "not-gzip":
        if raw:
            return len(b"this is no gzip"), "completed", None
        return b"", "error", "urllib3.exceptions.DecodeError"
    if answer == "empty":
        return b"", "completed", None
    if answer == "broken":
        return FIRST, "completed", "503"
    if answer == "endless":
        if way == "timed_out":
            return FIRST, "timeout", "urllib3.exceptions.ReadTimeoutError"
        return b"" if way == "unread" else FIRST, "client_close", None
    if answer in ("cut", "short"):
        return b"" if path in _WITHHELD[script] else FIRST, "disconnected", None
    return STREAM, "completed", None


def _recorded(span: Any) -> tuple[Any, ...]:
    names = ("messages", "comments", "io", "close.reason")
    attributes = span.attributes
    return (*(attributes[f"sse.{name}"] for name in names), attributes.get("error.type"))


def _values(data: bytes | int, reason: str, error_type: str | None) -> tuple[Any, ...]:
    """As ``_recorded`` has them."""
    messages, comments = oracle.read(data if isinstance(data, bytes) else b"")
    size = len(data) if isinstance(data, bytes) else data
    return len(messages), comments, size, reason, error_type


@client
async def test_each_stream_is_recorded_once(script: str) -> None:
    """However it is read and ends, with every message and byte; readers get what they get without,
    errors too, and connections are kept and closed as without.
    """
    plain = await _read(script, instrumented=False)
    run = await _read(script, instrumented=True)
    assert run.found == plain.found
    assert run.paths == plain.paths
    assert run.paths["/twice/kept"] == 1
    assert not plain.spans
    expected = {}
    for path in run.paths:
        if (end := _end(script, path)) is not None:
            expected[path] = [_values(*end)] * (2 if path == "/twice/kept" else 1)
    recorded = {path: [_recorded(each) for each in spans] for path, spans in run.spans.items()}
    assert recorded == expected
    # Each ended at once, not with the process.
    last = run.spans["/twice/kept"][-1]
    assert {path for path, spans in run.spans.items() if spans[0].end > last.end} == set()


async def _http2(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise NotImplementedError
    assert scope["http_version"] == "2"
    kind, _, path = scope["path"].rpartition("/")
    headers = [(b"content-type", b"text/event-stream")]
    if kind == "/redirect":
        headers.append((b"location", f"/{path}".encode()))
    start = {"type": "http.response.start", "status": 302 if kind == "/redirect" else 200}
    await send({**start, "headers": headers})
    pieces = {"/redirect": (), "/endless": PIECES[:1]}.get(kind, PIECES)
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    if kind == "/endless":
        while (await receive())["type"] != "http.disconnect":
            pass
    await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def _serving_http2(certificate: Path) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = Config()
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
        config.certfile = config.keyfile = str(certificate)
        config.alpn_protocols = ["h2"]
        config.errorlog = None
        config.graceful_timeout = 1
        stop = asyncio.Event()
        served = asyncio.ensure_future(
            serve(_http2, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
        )
        try:
            yield f"https://localhost:{listener.getsockname()[1]}"
        finally:
            stop.set()
            await asyncio.wait_for(served, 60)


async def test_what_http2_promises_is_recorded_once(tmp_path: Path) -> None:
    """A multiplexed response comes later than its call, also behind a redirect, and urllib3-future
    may read it itself.
    """
    certificate = self_signed(tmp_path)
    with Receiver() as receiver:
        async with _serving_http2(certificate) as url:
            args = ("niquests_http2_client.py", url, str(certificate))
            plain = await _run(*args, instrumented=False, receiver=receiver)
            found = await _run(*args, instrumented=True, receiver=receiver)
        spans = _spans(receiver)
    assert found == plain
    assert len(found) == 19
    recorded = {
        path: [_recorded(each) for each in each_spans] for path, each_spans in spans.items()
    }
    whole = [_values(STREAM, "completed", None)]
    left = [_values(PIECES[0], "client_close", None)]
    assert recorded == {path: left if "/endless/" in path else whole for path in found}
    for (span,) in spans.values():
        assert span.attributes["network.protocol.version"] == "2"
        assert span.attributes["server.address"] == "localhost"


async def test_the_rest_is_as_without() -> None:
    """Refusals count, other responses are as they were, and nothing is left of what was patched."""
    with Receiver() as receiver:
        async with serving(_answer) as server:
            script = "niquests_unmodified.py"
            await _run(script, server.url, instrumented=False, receiver=receiver)
