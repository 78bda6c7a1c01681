"""OpenTelemetry instrumentation for Server-Sent Events."""

from otel_sse.asgi import SSEMiddleware
from otel_sse.current import Current, current
from otel_sse.lifecycle import ConnectionInfo, connections
from otel_sse.version import __version__

__all__ = [
    "ConnectionInfo",
    "Current",
    "SSEMiddleware",
    "__version__",
    "connections",
    "current",
]
