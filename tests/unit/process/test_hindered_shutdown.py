"""The end of a process whose loops are blocked, or that may start no thread."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from otel_sse.process.event_loops import LoopTask
from otel_sse.process.shutdown import UNANSWERED_SECONDS, ShutdownHandler
from otel_sse.process.signals import call_in_main_thread


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

    class Blocked:
        stopping = False
        flushes = 0
        shutdown_seconds = 10.0
        meter_provider = None

        def close_tasks(self) -> list[LoopTask]:
            return [(loop, close)] * 10_000

        def export(self, *, collect: bool) -> None:
            assert collect

        def discard_pending(self) -> None:
            raise AssertionError("there is none")

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    loop.call_soon_threadsafe(block)
    blocked.wait()
    began = time.monotonic()
    ShutdownHandler(lambda: [Blocked()])._finish()
    took = time.monotonic() - began
    closed_by_then = closed
    go_on.set()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert closed_by_then == 10_000
    assert took < UNANSWERED_SECONDS


@pytest.mark.parametrize("daemon", [False, True])
def test_a_stop_needs_no_thread(daemon: bool, tmp_path: Path) -> None:
    """Where the process may start none, it ends as it would without us: at once."""
    code = f"""
import httpx, multiprocessing, os, signal, time
from otel_sse.process import gc_safety
from otel_sse.frameworks import SSEHttpxInstrumentor
from otel_sse.stream.sharing import shutdown_handler

def refuse(*_):
    raise RuntimeError("can't start new thread")

SSEHttpxInstrumentor().instrument()
shutdown_handler.install_in_main_thread()
assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
gc_safety.start_new_thread = refuse
multiprocessing.current_process()._config["daemon"] = {daemon}
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
"""
    command = [sys.executable, "-c", code]
    stopped = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert stopped.returncode == -signal.SIGTERM, stopped.stderr


def test_the_main_thread_is_asked_by_another_one() -> None:
    """A server in a thread of its own has the main thread observe the signals."""
    called: list[threading.Thread] = []
    asking = threading.Thread(
        target=call_in_main_thread, args=(lambda: called.append(threading.current_thread()),)
    )
    asking.start()
    asking.join()
    deadline = time.monotonic() + 10
    while not called and time.monotonic() < deadline:
        time.sleep(0.01)
    assert called == [threading.main_thread()]
