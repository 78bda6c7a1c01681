"""A stream for each thread: Flask, under a WSGI server.

    pip install '../..[otlp]' flask waitress
    OTEL_SERVICE_NAME=feed opentelemetry-instrument waitress-serve --port=8000 --threads=8 feed:app

Read it by ``curl -N http://127.0.0.1:8000/feed/news?count=3``.

Each stream holds a thread of the pool for as long as it lives: ``sse.server.connection.limit`` is
the pool's size, and where ``sse.server.active_connections`` comes near it, the next request waits.
"""

import json
import time
from collections.abc import Iterator

from flask import Flask, Response, request

app = Flask(__name__)


def items(topic: str, count: int) -> Iterator[str]:
    for number in range(1, count + 1):
        yield f"event: item\nid: {number}\ndata: {json.dumps({'topic': topic})}\n\n"
        time.sleep(0.2)


@app.get("/feed/<topic>")
def feed(topic: str) -> Response:
    try:
        count = int(request.args.get("count", 1000))
    except ValueError:
        return Response("count takes a number", 400, content_type="text/plain")
    return Response(items(topic, count), content_type="text/event-stream")
