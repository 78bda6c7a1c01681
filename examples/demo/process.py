"""A server of the demo: an application, started under ``opentelemetry-instrument``."""

import asyncio
import os
import socket
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

# Not resolved: this is the virtual environment's folder.
BIN = Path(sys.executable).parent
EXAMPLES = Path(__file__).parent.parent
START_SECONDS = 30
STOP_SECONDS = 15


class ServerError(Exception):
    """A server did not start or ended on its own; the message has its last output."""


class Server:
    """One process, its last output, and the ``url`` where it listens.

    Args:
        service: what it is called.
        endpoint: where it exports to, over OTLP/HTTP.
        command: what is started; ``{port}`` stands for the port.
        variables: of its environment; there, too.

    """

    def __init__(
        self, service: str, endpoint: str, command: str, variables: Mapping[str, str]
    ) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port = sock.getsockname()[1]
        self.service = service
        self.url = f"http://127.0.0.1:{self._port}"
        program, *arguments = command.format(port=self._port).split()
        self._command = [str(BIN / "opentelemetry-instrument"), str(BIN / program), *arguments]
        self._environment = environment(service, endpoint)
        for name, value in variables.items():
            self._environment[name] = value.format(port=self._port)
        self._output: deque[str] = deque(maxlen=20)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when the server takes connections."""
        # In a session of its own: Ctrl-C is for this process, which then stops the server.
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=EXAMPLES,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._listener = asyncio.create_task(self._listen(self._process))
        for _ in range(START_SECONDS * 10):
            await self.check()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return
        raise self._error(f"took no connection for {START_SECONDS} s")

    async def check(self) -> None:
        """Raises ServerError where the server has ended on its own."""
        if self._process is not None and self._process.returncode is not None:
            await self._listener
            raise self._error(f"has ended with exit status {self._process.returncode}")

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not help."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            except asyncio.TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self._output.append(line.decode(errors="replace").rstrip())

    def _error(self, what: str) -> ServerError:
        return ServerError("\n".join([f"The {self.service} server {what}:", *self._output]))


def environment(service: str, endpoint: str) -> dict[str, str]:
    """The variables by which ``opentelemetry-instrument`` exports often, to ``endpoint`` only."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        # What configures a server of the user's is not for these.
        if not name.startswith(("OTEL_", "SSE_")) or name.startswith("OTEL_PYTHON_SSE_")
    }
    return {
        # Thresholds by which a minute has something to show.
        "OTEL_PYTHON_SSE_STALL_SECONDS": "3",
        "OTEL_PYTHON_SSE_SEGMENT_SECONDS": "10",
        **inherited,
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
        "OTEL_SERVICE_NAME": service,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTEL_BLRP_SCHEDULE_DELAY": "250",
    }
