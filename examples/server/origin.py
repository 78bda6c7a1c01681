"""The check of the page that a request comes from."""

from aiohttp import hdrs, web


def foreign(request: web.Request, allowed: str = "") -> bool:
    """Whether a page sends it that is neither the server's own nor of the allowed origin, ``*``
    being all. Browsers let any page post; only they send the header.
    """
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or allowed in ("*", origin):
        return False
    return origin.partition("://")[2] != request.host
