"""Starts a command with the agent inside, has a stream made, and gathers what was seen."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import psutil

from otel_sse.cli.client import Reading, Request, read
from otel_sse.cli.findings import Finding, problem
from otel_sse.cli.output import Output

FOLDER_VARIABLE: Final = "OTEL_SSE_DOCTOR_FOLDER"
# How long the doctor's own stream is read for at most, in seconds, and how many messages of it.
_READ_SECONDS: Final = 10.0
_READ_MESSAGES: Final = 5
# How long the agent has to see a stream that the doctor has open, in seconds.
_DETECT_SECONDS: Final = 1.0
# How long the command has to notice that the doctor has left its stream, in seconds.
_CLOSE_TIMEOUT: Final = 5.0
_FLUSH_TIMEOUT: Final = 20.0
_STOP_TIMEOUT: Final = 15.0
_TICK: Final = 0.1
_LAUNCHER: Final = "opentelemetry-instrument"
# Not a line of JSON that a console exporter has written.
_ERROR: Final = re.compile(r'(?i)^(?!\s*["{}\[\]]).*(error|exception)')


class CommandError(Exception):
    """The command could not be started."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.summary)
        self.finding = finding


@dataclass
class Seen:
    """What was seen of a command.

    Attributes:
        command: as given.
        processes: the last state that each Python process wrote, see ``agent.py``.
        listening: host and port of each socket it listens on.
        accepted: whether a client was connected to one of them.
        reading: the doctor's own stream, with ``--url``.
        url: the one it asked.
        exit_status: where the command ended by itself.
        output: the last lines that it wrote.
        errors: the last ones that look like an error. A console exporter writes hundreds of lines
            behind them.
        waited: whether a stream was waited for in vain.
        forced: whether it had to be killed.

    """

    command: list[str]
    processes: dict[int, dict[str, Any]] = field(default_factory=dict)
    listening: list[tuple[str, int]] = field(default_factory=list)
    accepted: bool = False
    reading: Reading | None = None
    url: str | None = None
    exit_status: int | None = None
    output: deque[str] = field(default_factory=lambda: deque(maxlen=15))
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=3))
    waited: bool = False
    forced: bool = False
    interrupted: bool = False

    @property
    def stream_seen(self) -> bool:
        """Whether otel-sse has detected a stream, by any evidence."""
        return any(
            process["stream_count"]
            or any(
                name in ("sse.connection.opened", "sse.connection.closed") or name.startswith("SSE")
                for export in process["exports"].values()
                for name in export["names"]
            )
            or any(export["messages"] for export in process["exports"].values())
            for process in self.processes.values()
        )

    def serving(self) -> list[dict[str, Any]]:
        """The processes in which streams were seen; else those that know otel-sse; else all."""
        for wanted in ("stream_count", "exports", "instrumentors"):
            found = [each for each in self.processes.values() if each[wanted]]
            if found:
                return found
        return list(self.processes.values())

    def main_process(self) -> dict[str, Any] | None:
        """The one whose environment is judged."""
        serving = self.serving()
        return serving[-1] if serving else None


def observe(
    command: list[str], url: str | None, seconds: float, agent: Path, output: Output
) -> Seen:
    """Runs ``command`` until a stream of it was seen, or for ``seconds``; then stops it.

    Raises:
        CommandError: there is no such command.
    """
    seen = Seen(command)
    with tempfile.TemporaryDirectory(prefix="otel-sse-doctor-") as name:
        folder = Path(name)
        shutil.copyfile(agent, folder / "sitecustomize.py")
        process = _start(command, folder)
        reader = threading.Thread(target=_keep_output, args=(process, seen), daemon=True)
        reader.start()
        with _interrupted_by(signal.SIGTERM, signal.SIGHUP):
            try:
                _follow(process, folder, url, seconds, seen, output)
            except KeyboardInterrupt:
                seen.interrupted = True
            finally:
                if process.poll() is None:
                    _stop(process, seen)
                else:
                    seen.exit_status = process.returncode
                reader.join(1)
                _collect(folder, seen)
    if seen.exit_status is None:
        # The launcher has become the command. Where that wrote no state of its own it is none of
        # Python's, or is isolated.
        for pid, state in list(seen.processes.items()):
            if any(Path(each).name == _LAUNCHER for each in state["command"][:2]):
                del seen.processes[pid]
    return seen


@contextlib.contextmanager
def _interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """These signals are as Ctrl-C: the command has a session of its own, and would go on."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = [(number, signal.signal(number, interrupt)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        FOLDER_VARIABLE: str(folder),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C is the doctor's, which then stops all of it.
            start_new_session=True,
        )
    except OSError as error:
        raise CommandError(
            problem(
                "command-not-started",
                f"{command[0]} cannot be started: {error.strerror}.",
                "Write the command as in a shell: otel-sse doctor -- opentelemetry-instrument "
                "uvicorn app:app",
            )
        ) from error


def _keep_output(process: subprocess.Popen[bytes], seen: Seen) -> None:
    assert process.stdout is not None
    # In pieces: a line may have no end.
    while piece := process.stdout.readline(4096):
        line = piece.decode(errors="replace").rstrip()
        seen.output.append(line)
        if _ERROR.search(line):
            seen.errors.append(line)


def _follow(
    process: subprocess.Popen[bytes],
    folder: Path,
    url: str | None,
    seconds: float,
    seen: Seen,
    output: Output,
) -> None:
    output.status(f"Starting {' '.join(seen.command)}")

    def look() -> None:
        _collect(folder, seen)
        _see_sockets(process, seen)

    def wait(condition: Callable[[], bool], limit: float) -> bool:
        """Whether it was met, or the command ended, in time."""

        def met() -> bool:
            look()
            return condition() or process.poll() is not None

        return _wait(met, limit)

    if not wait(lambda: bool(seen.listening), seconds):
        seen.waited = True
        return
    if not seen.listening or process.poll() is not None:
        return
    host, port = seen.listening[0]
    output.status(f"It listens on {host}:{port}")
    if url is not None:
        seen.url = _whole_url(url, host, port)
        output.status(f"Opening {seen.url}")
        anyio.run(_open, seen, seconds, look)
        look()
    else:
        output.status(f"Open a stream now, for example: curl -N http://{host}:{port}/...")
        seen.waited = not wait(lambda: seen.stream_seen, seconds)
        if not seen.waited:
            # Some messages of it, too.
            wait(lambda: _messages(seen) >= _READ_MESSAGES, _READ_SECONDS / 5)
    if process.poll() is None:
        if url is not None:
            # A server without an event loop finds out by its next message that this one has gone.
            wait(lambda: not any(each["live"] for each in seen.processes.values()), _CLOSE_TIMEOUT)
        output.status("Exporting")
        (folder / "flush").touch()
        wait(lambda: _flushed(seen), _FLUSH_TIMEOUT)


def _wait(condition: Callable[[], bool], limit: float) -> bool:
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_TICK)
    return True


def _flushed(seen: Seen) -> bool:
    """Whether each living process has exported what it held."""
    return all(
        each["flushed"] is not None or not psutil.pid_exists(pid)
        for pid, each in seen.processes.items()
    )


def _messages(seen: Seen) -> int:
    return sum(stream["messages"] for each in seen.processes.values() for stream in each["streams"])


async def _open(seen: Seen, seconds: float, look: Callable[[], None]) -> None:
    """The doctor's own stream. It stays open until the agent has had time to see it."""
    assert seen.url is not None
    reading = seen.reading = Reading()
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                counted = answered = None
                while True:
                    await anyio.sleep(_TICK)
                    await anyio.to_thread.run_sync(look)
                    # A server that forks may listen long before a worker answers.
                    if reading.status is not None:
                        answered = answered or time.monotonic()
                        if time.monotonic() - answered > _READ_SECONDS:
                            tasks.cancel_scope.cancel()
                    if reading.parser.messages >= _READ_MESSAGES:
                        counted = counted or time.monotonic()
                        waited = time.monotonic() - counted
                        if _messages(seen) >= _READ_MESSAGES or waited > _DETECT_SECONDS:
                            tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await read(Request(seen.url, verify=False), reading=reading)
            tasks.cancel_scope.cancel()


def _whole_url(url: str, host: str, port: int) -> str:
    if "://" in url:
        return url
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/{url.lstrip('/')}"


def _see_sockets(process: subprocess.Popen[bytes], seen: Seen) -> None:
    try:
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return
    ports: dict[int, str] = {}
    connected: set[int] = set()
    for each in family:
        try:
            sockets = each.net_connections(kind="tcp")
        except psutil.Error:
            continue
        for one in sockets:
            if one.status == psutil.CONN_LISTEN:
                ports[one.laddr.port] = one.laddr.ip
            elif one.status == psutil.CONN_ESTABLISHED:
                connected.add(one.laddr.port)
    if ports:
        any_address = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        seen.listening = [(any_address.get(ip, ip), port) for port, ip in ports.items()]
    seen.accepted |= bool(connected & set(ports))


def _collect(folder: Path, seen: Seen) -> None:
    for path in folder.glob("*.json"):
        state = json.loads(path.read_bytes())
        seen.processes[state["pid"]] = state


def _stop(process: subprocess.Popen[bytes], seen: Seen) -> None:
    """SIGTERM to the command, as a supervisor would; SIGKILL to all of it where that is not
    enough.
    """
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        seen.forced = True
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        process.wait()
