"""ASGI servers: uvicorn, Hypercorn, Granian, Daphne, gunicorn's own worker.

They wrap the application that the server has loaded, so that its streams are seen whatever it is
built with. One that a framework's hook observes is left as it is: its requests pay for one frame,
not for two. An application that hides a framework behind code of its own has both, and the two
record a stream once (``asgi._run_nested``).

Contrib's ASGI middleware is wrapped inside, so that its span is the parent of the stream's.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial, wraps
from types import ModuleType
from typing import Any, Final

from otel_sse.instrumentor import Hooks, observed_apps
from otel_sse.process.server_facts import is_contrib_middleware
from otel_sse.servers.asgi import SSEMiddleware, wrap_asgi_app
from otel_sse.servers.asgi_observer import App, Receive, Scope, Send
from otel_sse.telemetry.telemetry import Telemetry

# Applications in applications that are looked at. Bounded: they may form a circle.
_MAX_DEPTH: Final = 100


class _ServerHooks(Hooks):
    """What the servers have in common."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(telemetry)
        self._call = wrap_asgi_app(_run, self)

    def _wrap(self, app: Any) -> Any:
        """What the server calls in place of ``app``."""
        telemetry = self.telemetry
        if telemetry is None or not callable(app):
            return app
        try:
            return self._wrap_innermost(app)
        except Exception:
            # An attribute of an unknown object may raise anything.
            telemetry.failures.log_failure_once("a look at the server's application")
            return partial(self._call, app)

    def _wrap_innermost(self, app: Any) -> Any:
        inner, around = app, None
        for _ in range(_MAX_DEPTH):
            if isinstance(inner, (SSEMiddleware, *observed_apps)):
                return app
            if is_contrib_middleware(inner):
                around = inner
            # Middleware keeps what it wraps as ``app``.
            inner = getattr(inner, "app", None)
            if inner is None:
                break
        if around is None:
            return partial(self._call, app)
        around.app = partial(self._call, around.app)
        return app

    def _wrap_attribute(self, method: str, attribute: str, owner: Any) -> None:
        """Wraps the application that a server's ``method`` puts into its ``attribute``."""

        def wrap(original: Any) -> Any:
            @wraps(original)
            def load(server: Any, *args: Any, **kwargs: Any) -> Any:
                result = original(server, *args, **kwargs)
                setattr(server, attribute, self._wrap(getattr(server, attribute)))
                return result

            return load

        self._patch(owner, method, wrap)


class UvicornHooks(_ServerHooks):
    def install(self, module: ModuleType) -> None:
        self._wrap_attribute("load", "loaded_app", module.Config)


class HypercornHooks(_ServerHooks):
    def install(self, module: ModuleType) -> None:
        self._wrap_attribute("__init__", "app", module.ASGIWrapper)


class DaphneHooks(_ServerHooks):
    def install(self, module: ModuleType) -> None:
        self._wrap_attribute("__init__", "application", module.Server)


class GunicornHooks(_ServerHooks):
    def install(self, module: ModuleType) -> None:
        self._wrap_attribute("load_wsgi", "asgi", module.ASGIWorker)


class GranianHooks(_ServerHooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module, "_asgi_call_wrap", self._call_wrap)

    def _call_wrap(self, original: Any) -> Any:
        @wraps(original)
        def call_wrap(callback: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self._wrap(callback), *args, **kwargs)

        return call_wrap


def _run(app: App, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    return app(scope, receive, send)
