"""What otel_sse costs: CPU for each message and request, memory for each live connection.

Messages of servers are measured by turns: a variant and the plain application share a process, and
each has a few milliseconds in every round (see ``turns``). Requests and clients are measured in
processes of their own, in random order. Times are CPU of the whole process with all its threads,
never wall time, unless it says so. A goal is for the code, so it is held against the fastest turns,
in which the machine did nothing else; the rounds' median stands beside it. Nothing fails here: a
goal is printed as met or not met.

``python benchmarks/bench.py [--quick] [--tcp] [--only SECTION ...] [--against WHEEL]``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from statistics import median
from typing import Any

import clients as readers
import inprocess
import sockets
from turns import Micros
from variants import ALL, BARE, CONTRIB, CONTRIB_QUIET, FLOOR, OURS, PLAIN, UNSAMPLED

# The goals: us of CPU, bytes.
MESSAGE_US = 1.0
MESSAGE_ALL_US = 3.5
SHARE_OF_CONTRIB = 1 / 20
# Beyond what frames take that only pass on.
REQUEST_US = 1.0
READ_US = 1.5
CONNECTION_BYTES = 2048
KEPT_BYTES = 1024
# With 10,000 live connections: ms of a collection, ms that it holds the event loop up, and the cost
# of a message as a multiple of that with one.
COLLECTION_MS = 25.0
HELD_MS = 5.0
GROWTH = 2.0

_LIBRARIES = (
    *("opentelemetry-sdk", "opentelemetry-instrumentation-asgi", "starlette", "uvicorn"),
    *("uvloop", "httptools", "aiohttp"),
)
_WORKERS: dict[str, Callable[..., Any]] = {
    work.__name__: work
    for work in (
        sockets.starlette_streams,
        sockets.aiohttp_streams,
        inprocess.starlette_json,
        inprocess.aiohttp_json,
        inprocess.flask_json,
        inprocess.django_json,
        inprocess.litestar_json,
        inprocess.tornado_json,
        inprocess.memory,
        inprocess.crowd,
        readers.httpx_stream,
        readers.aiohttp_client_stream,
        readers.httpx_json,
        readers.aiohttp_client_json,
    )
}


def measure(worker: Callable[..., Any], *args: Any, build: str | None = None, **kwargs: Any) -> Any:
    """The figures of ``worker``, run in a fresh process without OpenTelemetry's environment.

    ``build`` is a folder with another build of otel_sse than the installed one.
    """
    task = json.dumps([worker.__name__, args, kwargs])
    environment = {name: value for name, value in os.environ.items() if name[:5] != "OTEL_"}
    if build is not None:
        environment["PYTHONPATH"] = build
    done = subprocess.run(
        [sys.executable, __file__, "--worker", task],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


class Added:
    """CPU of a variant beside that of the plain application, in us, round by round."""

    def __init__(self, us: list[float], plain: list[float]) -> None:
        self.us = us
        self.plain = plain
        self.fastest = min(us) - min(plain)
        self.median = median(a - b for a, b in zip(us, plain, strict=True))


def by_turns(
    worker: Callable[..., Micros],
    variants: Sequence[str],
    quick: bool,
    **kwargs: Any,
) -> dict[str, Added]:
    """The rounds of some processes for each variant: no two of them lie in memory alike."""
    processes, rounds = (1, 200) if quick else (5, 400)
    found = {}
    for variant in variants:
        each = [measure(worker, variant, rounds, **kwargs) for _ in range(processes)]
        found[variant] = Added(
            [us for one in each for us in one[variant]], [us for one in each for us in one[PLAIN]]
        )
    return found


def by_processes(
    worker: Callable[..., dict[str, float]], variants: Sequence[str], count: int, rounds: int
) -> dict[str, Added]:
    us: dict[str, list[float]] = {variant: [] for variant in (PLAIN, *variants)}
    for _ in range(rounds):
        for variant in random.sample(list(us), len(us)):
            us[variant].append(measure(worker, variant, count)["us"])
    return {variant: Added(us[variant], us[PLAIN]) for variant in variants}


def show(found: dict[str, Added], goals: dict[str, float]) -> None:
    """A line for each variant, with its goal where it has one."""
    print(f"  {'':32}{'plain':>8}{'with it':>9}{'adds':>8}{'median of rounds':>18}")
    for variant, added in found.items():
        line = f"  {variant:32}{min(added.plain):8.2f}{min(added.us):9.2f}"
        line += f"{added.fastest:+8.2f}{added.median:+18.2f}"
        if variant in goals:
            line += f"   {against_goal(added.fastest, goals[variant], 'us')}"
        print(line)


def against_goal(value: float, goal: float, unit: str) -> str:
    return f"goal <= {goal:g} {unit}: {'met' if value <= goal else 'not met'}"


def starlette(quick: bool, tcp: bool) -> None:
    """CPU of each message, Starlette on uvicorn."""
    variants = (OURS, ALL, CONTRIB, CONTRIB_QUIET)
    found = by_turns(sockets.starlette_streams, variants, quick, tcp=tcp)
    print("us of CPU a message of 200 bytes, one stream as fast as it goes")
    show(found, {OURS: MESSAGE_US, ALL: MESSAGE_ALL_US})
    share = found[OURS].fastest / found[CONTRIB].fastest
    print(
        f"  ours / contrib's, of what each adds: 1/{1 / share:.1f}; "
        f"goal <= 1/{1 / SHARE_OF_CONTRIB:.0f}: "
        f"{'met' if share <= SHARE_OF_CONTRIB else 'not met'}"
    )


def aiohttp(quick: bool, tcp: bool) -> None:
    """CPU of each message, aiohttp.web; contrib's reports none."""
    print("us of CPU a message of 200 bytes, one stream as fast as it goes")
    show(by_turns(sockets.aiohttp_streams, (OURS,), quick, tcp=tcp), {OURS: MESSAGE_US})


def requests(quick: bool, tcp: bool) -> None:
    """CPU of a request that is no stream, without sockets."""
    rounds, turns = (6, 100) if quick else (20, 200)
    for name, worker in (
        ("Starlette", inprocess.starlette_json),
        ("aiohttp.web", inprocess.aiohttp_json),
        ("Flask", inprocess.flask_json),
        ("Django, by WSGI", inprocess.django_json),
        ("Litestar", inprocess.litestar_json),
        ("Tornado", inprocess.tornado_json),
    ):
        print(f"us of CPU a request, answered with JSON: {name}")
        found = by_processes(worker, (FLOOR, OURS), turns, rounds)
        show(found, {OURS: round(found[FLOOR].fastest + REQUEST_US, 2)})


def clients(quick: bool, tcp: bool) -> None:
    """CPU of each message that is read, and of a response that is no stream."""
    rounds, messages, responses = (2, 50_000, 2_000) if quick else (8, 200_000, 10_000)
    for library, streams, answers in (
        ("httpx, blocking", readers.httpx_stream, readers.httpx_json),
        ("aiohttp's client", readers.aiohttp_client_stream, readers.aiohttp_client_json),
    ):
        for what, worker, n, goal in (
            ("a message of 200 bytes, read by lines", streams, messages, READ_US),
            ("a request, answered with JSON", answers, responses, REQUEST_US),
        ):
            print(f"us of CPU {what}: {library}")
            show(by_processes(worker, (OURS, CONTRIB), n, rounds), {OURS: goal})


def memory(quick: bool, tcp: bool) -> None:
    """Bytes of a live connection, beside its SDK span."""
    connections, few, many = 500 if quick else 2_000, 3, 500
    figures = {
        variant: measure(inprocess.memory, variant, connections, few, many)
        for variant in (PLAIN, BARE, OURS, UNSAMPLED)
    }
    plain = figures.pop(PLAIN)
    print(f"bytes a connection, {connections} live, by tracemalloc; plain {plain['few']:.0f}")
    ours = {
        variant: {key: each[key] - plain[key] - each["span"] for key in ("few", "many")}
        for variant, each in figures.items()
    }
    for variant, what in ((BARE, "sampled"), (UNSAMPLED, UNSAMPLED)):
        bare = max(ours[variant].values())
        print(
            f"  {what:10}{bare:6.0f}, beside an SDK span of {figures[variant]['span']:.0f}   "
            f"{against_goal(bare, CONNECTION_BYTES, 'B')}"
        )
    for key, count in (("few", few), ("many", many)):
        kept = ours[OURS][key] - ours[BARE][key]
        line = f"  {'':10}{kept:+6.0f} for what is buffered to report {count} messages"
        print(f"{line}   {against_goal(kept, KEPT_BYTES, 'B')}")


def crowd(quick: bool, tcp: bool) -> None:
    """Added CPU for each message by live connections; cost of a collection."""
    sizes = (1, 100, 2_000 if quick else 10_000)
    rounds, n = (1, 50_000) if quick else (3, 200_000)
    added: dict[str, dict[int, list[float]]] = {"in_turn": {}, "alone": {}}
    plain: dict[str, dict[int, list[float]]] = {"in_turn": {}, "alone": {}}
    collected: list[dict[str, float]] = []
    for _ in range(rounds):
        for size in random.sample(sizes, len(sizes)):
            found = {
                variant: measure(inprocess.crowd, variant, size, n)
                for variant in random.sample((PLAIN, OURS), 2)
            }
            for key in added:
                base = found[PLAIN][key]
                plain[key].setdefault(size, []).append(base)
                added[key].setdefault(size, []).append(found[OURS][key] - base)
            if size == sizes[-1]:
                collected.append(found[OURS])
    print("us of CPU a message, without sockets; median of rounds, and its ratio to 1 live")
    head = "".join(f"{f'{size} live':>19}" for size in sizes)
    print(f"  {'':34}{head}")
    for key, what in (("in_turn", "all send in turn"), ("alone", "one sends, the rest waits")):
        for name, values in (("plain", plain[key]), ("ours adds", added[key])):
            middle = {size: median(values[size]) for size in sizes}
            line = "".join(f"{us:10.2f}  (x{us / middle[1]:4.2f})" for us in middle.values())
            if values is added["in_turn"]:
                line += f"   {against_goal(middle[sizes[-1]] / middle[1], GROWTH, 'times')}"
            print(f"  {what + ', ' + name:34}{line}")
    print(f"one metric collection with {sizes[-1]} live connections, ms (median of rounds)")
    wall, cpu, calm, held = (
        median(each[key] for each in collected) for key in ("wall", "cpu", "calm", "held")
    )
    print(
        f"  {wall:.1f} on the reader's thread ({cpu:.1f} of CPU); the event loop was at most "
        f"{held:.1f} late meanwhile, {calm:.1f} without a collection"
    )
    print(f"  CPU: {against_goal(cpu, COLLECTION_MS, 'ms')}")
    print(f"  late: {against_goal(held, HELD_MS, 'ms')}")


def against(wheel: str, quick: bool, tcp: bool) -> None:
    """Prints what this build and that of ``wheel`` cost, measured by turns in one run."""
    with tempfile.TemporaryDirectory() as other:
        zipfile.ZipFile(wheel).extractall(other)
        builds = {"installed": None, "against": other}
        processes, rounds = (4, 100) if quick else (10, 200)
        print(f"us of CPU that each build adds; against {os.path.basename(wheel)}")
        print(f"  {'':24}{'installed':>11}{'against':>9}{'difference':>12}{'of medians':>12}")
        for what, worker, options in (
            ("message, Starlette", sockets.starlette_streams, {"tcp": tcp}),
            ("message, aiohttp", sockets.aiohttp_streams, {"tcp": tcp}),
            ("request, Starlette", inprocess.starlette_json, {}),
            ("request, aiohttp", inprocess.aiohttp_json, {}),
        ):
            us: dict[str, list[float]] = {name: [] for name in builds}
            plain: dict[str, list[float]] = {name: [] for name in builds}
            for _ in range(processes):
                for name, build in random.sample(list(builds.items()), len(builds)):
                    one = measure(worker, OURS, rounds, build=build, **options)
                    us[name] += one[OURS]
                    plain[name] += one[PLAIN]
            ours, theirs = (Added(us[name], plain[name]) for name in builds)
            print(
                f"  {what:24}{ours.fastest:+11.2f}{theirs.fastest:+9.2f}"
                f"{ours.fastest - theirs.fastest:+12.2f}{ours.median - theirs.median:+12.2f}"
            )
        connections = 500 if quick else 2_000
        held = {}
        for name, build in builds.items():
            found = [
                measure(inprocess.memory, variant, connections, 3, 500, build=build)
                for variant in (PLAIN, BARE)
            ]
            held[name] = found[1]["few"] - found[0]["few"] - found[1]["span"]
        ours_bytes, their_bytes = held.values()
        print(f"  {'bytes a connection':24}{ours_bytes:11.0f}{their_bytes:9.0f}", end="")
        print(f"{ours_bytes - their_bytes:+12.0f}")


SECTIONS: dict[str, Callable[[bool, bool], None]] = {
    section.__name__: section for section in (starlette, aiohttp, requests, clients, memory, crowd)
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything: under a minute")
    parser.add_argument("--tcp", action="store_true", help="loopback TCP, not Unix sockets")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--against", metavar="WHEEL", help="compare with another build instead")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.worker is not None:
        name, args, kwargs = json.loads(chosen.worker)
        print(json.dumps(_WORKERS[name](*args, **kwargs)), flush=True)
        os._exit(0)  # what a process does at its end is not measured here, but takes its time
    began = time.monotonic()
    print("python benchmarks/bench.py", *arguments)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} CPUs; "
        + ", ".join(f"{library} {version(library)}" for library in _LIBRARIES)
    )
    if chosen.against is not None:
        against(chosen.against, chosen.quick, chosen.tcp)
        return
    for name in chosen.only:
        section = SECTIONS[name]
        print(f"\n{name}: {section.__doc__}")
        section(chosen.quick, chosen.tcp)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
