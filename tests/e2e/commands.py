"""``otel-sse`` as a process of its own."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

BIN = Path(sys.executable).parent
OTEL_SSE = BIN / "otel-sse"
# Less than pytest's time-out; a busy machine starts a server in a minute.
PATIENCE = 220.0


class Done(NamedTuple):
    """How it ended, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What ``--json`` has printed."""
        return dict(json.loads(self.out))

    @property
    def codes(self) -> set[str]:
        """The codes of all findings."""
        return {each["code"] for each in self.document["findings"]}

    @property
    def problems(self) -> set[str]:
        """The codes of the problems."""
        return {each["code"] for each in self.document["findings"] if each["level"] == "problem"}

    def finding(self, code: str) -> dict[str, str]:
        """The first of that code."""
        return next(dict(each) for each in self.document["findings"] if each["code"] == code)

    @property
    def stages(self) -> dict[str, str]:
        """Of a command, each stage's status."""
        return {each["name"]: each["status"] for each in self.document["stages"]}

    def __str__(self) -> str:
        return f"exit {self.status}\n{self.out}\n{self.err}"


def environment(**env: str) -> dict[str, str]:
    """This process's, without what configures telemetry or colours."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OTEL_") and name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
    }
    return {**inherited, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **env}


async def otel_sse(
    *arguments: str,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    interrupt_at: str = "",
    on_line: Callable[[str], None] | None = None,
) -> Done:
    """Runs it to its end.

    Args:
        arguments: of ``otel-sse``.
        cwd: where it runs.
        env: variables beside ``environment``.
        interrupt_at: it gets a Ctrl-C when standard error or output has a line with this text.
        on_line: called with each line of both.

    """
    process = await asyncio.create_subprocess_exec(
        OTEL_SSE,
        *arguments,
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )

    async def lines(stream: asyncio.StreamReader | None) -> str:
        assert stream is not None
        found = []
        async for raw in stream:
            line = raw.decode()
            found.append(line)
            if on_line is not None:
                on_line(line)
            if interrupt_at and interrupt_at in line:
                process.send_signal(signal.SIGINT)
        return "".join(found)

    try:
        out, err = await asyncio.wait_for(
            asyncio.gather(lines(process.stdout), lines(process.stderr)), PATIENCE
        )
        return Done(await process.wait(), out, err)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
