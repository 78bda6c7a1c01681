"""Bottle: the hook is ``Bottle.wsgi``, inside the WSGI middleware that applications put around
it.
"""

from __future__ import annotations

from types import ModuleType

from bottle import Bottle

from otel_sse.instrumentor import Hooks
from otel_sse.servers.wsgi import wrap_wsgi_app
from otel_sse.servers.wsgi_observer import Environ


class BottleHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch_frame(Bottle, "wsgi", wrap_wsgi_app, _route)


def _route(environ: Environ) -> str | None:
    rule: str | None = getattr(environ.get("bottle.route"), "rule", None)
    return rule
