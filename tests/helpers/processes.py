"""Server processes on real sockets, instrumented from outside, that export to a real receiver."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from helpers.otlp import Receiver
from helpers.raw_client import RawClient
from helpers.servers import free_port

APPS = Path(__file__).resolve().parents[1] / "e2e" / "apps"
BIN = Path(sys.executable).parent
INSTRUMENT = BIN / "opentelemetry-instrument"
# How long a start or an end may take on a machine that is busy, in seconds.
PATIENCE = 150.0
# Contrib's are off, also those of clients and of the system: they would lengthen each start.
CONTRIB = "aiohttp-client,aiohttp-server,asgi,django,fastapi,flask,httpx,requests,starlette,tornado"
ALONE = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": f"{CONTRIB},system_metrics"}


class Served:
    """A server process; its exporters wait for a minute before their first export."""

    def __init__(
        self,
        command: str,
        receiver: Receiver | None,
        folder: Path = APPS,
        programs: Path = BIN,
        **env: str,
    ) -> None:
        self.port = free_port()
        program, *arguments = command.format(port=self.port).split()
        around = [str(programs / INSTRUMENT.name)] if receiver is not None else []
        self.process = subprocess.Popen(
            [*around, str(programs / program), *arguments],
            env={**os.environ, **(receiver.environment if receiver else {}), **ALONE, **env},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A group of its own: whatever happens, none of its workers outlives the test.
            start_new_session=True,
        )

    async def started(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            if self.process.poll() is not None:
                break
            await asyncio.sleep(0.05)
        raise AssertionError(f"it does not listen: {self.ended(signal.SIGKILL)}")

    async def open(self, path: str) -> RawClient:
        """A client that has read the stream's first message."""
        client = await RawClient.get(self.port, path)
        await asyncio.wait_for(client.until(b"data: 1\n\n"), PATIENCE)
        return client

    def ended(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """The exit status, and what was written, once the process has ended."""
        if number is not None:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output


@contextlib.contextmanager
def serve(
    command: str,
    receiver: Receiver | None,
    folder: Path = APPS,
    programs: Path = BIN,
    **env: str,
) -> Iterator[Served]:
    served = Served(command, receiver, folder, programs, **env)
    try:
        yield served
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(served.process.pid, signal.SIGKILL)
        served.process.wait()
        assert served.process.stdout is not None
        served.process.stdout.close()


@contextlib.asynccontextmanager
async def opened(served: Served, path: str, count: int) -> AsyncIterator[list[RawClient]]:
    """That many clients of a stream, each of which has read the first message."""
    clients: list[RawClient] = []
    try:
        while len(clients) < count:
            few = min(100, count - len(clients))
            clients += await asyncio.gather(*(served.open(path) for _ in range(few)))
        yield clients
    finally:
        for client in clients:
            client.writer.transport.abort()
