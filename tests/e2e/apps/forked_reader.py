"""A process that reads a stream and forks while another thread reports its stall. The child lets
go of its copy of the response. Ends with the child's status, or 1 where that does not end.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator

import httpx
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from otel_sse.frameworks import SSEHttpxInstrumentor

_reached = threading.Event()
_open = threading.Event()
_reader = InMemoryMetricReader()


class _Gate(SpanProcessor):
    """Holds up a span's end in any thread but the reader's own."""

    def on_end(self, span: ReadableSpan) -> None:
        if threading.current_thread() is not threading.main_thread():
            _reached.set()
            _open.wait(20)


def _ended(child: int) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return 1


def _chunks(held: list[httpx.Response], status: list[int]) -> Iterator[bytes]:
    """Forks while the reader waits and its idle stream is being reported."""
    while not _reached.wait(0.01):
        _reader.collect()
    if child := os.fork():
        status.append(_ended(child))
        _open.set()
    else:
        held[0].close()
        os._exit(0)
    yield b"data: 1\n\n"


def main() -> int:
    tracers = TracerProvider()
    tracers.add_span_processor(_Gate())
    meters = MeterProvider([_reader])
    SSEHttpxInstrumentor().instrument(
        tracer_provider=tracers, meter_provider=meters, segment_seconds=0.05
    )
    held: list[httpx.Response] = []
    status: list[int] = []
    headers = {"Content-Type": "text/event-stream"}
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, headers=headers, content=_chunks(held, status))
    )
    with httpx.Client(transport=transport) as client, client.stream("GET", "http://mock/") as read:
        held.append(read)
        for _ in read.iter_lines():
            pass
    return status[0]


if __name__ == "__main__":
    sys.exit(main())
