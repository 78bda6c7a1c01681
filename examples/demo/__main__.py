"""The demo: two servers under ``opentelemetry-instrument``, real clients, and what is reported.

The servers export OTLP to a receiver in this process. Where ``OTEL_EXPORTER_OTLP_ENDPOINT`` is
set, the receiver sends everything there too. ``DEMO_SECONDS`` is how long it runs.
"""

import asyncio
import os
import signal
import sys
from collections import Counter
from time import monotonic

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.util.re import parse_env_headers
from rich.console import Console
from rich.live import Live
from rich.text import Text

from demo import alerts
from demo.crowd import THRESHOLD, attach_to_reference, attach_to_starlette
from demo.process import Server, ServerError
from demo.receiver import Forward, Receiver, attributes
from demo.table import COLOURS, closed_line, metrics_table
from otel_sse import semconv

REFRESH_SECONDS = 0.25
SNAPSHOT_SECONDS = 5.0
# How long before the end the servers are stopped: they drain first.
LAST_SECONDS = 3.0

REFERENCE = {
    "SSE_SERVER_PORT": "{port}",
    # A minute shows what takes a slow client longer otherwise.
    "SSE_SERVER_QUEUE_LENGTH": "50",
    "SSE_MAX_CONNECTIONS": str(THRESHOLD),
    # The dashboard's own streams are not the crowd's.
    "OTEL_PYTHON_SSE_EXCLUDED_URLS": "/status/events",
    # The machine's own metrics are not shown, and reading them delays the server's.
    "OTEL_PYTHON_SYSTEM_METRICS_EXCLUDED_METRICS": "system.*",
}


class Demo:
    """The servers, what came of them, and where a person sees it."""

    def __init__(self, console: Console, here: str) -> None:
        self.console = console
        self.reference = Server("reference", here, "python -m server", REFERENCE)
        uvicorn = "uvicorn demo.starlette_app:app --log-level warning"
        uvicorn += " --timeout-graceful-shutdown 1 --port {port}"
        self.starlette = Server("starlette", here, uvicorn, {})
        self.servers = (self.reference, self.starlette)
        self.alerts: list[str] = []

    def print_addresses(self) -> None:
        reference = self.reference.url
        for what, how in (
            ("The dashboard", f"{reference}/"),
            ("Its figures", f"curl {reference}/status"),
            ("A stream", f"curl -N '{reference}/events?topic=prices'"),
            ("Another", f"curl -N {self.starlette.url}/ticker"),
        ):
            self.print(f"  {what:<14} {how}")

    def print(self, line: str | Text) -> None:
        self.console.print(line, soft_wrap=True)

    async def play(self, seconds: float, stopped: asyncio.Event) -> None:
        """Serves and reads streams, then stops the servers while their clients are still there.

        Raises:
            ServerError: a server did not start, or has ended on its own.

        """
        clients: list[asyncio.Task[None]] = []

        async def act() -> None:
            await asyncio.gather(*(server.start() for server in self.servers))
            self.print_addresses()
            end = monotonic() + seconds - LAST_SECONDS
            url = self.reference.url
            for work in (
                attach_to_reference(url, seconds),
                attach_to_starlette(self.starlette.url),
                alerts.watch(url, self.print, self.alerts),
            ):
                clients.append(asyncio.create_task(work))
            while monotonic() < end:
                await asyncio.sleep(REFRESH_SECONDS)
                for server in self.servers:
                    await server.check()
                for client in clients:
                    if client.done():
                        client.result()

        acting, stopping = asyncio.create_task(act()), asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({acting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if acting.done():
                acting.result()
        finally:
            acting.cancel()
            stopping.cancel()
            await asyncio.gather(acting, stopping, return_exceptions=True)
            await asyncio.gather(*(server.stop() for server in self.servers))
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def main(seconds: float) -> int:
    """Runs everything; returns the exit status."""
    console = Console(highlight=False)
    stopped = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    reasons: Counter[str] = Counter()

    def closed(service: str, record: LogRecord) -> None:
        reasons[attributes(record.attributes)[semconv.CLOSE_REASON]] += 1
        console.print(closed_line(service, record), soft_wrap=True)

    forward = None
    if endpoint := os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        headers = parse_env_headers(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
        forward = Forward(endpoint, headers, lambda text: console.print(text, soft_wrap=True))
    receiver = Receiver(closed, forward)
    demo = Demo(console, await receiver.start())
    console.print(f"Two servers and their clients, for {seconds:g} s; Ctrl-C ends it sooner.")
    shown = asyncio.create_task(show(console, receiver))
    try:
        await demo.play(seconds, stopped)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shown.cancel()
        await asyncio.wait({shown})
        await receiver.stop()
        if forward is not None:
            await forward.stop()
    summarise(console, receiver, reasons, demo.alerts, forward)
    return 0


async def show(console: Console, receiver: Receiver) -> None:
    """Keeps the table up to date: in its place on a terminal, else as a snapshot now and then."""
    if not console.is_interactive:
        while True:
            await asyncio.sleep(SNAPSHOT_SECONDS)
            console.print(metrics_table(receiver.services))
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(metrics_table(receiver.services), refresh=True)
            await asyncio.sleep(REFRESH_SECONDS)


def summarise(
    console: Console,
    receiver: Receiver,
    reasons: Counter[str],
    alerted: list[str],
    forward: Forward | None,
) -> None:
    """Prints what has been received, and where it was sent."""
    metrics = {name for service in receiver.services.values() for name in service.metrics}
    console.print(metrics_table(receiver.services))
    console.print("\nConnections that ended, by reason:")
    for reason, count in reasons.most_common():
        console.print(f"{count:>6}  {reason}", style=COLOURS[reason])
    console.print("Alerts:", ", ".join(dict.fromkeys(alerted)) or "none")
    for what, names in (("Spans", receiver.spans), ("Log events", receiver.events)):
        console.print(f"{what} received:")
        for name, count in sorted(names.items()):
            console.print(f"{count:>6}  {name}")
    console.print(f"{len(metrics)} metrics received:", ", ".join(sorted(metrics)) + ".")
    if forward is None:
        console.print(
            "\nNo collector was used: all of it stayed in this process. To send it to one too:\n"
            "  OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 make demo"
        )
    else:
        console.print(
            f"\nSent to {forward.endpoint} too: {forward.sent} requests; {forward.failed} failed."
        )


def duration(text: str) -> float:
    """The seconds of ``DEMO_SECONDS``; ends the process where it is no number of them."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not LAST_SECONDS < seconds < 86_400:
        sys.exit(f"DEMO_SECONDS={text!r}: it takes a number of seconds above {LAST_SECONDS:g}")
    return seconds


if __name__ == "__main__":
    sys.exit(asyncio.run(main(duration(os.environ.get("DEMO_SECONDS", "60")))))
