"""The end of a process that has no stream to report, or nothing of the application's to run in: it
ends as it does without us, at once and with the same log.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.otlp import Receiver
from helpers.processes import ALONE, APPS, INSTRUMENT, opened, serve
from helpers.waiting import wait_until

# A stop that waits for nothing takes less, also on a busy machine; C code takes minutes.
AT_ONCE = 30.0
BY_SERVER = {
    "uvicorn": "uvicorn quiet:{app} --port {{port}} --timeout-graceful-shutdown 1",
    "hypercorn": "hypercorn quiet:{app} -b 127.0.0.1:{{port}} --graceful-timeout 1",
    "gunicorn": "gunicorn quiet:{app} -b 127.0.0.1:{{port}} --graceful-timeout 10"
    " -k stops_worker.Worker",
}


@pytest.mark.parametrize("server", BY_SERVER)
async def test_a_lifespan_that_has_shut_its_executor_down_ends(
    server: str, receiver: Receiver
) -> None:
    """A stream was served, and the application's last act is to wait for its executor: the
    server's log has no error, and everything is exported.
    """
    with serve(BY_SERVER[server].format(app="shut"), receiver) as served:
        await served.started()
        async with opened(served, "/events", 1):
            pass
        _, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
    assert "Traceback" not in output
    assert "RuntimeError" not in output
    assert [span.attributes["sse.close.reason"] for span in receiver.spans("SSE")] == ["completed"]


async def test_an_executor_that_is_full_delays_no_lifespan(receiver: Receiver) -> None:
    """As many blocked threads as the default executor has, at most 32 and never more than that:
    the streams are reported while the process waits for its own threads, which never end.
    """
    streams = min(32, (os.cpu_count() or 1) + 4)
    with serve(BY_SERVER["uvicorn"].format(app="full"), receiver) as served:
        await served.started()
        async with opened(served, "/events", streams):
            began = time.monotonic()
            status, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
            took = time.monotonic() - began
    assert status == -signal.SIGTERM, output
    assert took < AT_ONCE
    reasons = [span.attributes["sse.close.reason"] for span in receiver.spans("SSE")]
    assert reasons == ["server_shutdown"] * streams


async def test_a_limiter_of_trio_that_is_full_delays_no_lifespan(receiver: Receiver) -> None:
    """Its one token is taken by a thread that never ends: the stream is reported all the same."""
    command = BY_SERVER["hypercorn"].format(app="trio_full") + " -k trio"
    with serve(command, receiver) as served:
        await served.started()
        async with opened(served, "/events", 1):
            served.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(receiver.wait_for, lambda: receiver.spans("SSE"), AT_ONCE)
    (span,) = receiver.spans("SSE")
    assert span.attributes["sse.close.reason"] == "server_shutdown"


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [INSTRUMENT, sys.executable, "quiet.py", *arguments],
        cwd=APPS,
        # Nothing listens there.
        env={**os.environ, **ALONE, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_process_without_streams_is_ended_by_its_signal() -> None:
    """Nothing stands in place of SIGTERM's default action: it ends C code, and waits for nobody."""
    process = start()
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    assert time.monotonic() - began < AT_ONCE
    process.stdout.close()


def test_a_forked_child_without_streams_is_ended_by_its_signal() -> None:
    """Its parent has a live stream, and so a handler, which the child does not inherit."""
    process = start("fork")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        os.kill(child, signal.SIGTERM)
        wait_until(lambda: not _runs(child))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()


def _runs(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.M) is None
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("lifespan", ["on", "off"])
async def test_uvicorn_logs_what_it_logs_without_us(lifespan: str, receiver: Receiver) -> None:
    """SIGTERM with live streams: the same lines, and no traceback that only our presence causes."""
    command = (
        "uvicorn stop_asgi:app --port {port} --no-access-log --no-use-colors"
        f" --timeout-graceful-shutdown 1 --lifespan {lifespan}"
    )
    logs = []
    for instrumented in (receiver, None):
        with serve(command, instrumented) as served:
            await served.started()
            async with opened(served, "/endless", 3):
                status, output = await asyncio.to_thread(served.ended, signal.SIGTERM)
        assert status == -signal.SIGTERM
        logs.append(re.sub(r"\[\d+\]|:\d+|0x[0-9a-f]+", "", _without_frames(output)))
    assert logs[0] == logs[1]
    reasons = [span.attributes["sse.close.reason"] for span in receiver.spans("SSE")]
    assert reasons == ["server_shutdown"] * 3


def _without_frames(output: str) -> str:
    """Without the frames of tracebacks, of which we are some."""
    return "\n".join(line for line in output.splitlines() if not line.lstrip(" |+").startswith(" "))


async def test_a_process_that_is_killed_early_has_reported_its_streams(
    receiver: Receiver,
) -> None:
    """The limit of uvicorn is 60 s, and the option states that the process is killed 20 s after
    SIGTERM: what is live has been closed and exported by then.
    """
    command = "uvicorn stop_asgi:app --port {port} --timeout-graceful-shutdown 60"
    with serve(command, receiver, OTEL_PYTHON_SSE_SHUTDOWN_SECONDS="20") as served:
        await served.started()
        async with opened(served, "/endless", 5):
            served.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(
                receiver.wait_for,
                lambda: (
                    receiver.value("sse.server.connection.duration") == 5
                    and len(receiver.spans("SSE")) == 5
                ),
                20,
            )
            assert served.process.poll() is None
    reasons = [span.attributes["sse.close.reason"] for span in receiver.spans("SSE")]
    assert reasons == ["server_shutdown"] * 5
