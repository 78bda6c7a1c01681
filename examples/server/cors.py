"""Pages of another origin: which may read and publish, and the headers that a browser wants.

Every answer to such a page bears the header, refusals and errors too: without it a browser shows
the page a network error, even where the message was stored.
"""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web

_METHODS: Final = {"/events": "GET", "/publish": "POST"}
# What a page may send beyond what a browser allows anyway, and what it may read.
_SENT: Final = "Authorization, Cache-Control, Content-Type, Last-Event-ID"
_READ: Final = "Retry-After"
# Seconds for which a browser need not ask again.
_MAX_AGE: Final = "600"


def is_foreign(request: web.Request, allowed: str = "") -> bool:
    """Whether a page sends it that is neither the server's own nor of the allowed origin, ``*``
    being all. Browsers let any page post; only they send the header.
    """
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or allowed in ("*", origin):
        return False
    return origin.partition("://")[2] != request.host


def add_cors(app: web.Application, allowed: str) -> None:
    """Lets pages of that origin, or of any where it is ``*``, use /events and /publish."""
    for path in _METHODS:
        app.router.add_options(path, _preflight)
    if allowed:

        async def prepare(request: web.Request, response: web.StreamResponse) -> None:
            if request.path in _METHODS:
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
                response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _READ

        app.on_response_prepare.append(prepare)


async def _preflight(request: web.Request) -> web.Response:
    """The answer to a browser that asks first; whether the page may is the other header's."""
    return web.Response(
        status=204,
        headers={
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS[request.path],
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _SENT,
            hdrs.ACCESS_CONTROL_MAX_AGE: _MAX_AGE,
        },
    )
