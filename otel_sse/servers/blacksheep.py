"""BlackSheep.

``Application.__call__`` is the frame of a request, outside its middleware, and so is that of an
application with mounts, which is a subclass then. The routers' ``get_match`` finds the route.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from blacksheep.server.routing import Router, RouterFiltersMixin

from otel_sse.instrumentor import Hooks
from otel_sse.servers.asgi import note_route, wrap_asgi_app

# The pattern of the route for what no other matches.
_FALLBACK: Final = "*"


class BlackSheepHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._patch_frame(module.Application, "__call__", wrap_asgi_app)
        self._patch_frame(module.MountMixin, "__call__", wrap_asgi_app, _mount)
        for router in (Router, RouterFiltersMixin):
            self._patch(router, "get_match", _get_match)
        self._mark_observed(module.Application)


def _get_match(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def get_match(router: Any, request: Any) -> Any:
        match = original(router, request)
        pattern = b"" if match is None else match.pattern
        route = pattern.decode() if isinstance(pattern, bytes) else str(pattern)
        if route != _FALLBACK:
            note_route(getattr(request, "scope", None) or {}, route)
        return match

    return get_match


def _mount(app: Any, scope: dict[str, Any]) -> tuple[str | None, bool]:
    """The template of a mount, which is not that of the whole path."""
    raw_path, path = scope["raw_path"], scope["path"].encode()
    if unquote_to_bytes(raw_path) != path:
        # Up to 2.6.1 a mount leaves in there what is below it alone.
        raw_path = path
    for route in app.mount_registry.mounted_apps:
        match = route.match_by_path(raw_path)
        if match:
            app.handle_mount_path(scope, match)
            template: str = route.pattern.decode()
            return template.removesuffix("/*") or None, False
    return None, False
