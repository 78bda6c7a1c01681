"""Applications that answer with a little JSON, called as their server calls them.

Nothing is imported before it is asked for: where instructions are counted there is no more than the
frameworks that are counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any


def django_app() -> Any:
    """Django by WSGI, without middleware; once in a process."""
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import JsonResponse
    from django.urls import path

    urls: Any = ModuleType("urls")
    urls.urlpatterns = [path("json", lambda _: JsonResponse({"status": "ok"}))]
    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=urls)
    django.setup()
    return WSGIHandler()


def wsgi_request(app: Any, path: str, **keys: Any) -> Callable[[], None]:
    """One request of ``path``, whose environ has ``keys``."""
    from werkzeug.test import EnvironBuilder

    environ = EnvironBuilder(path, environ_base=keys).get_environ()

    def start_response(*_: Any) -> None:
        pass

    def request() -> None:
        body = app(dict(environ), start_response)
        for _ in body:
            pass
        body.close()

    return request


def tornado_request(path: str) -> Callable[[], Awaitable[None]]:
    """One request of ``path`` to Tornado, from where its headers are parsed."""
    from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
    from tornado.web import Application, RequestHandler

    finished = asyncio.Event()

    class Answer(RequestHandler):
        def get(self) -> None:
            self.write({"status": "ok"})

    class Connection:
        context = None

        def set_close_callback(self, _: Any) -> None:
            pass

        def write_headers(self, *_: Any) -> asyncio.Future[None]:
            written = asyncio.get_running_loop().create_future()
            written.set_result(None)
            return written

        def finish(self) -> None:
            finished.set()

    app = Application([(path, Answer)], log_function=lambda _: None)

    async def request() -> None:
        finished.clear()
        parsed = HTTPServerRequest(
            start_line=RequestStartLine("GET", path, "HTTP/1.1"),
            headers=HTTPHeaders({"Host": "localhost"}),
            connection=Connection(),  # type: ignore[arg-type]
        )
        app.find_handler(parsed).execute()  # type: ignore[attr-defined]
        await finished.wait()

    return request
