"""The end of the process, without a server."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otel_sse.process.shutdown import EXPORT_TIMEOUT_MILLIS, ShutdownHandler


def test_a_blocked_loop_is_waited_for_once() -> None:
    """The time for an end is short: ten thousand streams of such a loop are reported in it, too."""
    blocked, go_on, loop = threading.Event(), threading.Event(), asyncio.new_event_loop()

    def block() -> None:
        blocked.set()
        go_on.wait()

    closed = 0

    def close() -> None:
        nonlocal closed
        closed += 1

    telemetry: Any = SimpleNamespace(
        close_tasks=lambda: [(loop, close) for _ in range(10_000)],
        meter_provider=None,
        export=lambda **_: None,
    )
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    loop.call_soon_threadsafe(block)
    blocked.wait()
    began = time.monotonic()
    ShutdownHandler(lambda: [telemetry])._finish()
    took = time.monotonic() - began
    go_on.set()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert closed >= 10_000
    assert took < EXPORT_TIMEOUT_MILLIS / 1000 / 2


@pytest.mark.parametrize("daemon", [False, True])
def test_a_stop_needs_no_thread(daemon: bool, tmp_path: Path) -> None:
    """Where the process may start none, it ends as it would without us: at once."""
    code = f"""
import multiprocessing, os, signal, time
from otel_sse.process import gc_safety
from otel_sse.clients.httpx import SSEHttpxInstrumentor

def refuse(*_):
    raise RuntimeError("can't start new thread")

SSEHttpxInstrumentor().instrument()
gc_safety.start_new_thread = refuse
multiprocessing.current_process()._config["daemon"] = {daemon}
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
"""
    command = [sys.executable, "-c", code]
    stopped = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert stopped.returncode == -signal.SIGTERM, stopped.stderr
