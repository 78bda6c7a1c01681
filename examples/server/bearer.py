"""The check of a bearer token."""

import hmac

from aiohttp import hdrs, web


def bears(request: web.Request, token: str) -> bool:
    """Whether the request bears that token; where there is none, every request passes."""
    if not token:
        return True
    scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    return scheme.lower() == "bearer" and same
