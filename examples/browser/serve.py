"""A small server to try the monitor with: ``python serve.py``, then http://localhost:8080.

It needs aiohttp, and the bundle: ``npm ci && npm run build``. Stop it and start it again while a
page is open, and see what the page records.
"""

import argparse
import asyncio
import base64
import gzip
import json
import secrets
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

HERE = Path(__file__).parent
PERIOD = 0.5


async def events(request: web.Request) -> web.StreamResponse:
    """Ticks without an end; each fifth is a report, large and so compressed."""
    sent = request.headers.get("Last-Event-ID", "")
    # An id that is none of ours: from the start, as a server does that has lost its history.
    last = int(sent) if sent.isascii() and sent.isdigit() and len(sent) < 19 else 0
    response = await stream(request)
    await response.write(b"retry: 1000\n\n")
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
    """Repeats the text word by word, as a language model answers."""
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


async def collector(request: web.Request) -> web.Response:
    """Whether an OTLP/HTTP receiver listens: a page cannot look without logging an error."""
    url = request.query.get("collector", "http://localhost:4319")
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        opening = asyncio.open_connection(parts.hostname, port)
        _, writer = await asyncio.wait_for(opening, 2)
        writer.close()
    except (OSError, ValueError, asyncio.TimeoutError):
        return web.json_response({"url": url, "listens": False})
    return web.json_response({"url": url, "listens": True})


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves the demo page and its streams.")
    parser.add_argument("port", type=int, nargs="?", default=8080)
    port = parser.parse_args().port
    if not 0 < port < 65536:
        parser.error(f"there is no port {port}")
    if not (HERE / "dist" / "sse-monitor.js").exists():
        sys.exit("dist/sse-monitor.js is not there yet: npm ci && npm run build")
    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get("/collector", collector)
    app.router.add_get("/events", events)
    app.router.add_post("/chat", chat)
    app.router.add_static("/dist", HERE / "dist")
    try:
        web.run_app(app, host="localhost", port=port, shutdown_timeout=0.1)
    except OSError as error:
        sys.exit(f"It cannot listen on port {port}: {error}")


if __name__ == "__main__":
    main()
