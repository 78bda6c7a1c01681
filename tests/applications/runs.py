"""An application's two runs, with the instrumentation and without, and what each looked like."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from applications.environments import programs
from applications.tap import Exchange, Tap
from helpers.otlp import Receiver
from helpers.processes import ALONE, INSTRUMENT, PATIENCE, Served, serve

APPS: Final = Path(__file__).parent / "apps"
# What differs between any two runs.
_VARIES: Final = (
    # Our own frames in a traceback of the application's.
    (r'(?m)^[ |]*File "[^"\n]*/otel_sse/[^\n]*\n(?:[ |]{4,}(?!File )\S[^\n]*\n)*', ""),
    # Depends on how long it takes.
    (r"(?m)^INFO:     Waiting for connections to close.*\n", ""),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.,]\d+)?", "TIME"),
    (r"\b\d\d:\d\d:\d\d\b", "TIME"),
    (r"\d\d/\d\d/\d\d\b", "DATE"),
    (r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", "ID"),
    (r"(127\.0\.0\.1|localhost|0\.0\.0\.0):\d+", "HOST:PORT"),
    (r"(process|Process|PID:?) \[?\d+\]?", "process PID"),
    (r"\[\d+\]", "[PID]"),
    (r"0x[0-9a-f]{6,}", "ADDRESS"),
)
# sse-starlette ends its streams before uvicorn logs that it stops, or after.
_STOP_LINE: Final = "INFO:     Shutting down|ERROR:    (ASGI callable returned|Exception in ASGI)"
# Of servers and clients: output as it comes, and metrics twice a second.
_EVERY: Final = {"PYTHONUNBUFFERED": "1", "OTEL_METRIC_EXPORT_INTERVAL": "500"}


async def run_script(
    environment: str,
    script: str,
    *args: str,
    receiver: Receiver,
    instrumented: bool = True,
    **env: str,
) -> tuple[str, str]:
    """What a script of ``apps`` has written to standard output and to standard error."""
    folder = programs(environment)
    launcher = [str(folder / "opentelemetry-instrument")] if instrumented else []
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    process = await asyncio.create_subprocess_exec(
        *(*launcher, str(folder / "python"), str(APPS / script), *args),
        # Where no checkout is: opentelemetry-instrument adds it to the path.
        cwd=APPS,
        env={**inherited, **receiver.environment, **ALONE, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0, errors.decode()
    return output.decode(), errors.decode()


@dataclass(frozen=True)
class Application:
    """What is run.

    Args:
        environment: the name of the one that it runs in.
        command: starts the server; ``{port}`` is its port.
        client: what calls it, a script of ``apps`` that is given the port. It prints ``ready``
            when only the streams are live that the server's stop ends, and ends after that, when
            its input does.
        live: how many of its streams are live when the server is stopped.
        varies: patterns in what is sent and logged that differ from run to run by themselves.
        env: variables of the server.
        kill_seconds: how long after the stop signal the server is killed, where it is.
        stop_line: a pattern of the first line that the server logs at its stop; empty where it
            logs nothing then.

    """

    environment: str
    command: str
    client: str
    live: int
    varies: tuple[tuple[str, str], ...] = ()
    env: dict[str, str] = field(default_factory=dict, repr=False)
    stop_line: str = _STOP_LINE
    kill_seconds: float | None = None

    def same(self, text: str) -> str:
        """``text`` without what differs between any two runs."""
        for pattern, replacement in (*self.varies, *_VARIES):
            text = re.sub(pattern, replacement, text)
        return text


@dataclass(frozen=True)
class Run:
    """What one run looked like from outside; ``stop_log`` are the lines of the server's stop."""

    exchanges: tuple[Exchange, ...] = field(repr=False)
    status: int
    log: tuple[str, ...] = field(repr=False)
    stop_log: tuple[str, ...] = field(repr=False)
    client_output: str

    @property
    def streams(self) -> list[Exchange]:
        return [each for each in self.exchanges if each.is_stream]


@dataclass(frozen=True)
class Runs:
    """The run without, that with, and what the server and the client of the latter exported.

    ``active`` is how many streams were exported as active while ``application.live`` were.
    """

    application: Application
    plain: Run = field(repr=False)
    instrumented: Run = field(repr=False)
    server: Receiver = field(repr=False)
    client: Receiver = field(repr=False)
    active: float


@contextlib.contextmanager
def both(application: Application) -> Iterator[Runs]:
    with Receiver() as server, Receiver() as client:
        plain, _ = _run(application, None, None)
        instrumented, active = _run(application, server, client)
        yield Runs(application, plain, instrumented, server, client, active)


def _run(
    application: Application, server: Receiver | None, client: Receiver | None
) -> tuple[Run, float]:
    folder = programs(application.environment)
    env = {**_EVERY, **application.env}
    active = 0.0
    with serve(application.command, server, APPS, folder, **env) as served:
        asyncio.run(served.started())
        with Tap(served.port) as tap, _client(application, client, folder, tap.port) as reader:
            _read_until_ready(reader)
            tap.wait_for(lambda: len(tap.live) == application.live)
            if server is not None:
                active = _active(server, application.live)
            status, log = _stop(served, application.kill_seconds)
            output, _ = reader.communicate(timeout=PATIENCE)
            assert reader.returncode == 0, output
            tap.wait_for(lambda: not tap.live)
            exchanges = tuple(tap.exchanges)
    lines = tuple(application.same(log).splitlines())
    stop = len(lines)
    if application.stop_line:
        found = (at for at, line in enumerate(lines) if re.match(application.stop_line, line))
        stop = next(found, stop)
        assert stop < len(lines), log
    return Run(exchanges, status, lines[:stop], lines[stop:], output), active


def _stop(served: Served, kill_seconds: float | None) -> tuple[int, str]:
    """Stops the server as ``docker stop`` does; gives its exit status and its log."""
    if kill_seconds is None:
        return served.ended(signal.SIGTERM)
    served.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        served.process.wait(kill_seconds)
        return served.ended()
    return served.ended(signal.SIGKILL)


def _active(receiver: Receiver, wanted: int) -> float:
    """What is exported as active, which is the wanted number soon, or not at all."""

    def value() -> float:
        return receiver.value("sse.server.active_connections")

    with contextlib.suppress(AssertionError):
        receiver.wait_for(lambda: receiver.exports > 2 and value() == wanted, 15)
    return value()


@contextlib.contextmanager
def _client(
    application: Application, receiver: Receiver | None, folder: Path, port: int
) -> Iterator["subprocess.Popen[str]"]:
    around = [str(folder / INSTRUMENT.name)] if receiver is not None else []
    process = subprocess.Popen(
        [*around, str(folder / "python"), *application.client.split(), str(port)],
        env={**os.environ, **(receiver.environment if receiver else {}), **ALONE, **_EVERY},
        cwd=APPS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def _read_until_ready(process: "subprocess.Popen[str]") -> None:
    """Until the client has called all that ends before the server is stopped."""
    lines = []
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line != "ready\n":
        lines.append(line)
    assert line, "".join(lines)
