"""Bottle: the hook is ``Bottle.wsgi``, inside the WSGI middleware that applications put around
it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import wraps

from bottle import Bottle

from otel_sse.instrumentor import SSEInstrumentor
from otel_sse.servers.wsgi import Environ, wrap_wsgi_app


class SSEBottleInstrumentor(SSEInstrumentor):
    """Records every event stream that Bottle serves."""

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("bottle >= 0.12",)

    def _install(self) -> None:
        self._patch(
            Bottle,
            "wsgi",
            lambda original: wraps(original)(
                wrap_wsgi_app(original, lambda _: self.telemetry, _route)
            ),
        )


def _route(environ: Environ) -> str | None:
    rule: str | None = getattr(environ.get("bottle.route"), "rule", None)
    return rule
