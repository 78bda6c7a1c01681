"""WSGI servers: gunicorn's workers, waitress, gevent's pywsgi.

They wrap the application of the server, so that it is observed whatever framework it is built with;
where a framework has a hook of its own, that one observes. What is below has two more reasons:

- Streams start in threads that may not handle signals, so the signals are observed when the server
  starts, in the main thread. That is so for the servers of the standard library and of Werkzeug,
  too, which ``flask run`` and ``runserver`` use.
- A server knows how many streams it can hold at once.
"""

from __future__ import annotations

import socketserver
from collections.abc import Callable, Collection
from functools import wraps
from types import ModuleType
from typing import Any

from wrapt import register_post_import_hook

from otel_sse.instrumentor import SSEInstrumentor
from otel_sse.process.server_facts import pool_of_worker
from otel_sse.process.server_pools import note_pool
from otel_sse.servers.wsgi import App, Environ, StartResponse, wrap_wsgi_app
from otel_sse.stream.sharing import shutdown_handler

# Of a server that is served in the main thread: what runs it, by its module.
_MAIN_LOOPS = (
    ("waitress.server", "BaseWSGIServer", "run"),
    ("waitress.server", "MultiSocketServer", "run"),
    ("gevent.baseserver", "BaseServer", "serve_forever"),
    ("socketserver", "BaseServer", "serve_forever"),
)
# Those that take an application when they are made, and keep it.
_SERVERS = (("waitress.server", "BaseWSGIServer"), ("gevent.pywsgi", "WSGIServer"))


class SSEWSGIServerInstrumentor(SSEInstrumentor):
    """Records every event stream of a WSGI application that one of these servers serves."""

    def instrumentation_dependencies(self) -> Collection[str]:
        # Any of them, each once it is imported.
        return ()

    def _install(self) -> None:
        self._call = wrap_wsgi_app(_run, lambda _: self.telemetry)
        # Not imported here: gevent has to patch the standard library first.
        self._after_import("gunicorn.workers.base", "Worker", "load_wsgi", self._load_wsgi)
        self._after_import("gunicorn.workers.base", "Worker", "init_signals", self._after)
        for module, owner in _SERVERS:
            self._after_import(module, owner, "__init__", self._init)
        for module, owner, name in _MAIN_LOOPS:
            self._after_import(module, owner, name, self._before)

    def _after_import(self, module: str, owner: str, name: str, wrap: Callable[[Any], Any]) -> None:
        def patch(imported: ModuleType) -> None:
            cls = getattr(imported, owner, None)
            if self.telemetry is not None and name in getattr(cls, "__dict__", ()):
                self._patch(cls, name, wrap)

        register_post_import_hook(patch, module)

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

    def _init(self, original: Any) -> Any:
        @wraps(original)
        def init(server: Any, *args: Any, **kwargs: Any) -> None:
            original(server, *args, **kwargs)
            application = getattr(server, "application", None)
            if self.telemetry is not None and callable(application):
                server.application = self._wrap(application)

        return init

    def _wrap(self, app: App) -> App:
        @wraps(app, updated=())
        def application(environ: Environ, start_response: StartResponse) -> Any:
            return self._call(app, environ, start_response)

        return application

    def _before(self, original: Any) -> Any:
        @wraps(original)
        def run(server: Any, *args: Any, **kwargs: Any) -> Any:
            # Of those of socketserver only wsgiref's and Werkzeug's, which have an application.
            if not isinstance(server, socketserver.BaseServer) or _has_application(server):
                self._observe_signals()
            return original(server, *args, **kwargs)

        return run

    def _after(self, original: Any) -> Any:
        @wraps(original)
        def run(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._observe_signals()
            return result

        return run

    def _observe_signals(self) -> None:
        if self.telemetry is not None:
            shutdown_handler.install_in_main_thread()


def _run(app: App, environ: Environ, start_response: StartResponse) -> Any:
    return app(environ, start_response)


def _has_application(server: Any) -> bool:
    return hasattr(server, "application") or hasattr(server, "app")
