"""Falcon's ASGI application.

The hooks are ``App.__call__``, outside its middleware, which handles no bodies, and
``App._get_responder``, which finds the route.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from otel_sse.instrumentor import Hooks
from otel_sse.servers.asgi import note_route, wrap_asgi_app


class FalconHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._patch_frame(module.App, "__call__", wrap_asgi_app)
        self._patch(module.App, "_get_responder", _get_responder)
        self._mark_observed(module.App)


def _get_responder(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def get_responder(app: Any, req: Any) -> Any:
        found = original(app, req)
        # WSGI applications have this method, too.
        *_, template = found
        note_route(getattr(req, "scope", {}), template)
        return found

    return get_responder
