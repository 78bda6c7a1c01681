"""The other end: a client that reads a stream, and how long each message was on its way.

    pip install '../..[otlp]' httpx
    OTEL_SERVICE_NAME=reader opentelemetry-instrument python reader.py 'http://127.0.0.1:8000/prices/ACME?count=5'

Start a server for it with ``OTEL_PYTHON_SSE_PROPAGATE=true``, ``prices.py`` for example. It then
writes a comment before each message, which every client ignores, and an instrumented one reads:
``sse.client.delivery.duration`` is the time from the server's send to the receipt, and the reader's
span is linked to the sender's. The rest of ``sse.client.*`` needs nothing of the server.
"""

import sys

import httpx


def main(url: str) -> None:
    # A stream may last as long as it likes; a connect may not.
    timeout = httpx.Timeout(None, connect=5)
    with httpx.stream("GET", url, timeout=timeout) as response:
        if response.status_code == 503:
            wait = response.headers.get("Retry-After", "some")
            sys.exit(f"{url} is not available now; try again in {wait} seconds")
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data:"):
                print(line.removeprefix("data:").strip(), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: reader.py URL, such as http://127.0.0.1:8000/prices/ACME?count=5")
    try:
        main(sys.argv[1])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        sys.exit(f"{sys.argv[1]} could not be read: {error}")
