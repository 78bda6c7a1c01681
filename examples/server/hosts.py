"""The check of the name by which a server was asked.

A page of an attacker's site is of the server's own origin for a browser once that site's name
resolves to the server's address (DNS rebinding): then it may read the streams, publish, and look at
the dashboard of a server that only the browser reaches. The name is what gives it away.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from server.refusal import Refusal

_LOCAL: Final = ("localhost", ".localhost")


def only_own(allowed: str, host: str) -> Middleware:
    """Lets through what names the server by an address, as localhost, or by one of the allowed
    names; ``*`` allows all. ``host`` is the one where it listens.
    """
    names = {each.strip().lower() for each in allowed.split(",") if each.strip()} | {host.lower()}

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = _name(request.headers.get(hdrs.HOST, ""))
        # Browsers always send it; health checks may not.
        if name and "*" not in names and name not in names and not _is_local(name):
            raise Refusal(
                421, f"{name[:100]!r} is no name of this server: see SSE_SERVER_ALLOWED_HOSTS"
            )
        return await handler(request)

    return middleware


def is_loopback(address: str) -> bool:
    """Whether that is this machine: the address or name of a listening socket, or of a peer."""
    if _is_name(address, _LOCAL):
        return True
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _name(host: str) -> str:
    """The name of a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_local(name: str) -> bool:
    if _is_name(name, _LOCAL):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_name(name: str, known: tuple[str, ...]) -> bool:
    return any(name == each or (each[0] == "." and name.endswith(each)) for each in known)
