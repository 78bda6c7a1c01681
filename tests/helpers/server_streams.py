"""Streams that are served without a server, one chunk after the other."""

from typing import Any

from opentelemetry.context import Context

from helpers.backend import Backend
from otel_sse.config import load
from otel_sse.servers.asgi_observer import _getter
from otel_sse.stream import sharing
from otel_sse.stream.info import ServerStreamInfo
from otel_sse.stream.request import Request
from otel_sse.stream.server import ServerStream
from otel_sse.telemetry.providers import Providers
from otel_sse.telemetry.telemetry import Telemetry

INFO = ServerStreamInfo(
    *("GET", "/x", "http", "/x", "127.0.0.1", None, "1.1", 200, False, [], _getter, None)
)
TICK = b"event: tick\ndata: x\n\n"


def obtain(backend: Backend, user: object, **options: Any) -> Telemetry:
    """The telemetry of ``backend``, until ``user`` releases it."""
    providers = Providers(*backend.providers.values())
    return sharing.acquire_telemetry(user, providers, load(options))


def opened(telemetry: Telemetry) -> ServerStream:
    """A stream that nothing has been sent on yet."""
    request = Request().state
    request.context = Context()
    stream = sharing.open_server_stream(telemetry, INFO, request)
    assert stream is not None
    return stream
