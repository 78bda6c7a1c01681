"""Counts the instructions that otel_sse adds, by callgrind: the same on a busy machine, too.

    python benchmarks/instructions.py [--renew]

Runs in an environment of its own with pinned dependencies (``instructions.txt``), by the Python for
which ``instructions.json`` was made; with another Python nothing is compared. Ends with 1 where one
count has grown by more than a tenth. ``--renew`` writes the table.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TABLE = HERE / "instructions.json"
ENVIRONMENT = ROOT / ".venv/instructions"
# Instructions are counted within this function of the interpreter, which calls one of ours.
MARK = "sys_call_tracing"
MOST = 1.10
PYTHON = ".".join(map(str, sys.version_info[:3]))

# What is counted, and how many there are of it in one region.
COUNTS = {"request": 200, "open and close": 100, "message": 1000}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--renew", action="store_true", help="write the table")
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.counted:
        run_regions()
        return 0
    known = json.loads(TABLE.read_text())
    if not arguments.renew and known["python"] != PYTHON:
        print(f"The table is of Python {known['python']}, this is {PYTHON}: nothing to compare.")
        return 0
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed; it counts the instructions")
    counted = count()
    if arguments.renew:
        TABLE.write_text(json.dumps({"python": PYTHON, "added": counted}, indent=2) + "\n")
    worse = False
    for what, instructions in counted.items():
        before = known["added"].get(what)
        line = f"{what:16}{instructions:9,} instructions added"
        if before is not None:
            ratio = instructions / before
            worse |= ratio > MOST
            line += f", {before:,} in the table: {ratio - 1:+.1%}"
        print(line)
    if worse and not arguments.renew:
        print(
            f"More than {MOST - 1:.0%} above the table. Where that has a reason:"
            " python benchmarks/instructions.py --renew"
        )
        return 1
    return 0


def count() -> dict[str, int]:
    """Instructions that each of ``COUNTS`` takes more than in the plain application."""
    python = prepare()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--quiet", f"--toggle-collect={MARK}"),
                *(f"--dump-after={MARK}", f"--callgrind-out-file={folder}/out"),
                *(str(python), str(Path(__file__).resolve()), "--counted"),
            ],
            check=True,
            env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"},
        )
        dumps = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        totals = [int(total(path.read_text())) for path in dumps]
    names = list(COUNTS)
    plain, ours = totals[: len(names)], totals[len(names) : 2 * len(names)]
    return {
        name: round((b - a) / COUNTS[name]) for name, a, b in zip(names, plain, ours, strict=True)
    }


def total(dump: str) -> str:
    found = re.search(r"^(?:totals|summary): (\d+)", dump, re.MULTILINE)
    if found is None:
        raise SystemExit("callgrind has written no total")
    return found[1]


def prepare() -> Path:
    """The Python of the environment, with the wheel that is installed here."""
    python = ENVIRONMENT / "bin/python"
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet"]
    if not python.exists():
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(ENVIRONMENT)], check=True
        )
        subprocess.run(
            [*uv, "--python", str(python), "--requirements", str(HERE / "instructions.txt")],
            check=True,
        )
    (wheel,) = (ROOT / ".build").glob("*.whl")
    subprocess.run(
        [*uv, "--python", str(python), "--no-deps", "--reinstall", "--offline", str(wheel)],
        check=True,
    )
    return python


# --- in that environment, below valgrind -----------------------------------------------------


def run_regions() -> None:
    """One region for each of ``COUNTS``, plain, and then with otel_sse."""
    import time

    # What is sampled, what is due and which send is slow goes by the time, and every run has
    # another one. Ticks of a microsecond, more or less.
    ticks = random.Random(0)
    steps = itertools.cycle([ticks.uniform(0.5e-6, 1.5e-6) for _ in range(9973)])
    time.perf_counter = itertools.accumulate(steps, initial=1.0).__next__  # type: ignore[assignment]

    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    from otel_sse.frameworks import SSEStarletteInstrumentor

    chunk = b"event: update\ndata: " + b"x" * 170 + b"\n\n"
    messages = 0

    async def source() -> Any:
        for _ in range(messages):
            yield chunk

    async def stream(_: Any) -> StreamingResponse:
        return StreamingResponse(source(), media_type="text/event-stream")

    async def answer(_: Any) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    app = Starlette(routes=[Route("/stream", stream), Route("/json", answer)])
    loop = asyncio.new_event_loop()

    async def receive() -> Any:
        await loop.create_future()

    async def send(_: Any) -> None:
        pass

    async def call(path: str, times: int) -> None:
        for _ in range(times):
            scope = {
                **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}},
                **{"http_version": "1.1", "method": "GET", "scheme": "http", "root_path": ""},
                **{"path": path, "raw_path": path.encode(), "query_string": b""},
                "client": ("127.0.0.1", 50000),
                "server": ("127.0.0.1", 8000),
                "headers": [(b"host", b"localhost"), (b"user-agent", b"counting")],
            }
            await app(scope, receive, send)

    def run(work: Callable[[], Awaitable[None]]) -> None:
        loop.run_until_complete(work())

    def measure(warm: bool) -> None:
        nonlocal messages
        region = run if warm else lambda work: sys.call_tracing(run, (work,))
        messages = 0
        region(lambda: call("/json", COUNTS["request"]))
        region(lambda: call("/stream", COUNTS["open and close"]))
        messages = COUNTS["message"]
        region(lambda: call("/stream", 1))

    measure(warm=True)
    measure(warm=False)
    SSEStarletteInstrumentor().instrument(
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider(shutdown_on_exit=False),
    )
    measure(warm=True)
    measure(warm=False)
    # What is done at the end is not counted, but takes its time.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
