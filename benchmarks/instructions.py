"""Counts the instructions that otel_sse adds, by callgrind: the same on a busy machine, too.

    python benchmarks/instructions.py [--renew]

Runs in an environment of its own with pinned dependencies (``instructions.txt``), by the Python for
which ``instructions.json`` was made; with another Python nothing is compared. Ends with 1 where one
count has grown by more than a tenth. Where objects lie moves some counts by nearly as much, and
differs from folder to folder: then it is counted again with other hashes, and the least of them
counts. ``--renew`` writes the table.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
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
from functools import partial
from pathlib import Path
from typing import Any

from answers import django_app, tornado_request, wsgi_request

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TABLE = HERE / "instructions.json"
ENVIRONMENT = ROOT / ".venv/instructions"
# Instructions are counted within this function of the interpreter, which calls one of ours.
MARK = "sys_call_tracing"
MOST = 1.10
PYTHON = ".".join(map(str, sys.version_info[:3]))

# Two objects: one that is sent twice in a row is known by its identity.
CHUNKS = tuple(b"event: update\ndata: " + each * 170 + b"\n\n" for each in (b"x", b"y"))
EVENT_STREAM = "text/event-stream"

# A path, how often it is called, and how many messages each call sends.
Call = Callable[[str, int, int], Awaitable[None]]

# What is counted: the framework, and how it is called in one region.
COUNTS = {
    "request": ("starlette", "/json", 200, 0),
    "open and close": ("starlette", "/stream", 100, 0),
    "message": ("starlette", "/stream", 1, 1000),
    "aiohttp request": ("aiohttp", "/json", 200, 0),
    "aiohttp open and close": ("aiohttp", "/stream", 100, 0),
    "aiohttp message": ("aiohttp", "/stream", 1, 1000),
    "flask request": ("flask", "/json", 200, 0),
    "flask open and close": ("flask", "/stream", 100, 0),
    "flask message": ("flask", "/stream", 1, 1000),
    "django request": ("django", "/json", 200, 0),
    "tornado request": ("tornado", "/json", 200, 0),
}


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
    if not arguments.renew:
        for seed in (1, 2):
            if not _has_grown(counted, known["added"]):
                break
            again = count(seed)
            counted = {what: min(found, again[what]) for what, found in counted.items()}
    if arguments.renew:
        TABLE.write_text(json.dumps({"python": PYTHON, "added": counted}, indent=2) + "\n")
    for what, instructions in counted.items():
        before = known["added"].get(what)
        line = f"{what:24}{instructions:9,} instructions added"
        if before is not None:
            line += f", {before:,} in the table: {instructions / before - 1:+.1%}"
        print(line)
    if not arguments.renew and _has_grown(counted, known["added"]):
        print(
            f"More than {MOST - 1:.0%} above the table. Where that has a reason:"
            " python benchmarks/instructions.py --renew"
        )
        return 1
    return 0


def _has_grown(counted: dict[str, int], known: dict[str, int]) -> bool:
    return any(found > MOST * known.get(what, found) for what, found in counted.items())


def count(seed: int = 0) -> dict[str, int]:
    """Instructions that each of ``COUNTS`` takes more than in the plain application; ``seed`` is
    Python's for hashes.
    """
    python = prepare()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--quiet", f"--toggle-collect={MARK}"),
                *(f"--dump-after={MARK}", f"--callgrind-out-file={folder}/out"),
                *(str(python), str(Path(__file__).resolve()), "--counted"),
            ],
            check=True,
            env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": str(seed)},
        )
        dumps = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        totals = [int(total(path.read_text())) for path in dumps]
    names = list(COUNTS)
    plain, ours = totals[: len(names)], totals[len(names) : 2 * len(names)]
    return {
        name: round((b - a) / max(COUNTS[name][2:]))
        for name, a, b in zip(names, plain, ours, strict=True)
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

    from otel_sse.frameworks import (
        SSEAiohttpServerInstrumentor,
        SSEDjangoInstrumentor,
        SSEFlaskInstrumentor,
        SSEStarletteInstrumentor,
        SSETornadoInstrumentor,
    )

    loop = asyncio.new_event_loop()
    call = {
        "starlette": starlette_call(),
        "aiohttp": loop.run_until_complete(aiohttp_call(loop)),
        "flask": flask_call(),
        "django": wsgi_call(django_app()),
        "tornado": tornado_call(),
    }

    def measure(region: Callable[[Callable[[], None]], None]) -> None:
        for framework, *arguments in COUNTS.values():
            work = partial(call[framework], *arguments)
            region(lambda work=work: loop.run_until_complete(work()))  # type: ignore[misc]

    measure(lambda work: work())
    # Where a collection comes depends on all that was made before, even on the length of a path:
    # one more or less is a tenth of a request.
    gc.disable()
    measure(lambda work: sys.call_tracing(work, ()))
    gc.enable()
    for kind in (
        SSEStarletteInstrumentor,
        SSEAiohttpServerInstrumentor,
        SSEFlaskInstrumentor,
        SSEDjangoInstrumentor,
        SSETornadoInstrumentor,
    ):
        kind().instrument(
            tracer_provider=TracerProvider(shutdown_on_exit=False),
            meter_provider=MeterProvider(shutdown_on_exit=False),
        )
    measure(lambda work: work())
    gc.disable()
    measure(lambda work: sys.call_tracing(work, ()))
    # What is done at the end is not counted, but takes its time.
    os._exit(0)


def starlette_call() -> Call:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def source(messages: int) -> Any:
        for number in range(messages):
            yield CHUNKS[number % 2]

    async def stream(request: Any) -> StreamingResponse:
        return StreamingResponse(source(request.scope["messages"]), media_type=EVENT_STREAM)

    async def answer(_: Any) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    app = Starlette(routes=[Route("/stream", stream), Route("/json", answer)])

    async def receive() -> Any:
        await asyncio.get_running_loop().create_future()

    async def send(_: Any) -> None:
        pass

    async def call(path: str, times: int, messages: int) -> None:
        for _ in range(times):
            scope = {
                **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}},
                **{"http_version": "1.1", "method": "GET", "scheme": "http", "root_path": ""},
                **{"path": path, "raw_path": path.encode(), "query_string": b""},
                "client": ("127.0.0.1", 50000),
                "server": ("127.0.0.1", 8000),
                "headers": [(b"host", b"localhost"), (b"user-agent", b"counting")],
                "messages": messages,
            }
            await app(scope, receive, send)

    return call


async def aiohttp_call(loop: asyncio.AbstractEventLoop) -> Call:
    from aiohttp import web

    async def stream(request: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM})
        await response.prepare(request)
        for number in range(int(request.query["messages"])):
            await response.write(CHUNKS[number % 2])
        return response

    async def answer(_: Any) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.add_routes([web.get("/stream", stream), web.get("/json", answer)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()

    class Transport(asyncio.Transport):
        def __init__(self, answers: int) -> None:
            super().__init__()
            self.answered = loop.create_future()
            self._remaining = answers

        def write(self, data: Any) -> None:
            self._remaining -= bytes(data).count(b"HTTP/1.1 200")
            if not self._remaining and data.endswith((b"0\r\n\r\n", b"}")):
                self.answered.set_result(None)

        def is_closing(self) -> bool:
            return False

        def close(self) -> None:
            pass

    async def call(path: str, times: int, messages: int) -> None:
        transport, protocol = Transport(times), runner.server()  # type: ignore[misc]
        protocol.connection_made(transport)
        request = f"GET {path}?messages={messages} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        protocol.data_received(request.encode() * times)
        await transport.answered
        protocol.connection_lost(None)
        # Its task ends.
        await asyncio.sleep(0)

    return call


def flask_call() -> Call:
    from flask import Flask, Response, request

    app = Flask(__name__)

    @app.get("/stream")
    def stream() -> Response:
        chunks = itertools.islice(itertools.cycle(CHUNKS), request.environ["messages"])
        return Response(chunks, mimetype=EVENT_STREAM)

    @app.get("/json")
    def answer() -> dict[str, str]:
        return {"status": "ok"}

    return wsgi_call(app)


def wsgi_call(app: Any) -> Call:
    async def call(path: str, times: int, messages: int) -> None:
        request = wsgi_request(app, path, messages=messages)
        for _ in range(times):
            request()

    return call


def tornado_call() -> Call:
    # Once, or what each new class of handlers takes at first would be counted.
    request = tornado_request("/json")

    async def call(_: str, times: int, __: int) -> None:
        for _ in range(times):
            await request()

    return call


if __name__ == "__main__":
    sys.exit(main())
