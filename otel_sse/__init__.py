"""OpenTelemetry instrumentation for Server-Sent Events."""

from otel_sse.servers.asgi import SSEMiddleware
from otel_sse.servers.wsgi import SSEWSGIMiddleware
from otel_sse.stream.connections import ConnectionInfo, connections
from otel_sse.stream.current import Current, current
from otel_sse.version import __version__

__all__ = [
    "ConnectionInfo",
    "Current",
    "SSEMiddleware",
    "SSEWSGIMiddleware",
    "__version__",
    "connections",
    "current",
]
