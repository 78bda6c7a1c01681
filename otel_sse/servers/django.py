"""Django's WSGI handler.

Two hooks. ``WSGIHandler.__call__`` is the frame of a request. ``BaseHandler._get_response`` runs
inside every middleware and matches the route: the span of another instrumentation is current there,
and has ended when the response starts, so its ids are noted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIHandler
from opentelemetry import context as otel_context
from opentelemetry.trace import NonRecordingSpan, get_current_span, set_span_in_context

from otel_sse.instrumentor import Hooks
from otel_sse.servers.wsgi import observer_of, wrap_wsgi_app


class DjangoHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch(
            WSGIHandler,
            "__call__",
            lambda original: wraps(original)(wrap_wsgi_app(original, lambda _: self.telemetry)),
        )
        self._patch(BaseHandler, "_get_response", self._get_response)

    def _get_response(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def get_response(handler: Any, request: Any) -> Any:
            environ = getattr(request, "environ", None)
            observer = None if environ is None else observer_of(environ)
            if self.telemetry is None or observer is None:
                return original(handler, request)
            context = otel_context.get_current()
            span = get_current_span(context)
            if span.get_span_context().is_valid and context is not observer.request.state.context:
                noted = NonRecordingSpan(span.get_span_context())
                observer.request.state.context = set_span_in_context(noted, context)
            response = original(handler, request)
            observer.route = getattr(getattr(request, "resolver_match", None), "route", None)
            return response

        return get_response
