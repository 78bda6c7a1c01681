"""An ASGI application without any framework: ``app``, and ``contribs`` in contrib's middleware."""

from typing import Any

from endings_messages import PLAIN, TYPE, messages
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    ending = scope["path"].rpartition("/")[2]
    if ending == "raises-before":
        raise LookupError(ending)
    kind = PLAIN if ending == "plain" else TYPE
    headers = [(b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if ending != "plain":
        async for chunk in messages(ending):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"plain" if ending == "plain" else b""})


contribs = OpenTelemetryMiddleware(app)
