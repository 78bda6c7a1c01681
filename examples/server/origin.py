"""The check of who asks: a page of another origin, by a browser, may not change anything."""

from urllib.parse import urlsplit

from aiohttp import hdrs, web


def foreign(request: web.Request, allowed: str = "") -> bool:
    """Whether a browser sends this for a page of another origin than ``allowed`` and our own."""
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or allowed in ("*", origin):
        return False
    return urlsplit(origin).netloc != request.host
