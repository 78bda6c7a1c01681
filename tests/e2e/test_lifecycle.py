"""The end of the process: what is live is reported, everything arrives, the exit status stays."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.otlp import Receiver
from helpers.processes import ALONE, INSTRUMENT, PATIENCE

from otel_sse.process.shutdown import UNANSWERED_SECONDS

# What a busy machine may add, in seconds: less than the exporters' own ten.
BUSY = 4.0
LIVE = Path(__file__).parent / "apps" / "live.py"


def start(receiver: Receiver, how: str, streams: int = 1, **env: str) -> "subprocess.Popen[str]":
    """A process with that many live streams, whose exporters would wait for a minute."""
    around = [] if how == "late" else [str(INSTRUMENT)]
    process = subprocess.Popen(
        [*around, sys.executable, str(LIVE), how, str(streams)],
        env={
            **os.environ,
            "OTEL_SERVICE_NAME": "live",
            **receiver.environment,
            **ALONE,
            **env,
        },
        # Not the checkout: opentelemetry-instrument puts the working directory on the path.
        cwd=LIVE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "live\n"
    return process


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """The exit status and what was written to standard error."""
    try:
        _, stderr = process.communicate(timeout=PATIENCE)
    finally:
        # If it has not ended: it does not outlive the test.
        process.kill()
        process.wait()
    return process.returncode, stderr


def assert_all_reported(receiver: Receiver, streams: int, reason: str) -> None:
    """Every stream's span, closed event and last metrics have arrived."""
    assert len(receiver.spans("SSE")) == streams
    assert {span.attributes["sse.close.reason"] for span in receiver.spans("SSE")} == {reason}
    assert len(receiver.records("sse.connection.closed")) == streams
    assert receiver.value("sse.server.messages") == streams
    assert receiver.value("sse.server.active_connections") == 0
    assert receiver.value("sse.server.connection.duration") == streams


@pytest.mark.parametrize("number", [signal.SIGTERM])
@pytest.mark.parametrize("streams", [1, 100])
def test_a_signal_without_a_handler_loses_nothing(
    number: signal.Signals, streams: int, receiver: Receiver
) -> None:
    """SIGTERM ends live streams as ``server_shutdown``, exports spans, events and metrics once
    each, and still kills the process.
    """
    process = start(receiver, "wait", streams)
    process.send_signal(number)
    status, _ = ended(process)
    assert status == -number
    assert_all_reported(receiver, streams, "server_shutdown")
    assert receiver.exports == 3


def end_many(how: str, number: signal.Signals | None = None) -> tuple[Receiver, int, str]:
    """A process with 5,000 live streams that has ended: what arrived, its status and its log.

    Its exporters have ten seconds. Where it logs that these were too few for them, the machine was
    too busy, which is no fault of the queues: then another one runs.
    """
    for _ in range(3):
        with Receiver() as receiver:
            process = start(receiver, how, 5000)
            if number is not None:
                process.send_signal(number)
            status, stderr = ended(process)
        if "did not take everything within" not in stderr:
            break
    return receiver, status, stderr


@pytest.mark.timeout(600)
def test_five_thousand_live_streams_are_more_than_the_queue_holds_and_all_arrive() -> None:
    """The SDK's batch queue holds 2,048: at the end it is fed in batches."""
    receiver, status, stderr = end_many("wait", signal.SIGTERM)
    assert status == -signal.SIGTERM
    assert "dropping" not in stderr
    assert_all_reported(receiver, 5000, "server_shutdown")
    assert len(receiver.records("sse.connection.opened")) == 5000


@pytest.mark.timeout(600)
def test_an_sdk_that_is_set_up_after_us_ends_after_us() -> None:
    """What waits for room in its queues when the process ends is still exported."""
    receiver, status, stderr = end_many("late")
    assert (status, stderr) == (0, "")
    assert len(receiver.spans("SSE")) == 5000
    assert len(receiver.records("sse.connection.closed")) == 5000


@pytest.mark.parametrize(("how", "expected"), [("return", 0), ("exit", 3), ("raise", 1)])
def test_an_exit_of_the_applications_own_loses_nothing(
    how: str, expected: int, receiver: Receiver
) -> None:
    """Returning, sys.exit and an exception: the streams that asyncio cancels or that are still
    live are reported, and the exit status is the application's.
    """
    process = start(receiver, how, 3)
    status, _ = ended(process)
    assert status == expected
    assert len(receiver.spans("SSE")) == 3
    assert len(receiver.records("sse.connection.closed")) == 3
    assert receiver.value("sse.server.active_connections") == 0
    assert receiver.value("sse.server.messages") == 3


def test_a_signal_that_lands_while_the_sdk_holds_a_lock_does_not_deadlock(
    receiver: Receiver,
) -> None:
    """The main thread is stopped in the middle of an export, under the lock of the export."""
    process = start(receiver, "locked", 3)
    status, _ = ended(process)
    assert status == -signal.SIGTERM
    assert_all_reported(receiver, 3, "server_shutdown")


def test_a_handler_of_the_applications_is_called_and_stays(receiver: Receiver) -> None:
    """A program that stops in its own way does so, with its own exit status; all is reported."""
    process = start(receiver, "handler", 3)
    process.send_signal(signal.SIGTERM)
    output, stderr = process.communicate(timeout=60)
    assert (output, stderr, process.returncode) == ("stopped\n", "", 0)
    assert_all_reported(receiver, 3, "server_shutdown")


def test_a_second_signal_kills_at_once(receiver: Receiver) -> None:
    """While the exporters hang, a second signal ends the process."""
    # No process listens on the reserved port: the exporter retries until its time-out.
    process = start(receiver, "wait", 1, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    # Far less than the exporters would take, and more than a busy machine needs.
    assert process.wait(5) == -signal.SIGTERM
    process.communicate()


def test_a_daemon_that_is_stopped_twice_reports_everything(receiver: Receiver) -> None:
    """Its parent stops it and ends, and the exit hooks of multiprocessing stop it once more."""
    process = start(receiver, "daemon", 100)
    process.send_signal(signal.SIGTERM)
    status, stderr = ended(process)
    assert (status, stderr) == (0, "")
    assert_all_reported(receiver, 100, "server_shutdown")


def test_exporters_that_hang_delay_the_end_by_no_more_than_their_time(receiver: Receiver) -> None:
    """A collector that accepts and never answers: the process ends by the signal, within the five
    seconds that we take, although each of the three exporters would wait for ten.
    """
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = start(receiver, "wait", 1, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
        took = time.monotonic() - began
    process.communicate()
    assert UNANSWERED_SECONDS - 0.1 < took < UNANSWERED_SECONDS + BUSY


def test_a_forked_child_begins_with_nothing(receiver: Receiver) -> None:
    """The child reports its own stream alone, the parent its own: totals over both are exact."""
    process = start(receiver, "fork", 2)
    status, stderr = ended(process)
    assert status == 0, stderr
    spans = receiver.spans("SSE")
    assert len(spans) == 3
    assert len({span.attributes["sse.connection.id"] for span in spans}) == 3
    by_instance: dict[str, float] = {}
    for point in receiver.points("sse.server.messages"):
        instance = point.resource.get("service.instance.id", "")
        by_instance[instance] = by_instance.get(instance, 0) + point.value
    # The oldest SDKs give a forked process no id of its own: there one export hides the other.
    assert sorted(by_instance.values()) == [1, 2] or set(by_instance) == {""}


def test_a_forked_child_waits_for_no_thread_of_its_parent() -> None:
    """A client forks while a thread reports its idle stream: the child can close its copy."""
    command = [sys.executable, str(LIVE.with_name("forked_reader.py"))]
    forked = subprocess.run(command, cwd=LIVE.parent, capture_output=True, text=True, timeout=60)
    assert forked.returncode == 0, forked.stderr
