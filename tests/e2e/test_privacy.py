"""What a request, a stream or an application holds in secret is in nothing that is exported."""

import asyncio
import gzip
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from helpers.aiohttp_apps import write_stream
from helpers.asgi import SSE
from helpers.backend import exporting
from helpers.otlp import Receiver
from helpers.servers import serve_aiohttp, serve_asgi
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Mount, Route

from otel_sse import SSEMiddleware
from otel_sse.frameworks import SSEAiohttpServerInstrumentor, SSEStarletteInstrumentor
from otel_sse.instrumentor import SSEInstrumentor

# Every place that a secret hides in; the secret itself is made of the name.
PLACES = (
    *("query", "cookie", "authorization", "api_key", "last_event_id", "referer", "origin"),
    *("forwarded_for", "forwarded", "host", "baggage", "request_body", "path"),
    *("response_header", "set_cookie"),
    *(
        "data",
        "event_id",
        "comment",
        "retry",
        "unknown_field",
        "late_type",
        "long_type",
        "open_line",
    ),
    *("exception", "cause", "variable"),
)
SECRETS = {place: f"zq{number:02}{place.replace('_', '')}qz" for number, place in enumerate(PLACES)}
AGENT = "recorded-agent/1.0"


class Leaked(Exception):
    """An error of the application's with a secret in it."""


def stream() -> Iterator[bytes]:
    """A stream with secrets wherever an application may put one, which breaks in the end."""
    variable = SECRETS["variable"]
    # Only the first sixteen event types are recorded, and none that is longer than 64 bytes.
    yield f"event: {SECRETS['long_type']}{'x' * 60}\ndata: x\n\n".encode()
    for number in range(16):
        yield b"event: type-%d\ndata: x\n\n" % number
    yield f"event: {SECRETS['late_type']}\ndata: x\n\n".encode()
    yield f": {SECRETS['comment']}\n\n".encode()
    yield f"id: {SECRETS['event_id']}\ndata: {SECRETS['data']}\n\n".encode()
    yield f"retry: {SECRETS['retry']}\n{SECRETS['unknown_field']}: 1\ndata: x\n\n".encode()
    yield f"data: {SECRETS['open_line']}".encode()
    try:
        int(SECRETS["cause"])
    except ValueError as error:
        assert variable
        raise Leaked(SECRETS["exception"]) from error


RESPONSE_HEADERS = {
    "X-Token": SECRETS["response_header"],
    "Set-Cookie": f"session={SECRETS['set_cookie']}",
}


async def starlette_endpoint(request: Request) -> StreamingResponse:
    await request.body()
    return StreamingResponse(stream(), media_type="text/event-stream", headers=RESPONSE_HEADERS)


async def raw_app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    headers = [(name.lower().encode(), value.encode()) for name, value in RESPONSE_HEADERS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": [*SSE, *headers]})
    for chunk in stream():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def aiohttp_handler(request: web.Request) -> web.StreamResponse:
    await request.read()
    return await write_stream(request, stream(), **RESPONSE_HEADERS)


@web.middleware
async def aiohttp_catch_all(request: web.Request, handler: Any) -> web.StreamResponse:
    return await aiohttp_handler(request)


def serve_untrusting(app: Any) -> Any:
    """Under uvicorn, which by default believes the forwarding headers of local clients."""
    return serve_asgi(app, proxy_headers=False)


def serve_starlette(providers: dict[str, Any]) -> Any:
    app = Starlette(routes=[Route("/events/{room}", starlette_endpoint, methods=["POST"])])
    return serve_untrusting(app)


def serve_starlette_unmatched(providers: dict[str, Any]) -> Any:
    app = Starlette()
    app.router.default = raw_app
    return serve_untrusting(app)


def serve_starlette_mounted(providers: dict[str, Any]) -> Any:
    return serve_untrusting(Starlette(routes=[Mount("/events", raw_app)]))


def serve_middleware(providers: dict[str, Any]) -> Any:
    return serve_untrusting(SSEMiddleware(raw_app, **providers))


def serve_aiohttp_matched(providers: dict[str, Any]) -> Any:
    app = web.Application()
    app.router.add_post("/events/{room}", aiohttp_handler)
    return serve_aiohttp(app)


def serve_aiohttp_unmatched(providers: dict[str, Any]) -> Any:
    return serve_aiohttp(web.Application(middlewares=[aiohttp_catch_all]))


# How the application is served, the route that is recorded, and whether the path is. A path that
# no route matches to its end may hold anything.
APPLICATIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str | None, bool]] = {
    "starlette": (serve_starlette, "/events/{room}", True),
    "starlette-unmatched": (serve_starlette_unmatched, None, False),
    "starlette-mounted": (serve_starlette_mounted, "/events", False),
    "middleware": (serve_middleware, None, False),
    "aiohttp": (serve_aiohttp_matched, "/events/{room}", True),
    "aiohttp-unmatched": (serve_aiohttp_unmatched, None, False),
}


class Tap(Receiver):
    """A receiver that keeps what came to it, byte by byte."""

    def __init__(self) -> None:
        super().__init__()
        self.raw: dict[str, bytes] = {}

    def take(self, path: str, headers: Any, body: bytes) -> bytes:
        encoded = headers.get("Content-Encoding") == "gzip"
        self.raw[path] = self.raw.get(path, b"") + (gzip.decompress(body) if encoded else body)
        return super().take(path, headers, body)


async def ask(port: int, path: str) -> bytes:
    """A request with a secret in each of its places; gives all of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    secret = SECRETS.__getitem__
    body = f"token={secret('request_body')}"
    lines = [
        f"POST {path}?token={secret('query')} HTTP/1.1",
        f"Host: {secret('host')}.example",
        "Connection: close",
        f"User-Agent: {AGENT}",
        f"Cookie: session={secret('cookie')}",
        f"Authorization: Bearer {secret('authorization')}",
        f"X-Api-Key: {secret('api_key')}",
        f"Last-Event-ID: {secret('last_event_id')}",
        f"Referer: https://example/?token={secret('referer')}",
        f"Origin: https://{secret('origin')}",
        f"X-Forwarded-For: {secret('forwarded_for')}",
        f"Forwarded: for={secret('forwarded')}",
        f"baggage: token={secret('baggage')}",
        "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(body)}",
    ]
    writer.write("\r\n".join([*lines, "", body]).encode())
    try:
        return await asyncio.wait_for(reader.read(-1), 60)
    finally:
        writer.close()


@pytest.mark.parametrize("application", APPLICATIONS)
async def test_no_secret_is_exported(application: str) -> None:
    """By default none of the places where a secret hides is in the exported bytes of any signal,
    while the stream itself reaches its client with all that it holds.
    """
    serve, route, has_path = APPLICATIONS[application]
    path = "/events/room-7" if has_path else f"/events/{SECRETS['path']}"
    used: list[SSEInstrumentor] = []
    with Tap() as receiver:
        with exporting(receiver) as providers:
            try:
                if application != "middleware":
                    for kind in (SSEStarletteInstrumentor, SSEAiohttpServerInstrumentor):
                        kind().instrument(**providers)
                        used.append(kind())
                async with serve(providers) as port:
                    answer = await ask(port, path)
                # Once nothing is instrumented, the counters report nothing more.
                await asyncio.to_thread(providers["meter_provider"].force_flush)
            finally:
                for instrumentor in used:
                    instrumentor.uninstrument()

        for place in ("data", "event_id", "comment", "late_type", "open_line", "set_cookie"):
            assert SECRETS[place].encode() in answer, place
        # The stream is reported, with all that the conventions list ...
        (span,) = receiver.spans("SSE")
        assert span.attributes.get("http.route") == route
        assert span.attributes.get("url.path") == (path if has_path else None)
        assert span.attributes["user_agent.original"] == AGENT
        assert span.attributes["client.address"] == "127.0.0.1"
        assert span.attributes["sse.close.reason"] == "error"
        assert span.attributes["error.type"] == f"{__name__}.Leaked"
        assert span.attributes["sse.messages"] == 20
        assert span.attributes["sse.comments"] == 1
        assert {event.name for event in span.events} == {"sse.message"}
        assert len(receiver.records("sse.connection.")) == 2
        for name in (b"sse.server.connections", b"sse.server.messages", b"sse.server.message.size"):
            assert name in receiver.raw["/v1/metrics"]
        # ... and nothing else.
        assert set(receiver.raw) == {"/v1/traces", "/v1/metrics", "/v1/logs"}
        for signal, raw in receiver.raw.items():
            assert b"sse." in raw
            assert [place for place, secret in SECRETS.items() if secret.encode() in raw] == [], (
                signal
            )
