"""The other end: a client that reads a stream, and how long each message was on its way.

    pip install 'otel-sse[otlp]' httpx
    opentelemetry-instrument python reader.py 'http://127.0.0.1:8000/prices/ACME?count=5'

Start a server for it with ``OTEL_PYTHON_SSE_PROPAGATE=true``, ``prices.py`` for example. It then
writes a comment before each message, which every client ignores, and an instrumented one reads:
``sse.client.delivery.duration`` is the time from the server's send to the receipt, and the reader's
span is linked to the sender's. The rest of ``sse.client.*`` needs nothing of the server.
"""

import sys

import httpx


def main(url: str) -> None:
    # A stream has no time by which it has to be over; a connection has.
    timeout = httpx.Timeout(None, connect=5)
    with httpx.stream("GET", url, timeout=timeout) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data:"):
                print(line.removeprefix("data:").strip(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
