"""Any WSGI application: ``SSEWSGIMiddleware``, and what wraps the WSGI call of a framework or a
server.

Frames nest: the server's hook is around a framework's, and middleware may stand in between. The
innermost one observes, inside that middleware, and those around it pass the response through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from otel_sse.servers.middleware import Middleware
from otel_sse.servers.wsgi_observer import (
    KEY,
    App,
    Environ,
    RequestObserver,
    RouteOf,
    StartResponse,
)
from otel_sse.stream.request import current_request, find_current_request
from otel_sse.telemetry.telemetry import Telemetry


def wrap_wsgi_app(
    run: Callable[..., Iterable[bytes]],
    holder: Any = None,
    route_of: RouteOf | None = None,
) -> Callable[[Any, Environ, StartResponse], Iterable[bytes]]:
    """A WSGI ``__call__`` that runs ``run`` with the same arguments and records its stream.

    Args:
        run: takes the owner of the call, environ and start_response.
        holder: has the telemetry as an attribute, None where nothing is to be recorded; by default
            the owner.
        route_of: gives the route when a stream starts, of a framework whose own code starts the
            response: the span that is current then is the request's, none of the application's.

    """

    def call(owner: Any, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        telemetry: Telemetry | None = (owner if holder is None else holder).telemetry
        if telemetry is None:
            return run(owner, environ, start_response)
        outer: RequestObserver | None = environ.get(KEY)
        if outer is None:
            current = current_request.get()
            if current is not None and not current.over and current is find_current_request():
                # Within an ASGI application, which is observed already.
                return run(owner, environ, start_response)
        elif outer.stream is not None:
            return run(owner, environ, start_response)
        elif outer.passes_to(telemetry, environ, start_response):
            return outer.run_inside(run, owner, route_of)
        observer = RequestObserver(telemetry, environ, start_response, route_of, outer)
        return observer.run(run, owner)

    return call


def observer_of(environ: Environ) -> RequestObserver | None:
    """The observer of a request that is no stream yet; None if there is none."""
    observer: RequestObserver | None = environ.get(KEY)
    return observer


class SSEWSGIMiddleware(Middleware[App]):
    """Records the event streams of a WSGI application.

    Put it innermost, inside other instrumentation, so that its spans are children of theirs.
    Everything that is not a stream, and every byte of one, passes unchanged.
    """

    __call__ = wrap_wsgi_app(
        lambda self, environ, start_response: self.app(environ, start_response),
    )
