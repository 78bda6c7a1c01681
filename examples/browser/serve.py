"""A small server to try the monitor with: ``python serve.py``, then http://localhost:8080.

It needs aiohttp, and the bundle: ``npm ci && npm run build``. Stop it and start it again while a
page is open, and see what the page tells.
"""

import argparse
import asyncio
import base64
import gzip
import json
import secrets
import time
from pathlib import Path

from aiohttp import web

HERE = Path(__file__).parent
PERIOD = 0.5


async def events(request: web.Request) -> web.StreamResponse:
    """Ticks without an end; each fifth is a report, large and so compressed."""
    response = await stream(request)
    await response.write(b"retry: 1000\n\n")
    last = int(request.headers.get("Last-Event-ID") or 0)
    while True:
        last += 1
        tick = json.dumps({"tick": last})
        if last % 5:
            await response.write(message(tick, "message", last))
        else:
            report = json.dumps({"tick": last, "rows": list(range(500))})
            await response.write(message(envelope(report), "report", last))
        await response.write(b": keep-alive\n\n")
        await asyncio.sleep(PERIOD)


async def chat(request: web.Request) -> web.StreamResponse:
    """Says word by word what it is told, as a language model answers."""
    words = (await request.text()).split()
    response = await stream(request)
    for number, word in enumerate(words, 1):
        await response.write(message(word, "token", number))
        await asyncio.sleep(PERIOD / 5)
    return response


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    await response.prepare(request)
    return response


def message(data: str, kind: str, last: int) -> bytes:
    """With the comment line that otel_sse writes in front of it where ``propagate`` is on."""
    parent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
    sent = f": otel traceparent={parent};ts={time.time_ns()}\n"
    return f"{sent}event: {kind}\nid: {last}\ndata: {data}\n\n".encode()


def envelope(text: str) -> str:
    """A compressed message, as README.md describes it."""
    raw = text.encode()
    data = base64.b64encode(gzip.compress(raw)).decode()
    return json.dumps({"encoding": "gzip", "data": data, "size": len(raw)})


async def page(_: web.Request) -> web.FileResponse:
    return web.FileResponse(HERE / "index.html")


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves the demo page and its streams.")
    parser.add_argument("port", type=int, nargs="?", default=8080)
    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/events", events)
    app.router.add_post("/chat", chat)
    app.router.add_static("/dist", HERE / "dist")
    web.run_app(app, host="localhost", port=parser.parse_args().port, shutdown_timeout=0.1)


if __name__ == "__main__":
    main()
