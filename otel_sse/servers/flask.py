"""Flask.

The hook is ``Flask.wsgi_app``: inside the WSGI middleware that applications put around it. A
response starts in it while the request's context is still there, and with it the span of another
instrumentation.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from flask import Flask

from otel_sse.instrumentor import Hooks
from otel_sse.servers.wsgi import Environ, wrap_wsgi_app


class FlaskHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch_frame(Flask, "wsgi_app", wrap_wsgi_app, _route)


def _route(environ: Environ) -> str | None:
    # Werkzeug's request puts itself there; its url_rule is None where no route matches.
    request: Any = environ.get("werkzeug.request")
    rule: str | None = getattr(getattr(request, "url_rule", None), "rule", None)
    return rule
