"""The public API as an application with strict types uses it; test_typing.py checks this file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from fastapi import FastAPI
from flask import Flask
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import assert_type

import otel_sse
from otel_sse import (
    ConnectionInfo,
    Current,
    SSEMiddleware,
    SSEWSGIMiddleware,
    connections,
    current,
)
from otel_sse.frameworks import (
    SSEAiohttpClientInstrumentor,
    SSEAiohttpServerInstrumentor,
    SSEHttpxInstrumentor,
    SSERequestsInstrumentor,
    SSEStarletteInstrumentor,
    SSEUrllib3Instrumentor,
    SSEWSGIServerInstrumentor,
)

if TYPE_CHECKING:
    # wsgiref.types has them from Python 3.11 on.
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


async def prices() -> AsyncIterator[str]:
    stream = current()
    assert_type(stream, Current)
    assert_type(stream.record_dropped(2, reason="slow_client"), None)
    yield "data: 100\n\n"
    stream.set_close_reason("timeout")


async def ticker(request: Request) -> StreamingResponse:
    return StreamingResponse(prices(), media_type="text/event-stream")


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    return [b"data: 1\n\n"]


def oldest() -> tuple[str, str | None, float, int, int | None] | None:
    live = connections()
    assert_type(live, list[ConnectionInfo])
    if not live:
        return None
    first = live[0]
    return (
        first.id,
        first.route,
        first.age + first.idle,
        first.messages + first.bytes,
        first.backlog,
    )


traces, meters, logs = TracerProvider(), MeterProvider(), LoggerProvider()
routes = [Route("/ticker", ticker)]

wrapped: ASGIApp = SSEMiddleware(plain)
configured: ASGIApp = SSEMiddleware(
    Starlette(routes=routes),
    tracer_provider=traces,
    meter_provider=meters,
    logger_provider=logs,
    stall_seconds=30,
)

added = Starlette(middleware=[Middleware(SSEMiddleware, event_types=["price", "news"])])
added.add_middleware(SSEMiddleware, tracer_provider=traces, stall_seconds=None)
FastAPI().add_middleware(SSEMiddleware)

served: WSGIApplication = SSEWSGIMiddleware(page, tracer_provider=traces, stall_seconds=30)
flask = Flask(__name__)
below: WSGIApplication = SSEWSGIMiddleware(flask.wsgi_app)

for instrumentor in (
    SSEStarletteInstrumentor(),
    SSEAiohttpServerInstrumentor(),
    SSEWSGIServerInstrumentor(),
    SSEHttpxInstrumentor(),
    SSEAiohttpClientInstrumentor(),
    SSERequestsInstrumentor(),
    SSEUrllib3Instrumentor(),
):
    instrumentor.instrument(tracer_provider=traces, capture_event_id=True)
    instrumentor.uninstrument()

assert_type(otel_sse.__version__, str)
