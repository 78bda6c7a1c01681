"""Odd messages and writes: servers get the same objects and raise the same errors."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import pytest
from aiohttp import web
from helpers.aiohttp_apps import aiohttp_app
from helpers.asgi import START
from helpers.asgi_messages import END, MESSAGE, SENDINGS, WIDE, body
from helpers.backend import Backend
from helpers.raw_client import RawClient
from helpers.servers import serve_aiohttp, serve_asgi
from helpers.waiting import until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from otel_sse import SSEMiddleware


@contextlib.asynccontextmanager
async def serve_hypercorn(app: Any) -> AsyncIterator[int]:
    """Runs an ASGI application under Hypercorn in this loop; yields its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = hypercorn.config.Config()
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
        config.errorlog = config.accesslog = None
        config.graceful_timeout = 1
        stop = asyncio.Event()
        task = asyncio.create_task(
            hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait, mode="asgi")  # type: ignore[arg-type]
        )
        try:
            yield int(listener.getsockname()[1])
        finally:
            stop.set()
            await task


SERVERS: dict[str, Callable[[Any], Any]] = {
    "uvicorn-h11": lambda app: serve_asgi(app, http="h11", date_header=False),
    "uvicorn-httptools": lambda app: serve_asgi(app, http="httptools", date_header=False),
    "hypercorn": serve_hypercorn,
}


class Sender:
    """Sends the messages that the path names, and keeps what that raised."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        name = scope["path"][1:]
        seen = self.seen[name] = []
        for message in SENDINGS[name]:
            try:
                await send(message)
            except BaseException as error:
                seen.append(repr(error))
                raise
            seen.append("taken")


async def _answers(serve: Callable[[Any], Any], app: Any) -> dict[str, bytes]:
    """The raw response to each name of ``SENDINGS``."""
    found = {}
    async with serve(app) as port:
        for name in SENDINGS:
            path = "/" + name.replace(" ", "%20")
            client = await RawClient.get(port, path, "Connection: close")
            raw = await asyncio.wait_for(client.reader.read(-1), 60)
            lines = raw.split(b"\r\n")
            found[name] = b"\r\n".join(x for x in lines if not x.lower().startswith(b"date:"))
            await client.close()
    return found


@pytest.mark.parametrize("server", SERVERS)
async def test_what_a_server_makes_of_odd_messages_stays_the_same(server: str) -> None:
    """Each response has the same bytes and the application gets the server's own error, as if
    nothing were instrumented; what went out is reported, with one close.
    """
    plain, observed = Sender(), Sender()
    backends = {name: Backend() for name in SENDINGS}
    watched = {name: SSEMiddleware(observed, **each.providers) for name, each in backends.items()}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await watched[scope["path"][1:]](scope, receive, send)

    answers = await _answers(SERVERS[server], plain)
    assert await _answers(SERVERS[server], app) == answers
    assert observed.seen == plain.seen
    assert {"taken"} < {each for seen in plain.seen.values() for each in seen}

    for name, backend in backends.items():
        seen = plain.seen[name]
        sent = [
            bytes(message["body"])
            for message, result in zip(SENDINGS[name], seen, strict=False)
            if isinstance(message, dict)
            and isinstance(message.get("body"), (bytes, bytearray, memoryview))
            and result == "taken"
        ]
        began = name != "headers of str" and seen[0] == "taken" and len(seen) > 1
        assert backend.value("sse.server.connections") == began, name
        assert backend.value("sse.server.active_connections") == 0, name
        assert backend.value("sse.server.connection.duration") == began, name
        if began:
            assert backend.value("sse.server.io") == len(b"".join(sent)), name
            assert backend.value("sse.server.messages") == b"".join(sent).count(b"\n\n"), name
            (span,) = backend.spans("SSE")
            ended = END in SENDINGS[name] and len(seen) > SENDINGS[name].index(END)
            ended = ended and seen[SENDINGS[name].index(END)] == "taken"
            # An error that follows the end of the body is the reason, too.
            failed = seen[-1] != "taken"
            reason = "error" if failed else "completed" if ended else "unknown"
            found = span.attributes["sse.close.reason"]
            # The server may have closed the connection for it before the application returned.
            after_the_end = ended and failed and found == "completed"
            closed = (reason, found) == ("unknown", "client_disconnect")
            assert found == reason or closed or after_the_end, name
            failed = failed and not after_the_end
            error = span.attributes.get("error.type", "").rpartition(".")[2]
            assert error == (seen[-1].partition("(")[0] if failed else ""), name


async def test_messages_that_are_none_pass_after_a_disconnect(backend: Backend) -> None:
    """After a disconnect uvicorn looks at no message; nothing around it may raise either."""
    results: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(MESSAGE)
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        for message in (None, {}, 7, [], body(None), {"type": 3}, MESSAGE):
            await send(message)
            results.append(message)

    async with serve_asgi(SSEMiddleware(app, **backend.providers)) as port:
        client = await RawClient.get(port, "/")
        await client.until(b"data: 1")
        await client.close()
        await until(lambda: backend.spans("SSE"))
    assert len(results) == 7
    assert backend.spans("SSE")[0].attributes["sse.close.reason"] == "client_disconnect"
    assert backend.value("sse.server.messages") == 1


# What an application writes, and the bytes of it that are the stream's (None: not to be taken).
WRITES: dict[str, tuple[Any, bytes | None]] = {
    "str": ("data: x\n\n", None),
    "bytearray": (bytearray(b"data: x\n\n"), b"data: x\n\n"),
    "memoryview": (memoryview(b"data: x\n\n"), b"data: x\n\n"),
    "wide": (WIDE, b"data: xy\n\n"),
    "empty": (b"", b""),
    "number": (5, None),
    "none": (None, None),
}


async def _both(
    serve: Callable[[], Any], path: str, errors: list[str], instrument: Callable[..., None]
) -> tuple[bytes, list[str]]:
    """Asks the server plain and instrumented; gives what was the same both times."""
    outcomes = []
    for prepare in (None, instrument):
        if prepare is not None:
            prepare()
        errors.clear()
        async with serve() as port:
            client = await RawClient.get(port, path, "Connection: close")
            raw = await asyncio.wait_for(client.reader.read(-1), 60)
            await client.close()
        head, _, stream = raw.partition(b"\r\n\r\n")
        outcomes.append((head.partition(b"\r\n")[0], stream, list(errors)))
    assert outcomes[0] == outcomes[1]
    return outcomes[0][1], outcomes[0][2]


@pytest.mark.parametrize("length", [None, 4, 14])
@pytest.mark.parametrize("kind", WRITES)
async def test_aiohttp_writes_of_any_kind(
    kind: str, length: int | None, backend: Backend, instrument: Callable[..., None]
) -> None:
    """The framework's own error reaches the handler, and what it cuts at a false length does
    not count.
    """
    written, counted = WRITES[kind]
    errors: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.content_length = length
        await response.prepare(request)
        for data in (written, b"data: z\n\n"):
            try:
                await response.write(data)
            except Exception as error:
                errors.append(repr(error))
        return response

    def serve() -> Any:
        return serve_aiohttp(aiohttp_app("/events", handler))

    _, raised = await _both(serve, "/events", errors, instrument)
    assert bool(raised) is (counted is None)
    await until(lambda: backend.spans("SSE"))
    stream = ((counted or b"") + b"data: z\n\n")[:length]
    assert backend.value("sse.server.io") == len(stream)
    assert backend.value("sse.server.messages") == stream.count(b"\n\n")
    assert backend.spans("SSE")[0].attributes["sse.close.reason"] == "completed"


@pytest.mark.parametrize("kind", WRITES)
async def test_starlette_chunks_of_any_kind(
    kind: str, backend: Backend, instrument: Callable[..., None]
) -> None:
    """A generator of ``str`` is Starlette's to encode; what it cannot send raises as ever."""
    written, _ = WRITES[kind]
    errors: list[str] = []

    async def chunks() -> AsyncIterator[Any]:
        yield written
        yield "data: z\n\n"

    async def endpoint(request: Request) -> StreamingResponse:
        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await Starlette(routes=[Route("/events", endpoint)])(scope, receive, send)
        except BaseException as error:
            errors.append(repr(error))
            raise

    raw, raised = await _both(lambda: serve_asgi(app), "/events", errors, instrument)
    assert bool(raised) is (kind in ("bytearray", "number", "none"))
    await until(lambda: backend.spans("SSE"))
    (span,) = backend.spans("SSE")
    assert span.attributes["sse.close.reason"] == ("error" if raised else "completed")
    if raised:
        assert span.attributes["error.type"] == raised[0].partition("(")[0]
        assert span.attributes["sse.io"] == 0
    elif kind != "wide":  # whose chunk's length uvicorn gets wrong on its own
        assert backend.value("sse.server.messages") == raw.count(b"\n\n")
