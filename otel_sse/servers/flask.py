"""Flask.

The frame of a request is ``Flask.wsgi_app``: inside the WSGI middleware that applications put
around it. A response starts in it while the request's context is still there, and with it the span
of another instrumentation. ``Flask.process_response`` gets the response that ``after_request``
functions, such as Flask-Compress's, may encode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from flask import Flask, request

from otel_sse.instrumentor import Hooks
from otel_sse.servers.content import Content
from otel_sse.servers.wsgi import observer_of, wrap_wsgi_app
from otel_sse.servers.wsgi_observer import Environ, RequestObserver, may_be_event_stream
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream


class FlaskHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch_frame(Flask, "wsgi_app", wrap_wsgi_app, _route)
        self._patch(Flask, "process_response", self._process_response)

    def _process_response(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def process_response(app: Any, *args: Any, **kwargs: Any) -> Any:
            telemetry = self.telemetry
            if telemetry is None:
                return original(app, *args, **kwargs)
            # Newer versions have the context as an argument before it.
            given = kwargs.get("response") if kwargs else args[-1]
            # Nearly every response is whole when it is made. To ask werkzeug for a header by its
            # name takes longer than to look at all of them.
            if type(getattr(given, "response", None)) is list and not app.after_request_funcs:
                return original(app, *args, **kwargs)
            if not may_be_event_stream(getattr(given, "headers", ())):
                return original(app, *args, **kwargs)
            observer = _observe_content(telemetry, given)
            response = original(app, *args, **kwargs)
            if observer is not None and observer.content and observer.content.restore():
                observer.content = None
            return response

        return process_response


def _observe_content(telemetry: Telemetry, response: Any) -> RequestObserver | None:
    """Notes what an event stream holds, before it may be encoded; gives its observer."""
    try:
        headers = response.headers
        content_type = headers.get("Content-Type", "")
        # Nearly every other response is rejected by one look.
        if "stream" not in content_type.lower() or not is_event_stream(
            request.method, response.status_code, content_type
        ):
            return None
        observer = observer_of(request.environ)
        if observer is None or "Content-Encoding" in headers or response.direct_passthrough:
            return None
        content = Content("utf-8")
        if response.is_sequence:
            content.hold(response.get_data())
        elif response.is_streamed:
            content.observe(response, "response")
        else:
            # To wrap what has a length would change that.
            return None
        observer.content = content
        return observer
    except Exception:
        telemetry.failures.log_failure_once("a response's content")
        return None


def _route(environ: Environ) -> str | None:
    # Werkzeug's request puts itself there; its url_rule is None where no route matches.
    request: Any = environ.get("werkzeug.request")
    rule: str | None = getattr(getattr(request, "url_rule", None), "rule", None)
    return rule
