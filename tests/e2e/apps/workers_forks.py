"""A process that serves streams in a thread, and a child that it makes meanwhile.

Arguments: how it makes the child (``os.fork``, or a start method of multiprocessing), and what a
thread of the parent holds when it does: ``nothing``, the lock under which ``ours`` counts or the
one under which we are set up (``setup``), or the lock of an SDK that is ``collecting``.
"""

import asyncio
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import NoOpMeterProvider

from otel_sse import SSEMiddleware


async def _app(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: 1\n\n" * 5, "more_body": True})
    if scope["path"] == "/live":
        scope["lives"].set()
        await asyncio.Event().wait()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _serve(*paths: str, lives: threading.Event | None = None) -> None:
    app = SSEMiddleware(_app)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        pass

    for path in paths:
        scope: Any = {"type": "http", "method": "GET", "path": path, "headers": [], "lives": lives}
        await app(scope, receive, send)


def child() -> None:
    asyncio.run(_serve("/", "/", "/", "/"))


class _Blocks(NoOpMeterProvider):
    """Is asked for a meter, and thinks."""

    def __init__(self, hold: Callable[[], Any]) -> None:
        self._hold = hold

    def get_meter(self, *args: Any, **kwargs: Any) -> Any:
        self._hold()
        return super().get_meter(*args, **kwargs)


def _hold(what: str) -> threading.Event:
    """Has a thread hold it until the event is set."""
    held, done, parent = threading.Event(), threading.Event(), os.getpid()

    def hold(*_: Any) -> list[Any]:
        if os.getpid() == parent:
            held.set()
            done.wait()
        return []

    def locked() -> None:
        with SSEMiddleware(_app).telemetry.streams.lock:
            hold()

    provider: Any = metrics.get_meter_provider()
    work: dict[str, Callable[[], Any]] = {
        "nothing": hold,
        "ours": locked,
        "setup": lambda: SSEMiddleware(_app, meter_provider=_Blocks(hold)),
        "collecting": provider.force_flush,
    }
    if what == "collecting":
        provider.get_meter("slow").create_observable_gauge("slow", [hold])
    threading.Thread(target=work[what], daemon=True).start()
    held.wait()
    return done


def main(how: str, what: str) -> None:
    asyncio.run(_serve("/", "/"))
    lives = threading.Event()
    served = _serve("/live", lives=lives)
    threading.Thread(target=asyncio.run, args=(served,), daemon=True).start()
    lives.wait()
    done = _hold(what)
    if how == "os.fork":
        pid = os.fork()
        if not pid:
            child()
            return
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    else:
        context: Any = multiprocessing.get_context(how)
        process = context.Process(target=child)
        process.start()
        process.join()
        status = process.exitcode
    done.set()
    sys.exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
