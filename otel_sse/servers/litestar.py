"""Litestar.

The hooks are ``HTTPRoute.handle`` and, for ASGI applications that it mounts, ``ASGIRoute.handle``:
inside every middleware, which includes that of its own OpenTelemetry plugin and of compression.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from litestar.routes import ASGIRoute, HTTPRoute

from otel_sse.instrumentor import Hooks
from otel_sse.servers.asgi import wrap_asgi_app


class LitestarHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        for kind in (HTTPRoute, ASGIRoute):
            self._patch_frame(kind, "handle", wrap_asgi_app, _route)
        self._mark_observed(module.Litestar)


def _route(route: Any, _: dict[str, Any]) -> tuple[str | None, bool]:
    whole = isinstance(route, HTTPRoute)
    template: str = route.path_format
    # A mount at the root has no template of its own.
    return template if whole or template != "/" else None, whole
