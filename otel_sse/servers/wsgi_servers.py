"""WSGI servers: gunicorn's workers, waitress, gevent's pywsgi, eventlet.

They wrap the application of the server, so that it is observed whatever framework it is built with;
where a framework has a hook of its own, that one observes. What is below has two more reasons:

- Streams start in threads that may not handle signals, so the signals are observed when the server
  starts, in the main thread. That is so for the servers of the standard library and of Werkzeug,
  too, which ``flask run`` and ``runserver`` use.
- A server knows how many streams it can hold at once.
"""

from __future__ import annotations

import socketserver
from functools import wraps
from types import ModuleType
from typing import Any

from otel_sse.instrumentor import Hooks
from otel_sse.process.server_facts import pool_of_worker
from otel_sse.process.server_pools import note_pool
from otel_sse.servers.observed_app import ObservedApp
from otel_sse.servers.wsgi import wrap_wsgi_app
from otel_sse.servers.wsgi_observer import App, Environ, StartResponse
from otel_sse.stream.sharing import shutdown_handler
from otel_sse.telemetry.telemetry import Telemetry


class _ServerHooks(Hooks):
    """What the servers have in common."""

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(telemetry)
        self._call = wrap_wsgi_app(_run, self)

    def _init(self, original: Any) -> Any:
        @wraps(original)
        def init(server: Any, *args: Any, **kwargs: Any) -> None:
            original(server, *args, **kwargs)
            application = getattr(server, "application", None)
            if self.telemetry is not None and callable(application):
                server.application = self._wrap(application)

        return init

    def _wrap(self, app: App) -> App:
        return ObservedApp(app, self._call)

    def _main_loop(self, original: Any) -> Any:
        @wraps(original)
        def run(server: Any, *args: Any, **kwargs: Any) -> Any:
            # Of those of socketserver only wsgiref's and Werkzeug's, which have an application.
            if not isinstance(server, socketserver.BaseServer) or _has_application(server):
                self._observe_signals()
            return original(server, *args, **kwargs)

        return run

    def _observe_signals(self) -> None:
        if self.telemetry is not None:
            shutdown_handler.install_in_main_thread()


class GunicornHooks(_ServerHooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module.Worker, "load_wsgi", self._load_wsgi)
        self._patch(module.Worker, "init_signals", self._init_signals)

    def _load_wsgi(self, original: Any) -> Any:
        @wraps(original)
        def load_wsgi(worker: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(worker, *args, **kwargs)
            size = pool_of_worker(worker)
            if self.telemetry is not None and size is not None:
                worker.wsgi = self._wrap(worker.wsgi)
                note_pool(worker, size)
            return result

        return load_wsgi

    def _init_signals(self, original: Any) -> Any:
        @wraps(original)
        def init_signals(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._observe_signals()
            return result

        return init_signals


class WaitressHooks(_ServerHooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module.BaseWSGIServer, "__init__", self._init)
        self._patch(module.BaseWSGIServer, "run", self._main_loop)
        self._patch(module.MultiSocketServer, "run", self._main_loop)


class PyWSGIHooks(_ServerHooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module.WSGIServer, "__init__", self._init)


class GeventHooks(_ServerHooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module.BaseServer, "serve_forever", self._main_loop)


class EventletHooks(_ServerHooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module.Server, "__init__", self._init_app)
        self._patch(module, "server", self._serve)

    def _serve(self, original: Any) -> Any:
        @wraps(original)
        def serve(*args: Any, **kwargs: Any) -> Any:
            self._observe_signals()
            return original(*args, **kwargs)

        return serve

    def _init_app(self, original: Any) -> Any:
        @wraps(original)
        def init(server: Any, *args: Any, **kwargs: Any) -> None:
            original(server, *args, **kwargs)
            if self.telemetry is not None:
                server.app = self._wrap(server.app)

        return init


class SocketServerHooks(GeventHooks):
    """The same name in the standard library."""


def _run(app: App, environ: Environ, start_response: StartResponse) -> Any:
    return app(environ, start_response)


def _has_application(server: Any) -> bool:
    return hasattr(server, "application") or hasattr(server, "app")
