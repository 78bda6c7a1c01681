"""A process with live streams and no server of its own; how it ends is its first argument.

It prints "live" when its streams are up, and then ends as asked: ``return`` from main, ``exit``
by sys.exit(3), ``raise``, ``wait`` for a signal, ``handler`` (it handles the signal itself),
``locked`` (it signals itself under a lock of the SDK's), ``late`` (it sets the SDK up when we are
there, and returns), ``fork``, or ``daemon`` (a child serves, which it stops at a signal).
Second argument: how many streams.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any

from opentelemetry import trace
from opentelemetry.instrumentation.auto_instrumentation import initialize
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from otel_sse import SSEMiddleware, connections


async def _app(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    await asyncio.Event().wait()


async def _send(message: Any) -> None:
    pass


async def _main(how: str, streams: int) -> None:
    app = SSEMiddleware(_app)
    if how == "late":
        initialize()
    stop = asyncio.Event()
    if how == "handler":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks = [asyncio.create_task(app(_scope(), _forever, _send)) for _ in range(streams)]
    await asyncio.sleep(0)
    print("live", flush=True)
    if how == "handler":
        await stop.wait()
        print("stopped", flush=True)
    if how == "locked":
        _stop_under_a_lock()
    if how in ("wait", "locked"):
        await asyncio.gather(*tasks)
    if how == "exit":
        sys.exit(3)
    if how == "raise":
        raise RuntimeError("on purpose")


class _Stopping(SpanExporter):
    """Is stopped in its first export, while the SDK holds its lock."""

    def export(self, spans: Any) -> SpanExportResult:
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.2)
        return SpanExportResult.SUCCESS


def _stop_under_a_lock() -> None:
    provider = trace.get_tracer_provider()
    processor = BatchSpanProcessor(_Stopping())
    provider.add_span_processor(processor)  # type: ignore[attr-defined]
    provider.get_tracer("live").start_span("other").end()
    processor.force_flush()


def _fork(streams: int) -> None:
    """Forks while another thread's loop serves; the child serves one stream of its own."""
    served = threading.Thread(target=asyncio.run, args=(_main("wait", streams),), daemon=True)
    served.start()
    while len(connections()) < streams:
        time.sleep(0.01)
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        asyncio.run(_main("return", 1))


def _daemon(streams: int) -> None:
    """Asks its child to end, and ends: the exit hooks ask it again, and wait for it."""

    def stop(*_: object) -> None:
        child.terminate()
        sys.exit()

    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_serve, args=("wait", streams), daemon=True)
    signal.signal(signal.SIGTERM, stop)
    child.start()
    child.join()


def _serve(how: str, streams: int) -> None:
    asyncio.run(_main(how, streams))


async def _forever() -> Any:
    await asyncio.Event().wait()


def _scope() -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "query_string": b"",
        "headers": [],
        "client": None,
    }


if __name__ == "__main__":
    if sys.argv[1] == "fork":
        _fork(int(sys.argv[2]))
    elif sys.argv[1] == "daemon":
        _daemon(int(sys.argv[2]))
    else:
        _serve(sys.argv[1], int(sys.argv[2]))
