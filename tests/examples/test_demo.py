"""``make demo`` as a person has it, shorter."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.otlp import Receiver

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def start(seconds: int, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "demo"],
        cwd=EXAMPLES,
        env={**os.environ, "DEMO_SECONDS": str(seconds), "COLUMNS": "200", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_it_shows_streams_their_endings_and_an_alert() -> None:
    """It ends on its own; every kind of close, the alert of the rush and what was received is
    printed; and another receiver gets the same.
    """
    with Receiver() as receiver:
        demo = start(18, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint)
        output, _ = demo.communicate(timeout=110)
        assert demo.returncode == 0, output
        dashboard = re.search(r"The dashboard +(http://127\.0\.0\.1:\d+/)", output)
        assert dashboard, output
        lines = output.splitlines()
        closed = {
            (words[1], words[3])
            for words in map(str.split, lines)
            if len(words) > 5 and re.fullmatch(r"\d\d:\d\d:\d\d", words[0])
        }
        assert {
            ("reference", "client_disconnect"),
            ("reference", "server_shutdown"),
            ("starlette", "completed"),
            ("starlette", "error"),
            ("starlette", "client_disconnect"),
            ("starlette", "server_shutdown"),
        } <= closed, output
        assert re.search(r"ALERT firing critical SSEConnectionsHigh: .+ threshold 12", output), (
            output
        )
        assert re.search(r"^Alerts: .*SSEConnectionsHigh", output, re.MULTILINE), output
        reasons = output.partition("Connections that ended, by reason:")[2].partition("Alerts:")[0]
        closed_streams = sum(int(line.split()[0]) for line in reasons.splitlines() if line.strip())
        assert closed_streams == len(receiver.records("sse.connection.closed")) >= 10
        assert re.search(r"Sent to .+: \d+ requests; 0 failed\.", output), output


@pytest.mark.parametrize("seconds", ["abc", "-1", "nan", "1"])
def test_a_bad_duration_is_a_sentence(seconds: str) -> None:
    """It names the variable, the value and what it takes."""
    ran = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=EXAMPLES,
        env={**os.environ, "DEMO_SECONDS": seconds},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert ran.stderr == f"DEMO_SECONDS={seconds!r}: it takes a number of seconds above 3\n"


def test_it_ends_cleanly_on_an_interrupt() -> None:
    """Ctrl-C ends it within seconds, with the summary, and its servers with it."""
    demo = start(100)
    assert demo.stdout is not None
    for line in demo.stdout:
        if (stream := re.search(r"The dashboard +(http://127\.0\.0\.1:(\d+))", line)) is not None:
            break
    demo.send_signal(signal.SIGINT)
    began = time.monotonic()
    output, _ = demo.communicate(timeout=60)
    assert stream is not None
    assert demo.returncode == 0, output
    assert "Connections that ended, by reason:" in output
    assert "Traceback" not in output
    assert time.monotonic() - began < 30
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(stream[2]))).close()
