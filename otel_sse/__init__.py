"""OpenTelemetry instrumentation for Server-Sent Events."""

import importlib
import typing

from otel_sse.version import __version__

if typing.TYPE_CHECKING:
    from otel_sse.servers.asgi import SSEMiddleware
    from otel_sse.servers.wsgi import SSEWSGIMiddleware
    from otel_sse.stream.connections import ConnectionInfo, connections
    from otel_sse.stream.current import Current, current

__all__ = [
    "ConnectionInfo",
    "Current",
    "SSEMiddleware",
    "SSEWSGIMiddleware",
    "__version__",
    "connections",
    "current",
]

# Imported when they are first asked for (PEP 562): the loader of opentelemetry-instrument imports
# this package in every process, also where nothing is instrumented.
_HOMES: typing.Final = {
    "ConnectionInfo": "otel_sse.stream.connections",
    "Current": "otel_sse.stream.current",
    "SSEMiddleware": "otel_sse.servers.asgi",
    "SSEWSGIMiddleware": "otel_sse.servers.wsgi",
    "connections": "otel_sse.stream.connections",
    "current": "otel_sse.stream.current",
}


# A type checker knows no other names than those above.
if not typing.TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
