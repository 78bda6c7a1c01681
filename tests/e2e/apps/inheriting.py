"""Prints what is recorded where threads inherit the context of a stream's handler.

python -X thread_inherit_context=1 inheriting.py
"""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
import requests
from helpers.backend import Backend
from helpers.client_readers import instrumented

import otel_sse
from otel_sse.servers.wsgi import SSEWSGIMiddleware

TYPE = "text/event-stream"
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", TYPE.encode())],
}
FIRST = {"type": "http.response.body", "body": b"data: x\n\n", "more_body": True}
END = {"type": "http.response.body", "body": b""}


class Server(ThreadingMixIn, WSGIServer):
    """A thread for each request, which inherits from the one that serves."""

    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def threaded(environ: Any, start_response: Any) -> Any:
    """A WSGI application of a server that a stream's handler has started."""
    start_response("200 OK", [("Content-Type", TYPE)])
    otel_sse.current().record_dropped(2, "of the thread's request")
    with backend.tracer.start_as_current_span("work"):
        yield b"data: y\n\n"


async def looped(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application of an event loop in such a thread."""
    await send(START)
    with backend.tracer.start_as_current_span("work"):
        await send(END)


def drop(reason: str) -> None:
    otel_sse.current().record_dropped(1, reason)


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send(FIRST)
    if scope["path"] == "/first":
        # The pools start their threads here, and so within this request.
        await asyncio.get_running_loop().run_in_executor(pool, int)
        await asyncio.to_thread(drop, "of the first, given")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.set()
        await finish.wait()
    else:
        await asyncio.get_running_loop().run_in_executor(pool, drop, "inherited")
        await asyncio.to_thread(drop, "of the second, given")
        await asyncio.get_running_loop().run_in_executor(pool, use_others)
        finish.set()
    await send(END)


def use_others() -> None:
    """In a thread that the first request has started."""
    url = f"http://127.0.0.1:{server.server_port}/"
    assert requests.get(url, timeout=20).content == b"data: y\n\n"
    assert httpx.get(url).content == b"data: y\n\n"
    asyncio.run(call(middleware_of_loop, "/looped"))


async def call(application: Any, path: str) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def nowhere(_: Any) -> None:
        pass

    http = {"type": "http", "method": "GET", "path": path, "headers": [], "path_template": path}
    await application(http, never, nowhere)


async def main() -> None:
    first = asyncio.create_task(call(middleware, "/first"))
    await started.wait()
    await call(middleware, "/second")
    await first


backend = Backend()
pool = ThreadPoolExecutor(1)
started, finish = asyncio.Event(), asyncio.Event()
middleware = otel_sse.SSEMiddleware(app, **backend.providers)
middleware_of_loop = otel_sse.SSEMiddleware(looped, **backend.providers)
wsgi = SSEWSGIMiddleware(threaded, **backend.providers)
server = make_server("127.0.0.1", 0, wsgi, server_class=Server, handler_class=Quiet)
with instrumented(backend):
    asyncio.run(main())
    # A WSGI stream closes after its reader has all of it.
    server.shutdown()
    server.server_close()
spans = backend.spans()
names = {span.context.span_id: span.name for span in spans}
print(
    json.dumps(
        {
            "dropped": sorted(
                (point.attributes.get("http.route", ""), point.attributes["sse.drop.reason"])
                for _, point in backend.points("sse.server.dropped_messages")
            ),
            "spans": sorted(
                (span.name, span.kind.name, names[span.parent.span_id] if span.parent else None)
                for span in spans
            ),
        }
    )
)
