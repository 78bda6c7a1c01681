"""How long servers take to stop, with us and without: collectors that refuse, hang and answer.

    python benchmarks/stops.py [--streams 20] [--servers uvicorn,hypercorn] [--collectors refuses]

Each server stops by SIGTERM with that many live streams, which its own limit of a second cuts:

- ``none``: without opentelemetry-instrument.
- ``sdk``: with it and contrib's instrumentation, which the SDK exports at its end; us off.
- ``us``: with us alone. ``both``: with us and contrib's.

The seconds of a row are those of the process from the signal to its end.
"""

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.otlp import Receiver, exporter_environment
from helpers.processes import opened, serve

DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
OURS = "sse_starlette,sse_aiohttp_server,sse_aiohttp_client,sse_httpx,sse_requests"
CONTRIB = "aiohttp-client,aiohttp-server,asgi,fastapi,httpx,requests,starlette,system_metrics"
SETUPS = {
    "none": None,
    "sdk": {DISABLED: OURS},
    "us": {DISABLED: CONTRIB},
    "both": {DISABLED: ""},
}
SERVERS = {
    "uvicorn": "uvicorn stop_asgi:app --port {port} --log-level error"
    " --timeout-graceful-shutdown 1",
    "hypercorn": "hypercorn stop_asgi:app -b 127.0.0.1:{port} --graceful-timeout 1",
    "gunicorn": "gunicorn stop_asgi:app -b 127.0.0.1:{port} -k stops_worker.Worker"
    " --graceful-timeout 60 --log-level error",
    "aiohttp": "python stop_aiohttp.py {port} 1",
}
COLLECTORS = ("refuses", "hangs", "answers")


class Collector(NamedTuple):
    environment: dict[str, str]


@contextlib.contextmanager
def collector(kind: str) -> Iterator[Receiver | Collector]:
    if kind == "answers":
        with Receiver() as receiver:
            yield receiver
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "hangs":
            listener.listen(100)
        yield Collector(exporter_environment(f"http://127.0.0.1:{listener.getsockname()[1]}"))


@contextlib.asynccontextmanager
async def stopped(server: str, kind: str, setup: str, streams: int) -> AsyncIterator[str]:
    environment = SETUPS[setup]
    with collector(kind) as receiver:
        # The command runs below opentelemetry-instrument where there is a receiver.
        instrumented = receiver if environment is not None else None
        with serve(SERVERS[server], instrumented, **(environment or {})) as served:  # type: ignore[arg-type]
            await served.started()
            async with opened(served, "/endless", streams):
                began = time.monotonic()
                status, _ = await asyncio.to_thread(served.ended, signal.SIGTERM)
                took = time.monotonic() - began
        row = f"{server:10} {kind:8} {setup:5} {took:6.1f} s, exit status {status}"
        if isinstance(receiver, Receiver) and setup in ("us", "both"):
            row += f", {len(receiver.spans('SSE'))} of {streams} spans"
        yield row


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--collectors", default=",".join(COLLECTORS))
    parser.add_argument("--setups", default=",".join(SETUPS))
    chosen = parser.parse_args()
    for server in chosen.servers.split(","):
        for kind in chosen.collectors.split(","):
            for setup in chosen.setups.split(","):
                async with stopped(server, kind, setup, chosen.streams) as row:
                    print(row, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
