"""Django's handlers, of WSGI and of ASGI.

Two hooks for each. ``WSGIHandler.__call__`` and ``ASGIHandler.__call__`` are the frame of a
request. ``BaseHandler._get_response`` and its asynchronous twin run inside every middleware and
match the route: the span of another instrumentation is current there, and has ended when the
response starts, so its ids are noted. What they return is the response that middleware may encode,
and ``GZipMiddleware.process_response`` gets one that a view's decorator encodes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from django.core.handlers.base import BaseHandler
from opentelemetry import context as otel_context
from opentelemetry.trace import NonRecordingSpan, get_current_span, set_span_in_context

from otel_sse.instrumentor import Hooks
from otel_sse.servers.asgi import note_route, request_of, wrap_asgi_app
from otel_sse.servers.content import MAX_HELD, Content
from otel_sse.servers.wsgi import observer_of, wrap_wsgi_app
from otel_sse.stream.request import Request
from otel_sse.telemetry.telemetry import Telemetry
from otel_sse.wire.media_type import is_event_stream


class DjangoHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._patch_frame(module.WSGIHandler, "__call__", wrap_wsgi_app)
        self._patch(BaseHandler, "_get_response", self._get_response)

    def _get_response(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def get_response(handler: Any, request: Any) -> Any:
            environ = getattr(request, "environ", None)
            observer = None if environ is None else observer_of(environ)
            if self.telemetry is None or observer is None:
                return original(handler, request)
            _note_parent(observer)
            response = original(handler, request)
            observer.route = _route(request)
            _note_content(self.telemetry, request, response)
            return response

        return get_response


class DjangoASGIHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._patch_frame(module.ASGIHandler, "__call__", wrap_asgi_app)
        self._patch(BaseHandler, "_get_response_async", self._get_response)
        self._mark_observed(module.ASGIHandler)

    def _get_response(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def get_response(handler: Any, request: Any) -> Any:
            scope = getattr(request, "scope", {})
            observed = request_of(scope)
            if self.telemetry is None or observed is None:
                return await original(handler, request)
            _note_parent(observed.request)
            try:
                response = await original(handler, request)
            finally:
                note_route(scope, _route(request))
            _note_content(self.telemetry, request, response)
            return response

        return get_response


class DjangoGZipHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module.GZipMiddleware, "process_response", self._process_response)

    def _process_response(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def process_response(middleware: Any, request: Any, response: Any) -> Any:
            if self.telemetry is not None:
                _note_content(self.telemetry, request, response)
            return original(middleware, request, response)

        return process_response


def _note_content(telemetry: Telemetry | None, request: Any, response: Any) -> None:
    """Notes what an event stream holds, before what is around the view encodes it."""
    try:
        headers = response.headers
        content_type = headers.get("Content-Type", "")
        # Nearly every other response is rejected by one look.
        if "stream" not in content_type.lower() or not is_event_stream(
            request.method, response.status_code, content_type
        ):
            return
        scope = getattr(request, "scope", None)
        observed = observer_of(request.environ) if scope is None else request_of(scope)
        if observed is None or observed.content is not None or "Content-Encoding" in headers:
            return
        # A synchronous iterator is read whole in another thread, before any of it is sent.
        is_async = getattr(response, "is_async", False)
        apart = scope is not None and not is_async
        content = Content(response.charset, float("inf") if apart else MAX_HELD)
        if response.streaming:
            content.observe(response, "_iterator", is_async=is_async)
        else:
            content.hold(response.content)
        observed.content = content
    except Exception:
        if telemetry is not None:
            telemetry.failures.log_failure_once("a response's content")


def _note_parent(request: Request) -> None:
    """Notes the span that is current inside the middleware, where it is not that of the request."""
    context = otel_context.get_current()
    span = get_current_span(context)
    if span.get_span_context().is_valid and context is not request.state.context:
        noted = NonRecordingSpan(span.get_span_context())
        request.state.context = set_span_in_context(noted, context)


def _route(request: Any) -> str | None:
    route: str | None = getattr(getattr(request, "resolver_match", None), "route", None)
    return route
