"""``otel-sse probe URL``: reads an event stream as a client does, shows it, and judges it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from otel_sse.cli import crowd, resume, rhythm
from otel_sse.cli.client import Item, OnItem, Reading, Request, read
from otel_sse.cli.findings import Report
from otel_sse.cli.judge import judge
from otel_sse.cli.output import Output, seconds, size
from otel_sse.cli.parser import Comment

_MAX_SHOWN: Final = 500
_RECONNECT_AFTER: Final = 1.0
_LONGEST_RECONNECT: Final = 3.0
_LATENESS_TICK: Final = 0.02


def run(args: argparse.Namespace, output: Output) -> Report:
    """Probes as the arguments ask; after Ctrl-C the report is of what was read so far."""
    return anyio.run(_probe, args, output)


@dataclass
class _Probe:
    """What has been read so far; it holds also where the reading is cancelled."""

    request: Request
    args: argparse.Namespace
    output: Output
    first: Reading = field(default_factory=Reading)
    # Only of a resumed stream.
    second: Reading | None = None
    steady: Reading = field(default_factory=Reading)
    # Only of a crowd.
    readings: list[Reading] = field(default_factory=list)
    # How late this process's own event loop was at most, in seconds.
    late: float = 0.0
    # Ends the reading.
    stop: Callable[[], None] = lambda: None

    async def watch_lateness(self) -> None:
        while True:
            began = perf_counter()
            await anyio.sleep(_LATENESS_TICK)
            self.late = max(self.late, perf_counter() - began - _LATENESS_TICK)


async def _probe(args: argparse.Namespace, output: Output) -> Report:
    request = Request(
        url=args.url,
        method=args.method or ("POST" if args.data is not None else "GET"),
        headers=tuple(args.header),
        body=args.data or b"",
        http2=args.http2,
        verify=not args.insecure,
    )
    report = Report("probe")
    probe = _Probe(request, args, output)
    # What is loaded only now is not to be measured.
    async with request.client():
        pass
    async with bounded(args.seconds, report) as tasks:
        probe.stop = tasks.cancel_scope.cancel
        tasks.start_soon(probe.watch_lateness)
        if args.clients > 1:
            await _crowd(probe)
        elif args.resume:
            await _resume(probe)
        else:
            await read(
                request,
                last_event_id=args.last_event_id,
                on_item=_shower(probe),
                max_messages=args.messages,
                reading=probe.first,
            )
    _report(probe, report)
    return report


def _report(probe: _Probe, report: Report) -> None:
    first, args = probe.first, probe.args
    buffering = rhythm.judge(
        first.arrivals,
        first.samples,
        started=first.began,
        ended=first.ending == "ended",
        late=probe.late,
    )
    report.findings += judge(first, buffering)
    resumed = None
    if args.resume:
        if probe.second is not None:
            resumed = resume.compare(first, probe.second, probe.steady)
        if resumed is not None or not first.parser.last_id:
            # Else it was interrupted before it came back.
            report.findings += resume.judge_resume(resumed, first)
    many = None
    if args.clients > 1:
        many = crowd.Crowd(args.clients)
        for each in probe.readings:
            # One that Ctrl-C has come before was not begun.
            if each.duration:
                many.add(each)
        report.findings += many.judge()
    report.data = {
        "url": args.url,
        **_as_json(first, buffering),
        "resume": dataclasses.asdict(resumed) if resumed else None,
        "clients": many.as_json() if many else None,
    }
    _show(probe.output, first, buffering)
    if resumed is not None:
        _show_resume(probe.output, resumed)
    if many is not None:
        _show_crowd(probe.output, many)


@contextlib.asynccontextmanager
async def bounded(limit: float, report: Report) -> AsyncIterator[TaskGroup]:
    """Ends what runs in it after ``limit`` seconds, or at Ctrl-C, which the report then records.

    Gives a group for tasks that end with it.
    """
    with anyio.move_on_after(limit) as scope:
        async with anyio.create_task_group() as tasks:

            async def interrupted() -> None:
                with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    async for _ in signals:
                        report.interrupted = True
                        scope.cancel()

            tasks.start_soon(interrupted)
            yield tasks
            tasks.cancel_scope.cancel()


async def _crowd(probe: _Probe) -> None:
    clients, began = probe.args.clients, perf_counter()
    console = probe.output.progress
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[seen]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    bar = progress.add_task(f"{clients} clients", total=probe.args.seconds, seen="")

    async def draw() -> None:
        while True:
            open_now = sum(each.is_stream and not each.duration for each in probe.readings)
            messages = sum(each.parser.messages for each in probe.readings)
            seen = f"{open_now} streams, {messages} messages"
            progress.update(bar, completed=perf_counter() - began, seen=seen)
            await anyio.sleep(0.2)

    with progress:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(draw)
            await crowd.run(
                probe.request, clients, probe.first, probe.readings.extend, probe.args.messages
            )
            tasks.cancel_scope.cancel()


async def _resume(probe: _Probe) -> None:
    """Reads, leaves after half of the time, and comes back with the last id; another connection
    stays open through both, so that what is lost can be known.
    """
    request, args = probe.request, probe.args
    show = _shower(probe)
    async with anyio.create_task_group() as tasks:

        async def stay() -> None:
            await read(request, last_event_id=args.last_event_id, reading=probe.steady)

        tasks.start_soon(stay)
        with anyio.move_on_after(args.seconds / 2):
            await read(
                request,
                last_event_id=args.last_event_id,
                on_item=show,
                max_messages=args.messages,
                reading=probe.first,
            )
        if probe.first.parser.last_id:
            retry = probe.first.parser.retry
            wait = _RECONNECT_AFTER if retry is None else retry / 1000
            wait = min(wait, _LONGEST_RECONNECT, args.seconds / 4)
            probe.output.status(
                f"Disconnected; reconnecting in {wait:g} s with Last-Event-ID "
                f"{probe.first.parser.last_id}"
            )
            await anyio.sleep(wait)
            probe.second = Reading()
            await read(
                request,
                last_event_id=probe.first.parser.last_id,
                on_item=show,
                max_messages=args.messages,
                reading=probe.second,
            )
        tasks.cancel_scope.cancel()


def _shower(probe: _Probe) -> OnItem:
    """Shows each message and comment as it comes."""
    began = perf_counter()

    def show(item: Item) -> None:
        if probe.args.quiet:
            return
        since = f"{perf_counter() - began:8.3f} s  "
        if isinstance(item, Comment):
            probe.output.line(f"{since}: {item.text[:_MAX_SHOWN]}", "dim")
        else:
            data = item.data[:_MAX_SHOWN].replace("\n", "\\n")
            more = f" ... ({size(item.size)})" if len(item.data) > _MAX_SHOWN else ""
            name = f"{item.type} id={item.id}" if item.id else item.type
            probe.output.line(f"{since}{name}  {data}{more}")
        if probe.output.closed:
            probe.stop()

    return show


def _as_json(reading: Reading, buffering: rhythm.Buffering) -> dict[str, Any]:
    parser = reading.parser
    return {
        "response": {
            "status": reading.status,
            "http_version": reading.http_version,
            "headers": reading.headers,
        },
        "seconds": {
            "connected": reading.connected,
            "headers": reading.headers_after,
            "first_byte": reading.first_byte,
            "first_message": reading.first_message,
            "duration": reading.duration,
            "longest_silence": reading.longest_silence,
        },
        "counts": {
            "messages": parser.messages,
            "comments": parser.comments,
            "trace_comments": parser.trace_comments,
            "ids": parser.ids,
            "retries": parser.retries,
            "bytes": reading.bytes,
            "wire_bytes": reading.wire_bytes,
            "types": parser.types,
        },
        "retry": parser.retry,
        "last_event_id": parser.last_id,
        "gaps": reading.gaps.as_json(),
        "delivery": reading.delivery.as_json(),
        "buffering": dataclasses.asdict(buffering),
        "faults": {code: dataclasses.asdict(each) for code, each in parser.faults.items()},
        "ending": {
            "how": reading.ending,
            "error": reading.error or None,
            "within_message": reading.within_message,
        },
    }


def _show(output: Output, reading: Reading, buffering: rhythm.Buffering) -> None:
    parser = reading.parser
    output.line("")
    if reading.status is not None:
        kind = reading.headers.get("content-type", "no Content-Type")
        coding = f", coded by {reading.coding}" if reading.coding else ""
        output.stage(
            "ok" if reading.is_stream else "problem",
            "Response",
            f"{reading.status}, {reading.http_version}, {kind}{coding}",
        )
    if reading.is_stream:
        output.stage(
            "note",
            "Times",
            f"connected {seconds(reading.connected)}, headers {seconds(reading.headers_after)}, "
            f"first message {seconds(reading.first_message)}",
        )
        kinds = ", ".join(f"{count} {kind}" for kind, count in list(parser.types.items())[:5])
        output.stage(
            "note",
            "Messages",
            f"{parser.messages} ({kinds or 'none'}), {size(reading.bytes)}, "
            f"{parser.ids} with id, retry {'-' if parser.retry is None else parser.retry}",
        )
        gaps = reading.gaps
        output.stage(
            "note",
            "Gaps",
            f"p50 {seconds(gaps.quantile(0.5))}, p99 {seconds(gaps.quantile(0.99))}, "
            f"max {seconds(gaps.largest)}",
        )
        output.stage(
            "note",
            "Keep-alives",
            f"{parser.comments} comments, longest silence {seconds(reading.longest_silence)}",
        )
        if reading.delivery.count:
            output.stage(
                "note",
                "Delivery",
                f"p50 {seconds(reading.delivery.quantile(0.5))}, "
                f"max {seconds(reading.delivery.largest)} from write to receipt",
            )
        status = {"none": "ok", "unknown": "skipped", "suspected": "warning"}
        output.stage(status.get(buffering.state, "problem"), "Buffering", buffering.detail)
    output.stage("note", "Ending", _ending(reading))


def _ending(reading: Reading) -> str:
    after = f"after {seconds(reading.duration)}"
    return {
        "ended": f"the server ended the stream {after}",
        "cut": f"the connection broke {after}: {reading.error}",
        "stopped": f"this client closed the connection {after}",
        "refused": "no event stream came",
        "failed": f"no response came: {reading.error}",
    }[reading.ending]


def _show_resume(output: Output, found: resume.Resume) -> None:
    lost = "not known" if found.lost is None else f"{found.lost}"
    output.stage(
        "problem" if found.repeated or found.lost else "ok",
        "Resume",
        f"after id {found.last_event_id} came {found.first_id or 'nothing'}: "
        f"{found.repeated} repeated, {lost} lost",
    )


def _show_crowd(output: Output, many: crowd.Crowd) -> None:
    endings = ", ".join(f"{count} {how}" for how, count in many.endings.items())
    output.line("")
    output.line(f"{many.asked} clients: {endings}", "bold")
    output.line(f"  {'':<16}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}")
    for name, each in (
        ("connected", many.connected),
        ("headers", many.headers),
        ("first message", many.first_message),
        ("gap", many.gaps),
        ("delivery", many.delivery),
    ):
        if each.count:
            columns = (each.quantile(0.5), each.quantile(0.9), each.quantile(0.99), each.largest)
            output.line(f"  {name:<16}" + "".join(f"{seconds(value):>10}" for value in columns))
