"""A small aiohttp application with streams and the status page, for ``opentelemetry-instrument``.

python watched.py PORT
"""

import asyncio
import random
import sys
from pathlib import Path

from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples"))

from server.settings import load
from server.status import add_status


async def ticker(request: web.Request) -> web.StreamResponse:
    """A price, or with the type `type`, `rate` times a second, of `size` bytes; ends after `count`,
    fails after `fail`.
    """
    numbers = ("rate", "size", "count", "fail")
    asked = {name: float(request.query[name]) for name in numbers if name in request.query}
    kind = request.query.get("type", "price")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    number = 0
    while number < asked.get("count", float("inf")):
        number += 1
        text = "x" * int(asked.get("size", 20))
        await response.write(f"event: {kind}\nid: {number}\ndata: {text}\n\n".encode())
        if number >= asked.get("fail", float("inf")):
            raise LookupError("the source is gone")
        await asyncio.sleep(random.expovariate(asked.get("rate", 10)))
    return response


def application() -> web.Application:
    app = web.Application()
    app.router.add_get("/ticker", ticker)
    add_status(app, load())
    return app


if __name__ == "__main__":
    web.run_app(
        application(),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        shutdown_timeout=1,
        access_log=None,
        print=None,
        reuse_address=True,
    )
