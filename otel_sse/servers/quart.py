"""Quart.

Three hooks. ``Quart.asgi_app`` is the frame of a request, inside the ASGI middleware that
applications put around it. ``Quart.full_dispatch_request`` runs in the task that answers, once the
request has a route. ``ASGIHTTPConnection.handle_request`` returns from a stream that has taken
longer than ``RESPONSE_TIMEOUT`` as from any other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from types import ModuleType
from typing import Any

from quart.asgi import ASGIHTTPConnection

from otel_sse.instrumentor import Hooks
from otel_sse.servers.asgi import note_route, request_of, wrap_asgi_app
from otel_sse.servers.asgi_observer import Send


class QuartHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._patch_frame(module.Quart, "asgi_app", wrap_asgi_app)
        self._patch(module.Quart, "full_dispatch_request", _dispatch)
        self._patch(ASGIHTTPConnection, "handle_request", _handle)
        self._mark_observed(module.Quart)


def _dispatch(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def dispatch(app: Any, *args: Any, **kwargs: Any) -> Any:
        # The context, by whatever name.
        request = getattr(next(iter((*args, *kwargs.values())), None), "request", None)
        # None where no route matches.
        rule = getattr(getattr(request, "url_rule", None), "rule", None)
        note_route(getattr(request, "scope", {}), rule)
        return await original(app, *args, **kwargs)

    return dispatch


def _handle(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    async def handle(connection: Any, request: Any, send: Send) -> None:
        await original(connection, request, send)
        observed = request_of(connection.scope)
        stream = None if observed is None else observed.request.stream
        if stream is not None and not stream.is_over():
            stream.close(TimeoutError())

    return handle
