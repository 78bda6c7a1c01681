"""What otel_sse costs: CPU for each message and request, memory for each live connection.

Every measurement is a process of its own. The variants of a comparison are run in random order,
round after round, because a machine does not keep one speed: a difference or a ratio is formed
within a round, and the median of the rounds is what a budget is held against. Times are CPU of
the serving process with all its threads, never wall time, unless it says so. Nothing fails here:
a budget is printed as met or not met.

``python tests/benchmarks/bench.py [--quick] [--tcp] [--only SECTION ...]``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from statistics import median
from typing import Any

import clients as readers
import inprocess
import sockets
from variants import ALL, CONTRIB, CONTRIB_QUIET, OURS, PLAIN, UNSAMPLED

# The budgets: us of CPU, bytes.
MESSAGE_US = 2.0
MESSAGE_ALL_US = 7.0
SHARE_OF_CONTRIB = 1 / 20
REQUEST_US = 2.0
CONNECTION_BYTES = 2048
KEPT_BYTES = 2048

_LIBRARIES = (
    *("opentelemetry-sdk", "opentelemetry-instrumentation-asgi", "starlette", "uvicorn"),
    *("uvloop", "httptools", "aiohttp"),
)
_WORKERS: dict[str, Callable[..., dict[str, float]]] = {
    work.__name__: work
    for work in (
        sockets.starlette_stream,
        sockets.aiohttp_stream,
        sockets.aiohttp_json,
        inprocess.json_requests,
        inprocess.memory,
        inprocess.crowd,
        readers.httpx_stream,
        readers.aiohttp_client_stream,
        readers.httpx_json,
        readers.aiohttp_client_json,
    )
}


def measure(worker: Callable[..., dict[str, float]], *args: Any, **kwargs: Any) -> Any:
    """The figures of ``worker``, run in a fresh process without OpenTelemetry's environment."""
    task = json.dumps([worker.__name__, args, kwargs])
    environment = {name: value for name, value in os.environ.items() if name[:5] != "OTEL_"}
    done = subprocess.run(
        [sys.executable, __file__, "--worker", task],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


class Comparison:
    """CPU of each variant, in us, round by round."""

    def __init__(
        self,
        worker: Callable[..., dict[str, float]],
        counts: dict[str, int],
        rounds: int,
        **kwargs: Any,
    ) -> None:
        self.us: dict[str, list[float]] = {variant: [] for variant in counts}
        for _ in range(rounds):
            for variant in random.sample(list(counts), len(counts)):
                self.us[variant].append(measure(worker, variant, counts[variant], **kwargs)["us"])

    def added(self, variant: str) -> list[float]:
        return [a - b for a, b in zip(self.us[variant], self.us[PLAIN], strict=True)]

    def show(self, budgets: dict[str, float]) -> None:
        """A line for each variant, with its budget where it has one."""
        print(f"  {'':32}{'fastest':>9}{'median':>9}{'added: fastest':>16}  in a round, median")
        for variant, us in self.us.items():
            line = f"  {variant:32}{min(us):9.2f}{median(us):9.2f}"
            if variant != PLAIN:
                added = self.added(variant)
                line += f"{min(us) - min(self.us[PLAIN]):+16.2f}"
                line += f"  {median(added):+.2f} ({min(added):+.2f} … {max(added):+.2f})"
                budget = budgets.get(variant)
                if budget is not None:
                    line = f"{line:100}{verdict(median(added), budget, 'us')}"
            print(line)


def verdict(value: float, budget: float, unit: str) -> str:
    return f"budget <= {budget:g} {unit}: {'met' if value <= budget else 'NOT MET'}"


def starlette(quick: bool, tcp: bool) -> None:
    """Added CPU for each message, Starlette on uvicorn."""
    n = 50_000 if quick else 200_000
    counts = {PLAIN: n, OURS: n, ALL: n // 2, CONTRIB: n // 4, CONTRIB_QUIET: n}
    found = Comparison(sockets.starlette_stream, counts, 2 if quick else 8, tcp=tcp)
    print("us of CPU a message of 200 bytes, one stream as fast as it goes")
    found.show({OURS: MESSAGE_US, ALL: MESSAGE_ALL_US})
    pairs = zip(found.added(OURS), found.added(CONTRIB), strict=True)
    share = median(ours / contrib for ours, contrib in pairs)
    print(
        f"  ours / contrib's, of what each adds: 1/{1 / share:.1f}; "
        f"budget <= 1/{1 / SHARE_OF_CONTRIB:.0f}: "
        f"{'met' if share <= SHARE_OF_CONTRIB else 'NOT MET'}"
    )


def aiohttp(quick: bool, tcp: bool) -> None:
    """Added CPU for each message, aiohttp.web."""
    n = 50_000 if quick else 200_000
    counts = dict.fromkeys((PLAIN, OURS, CONTRIB), n)
    found = Comparison(sockets.aiohttp_stream, counts, 2 if quick else 8, tcp=tcp)
    print("us of CPU a message of 200 bytes, one stream as fast as it goes")
    found.show({OURS: MESSAGE_US})


def requests(quick: bool, tcp: bool) -> None:
    """Added CPU for a request that is no stream."""
    rounds, n = (2, 5_000) if quick else (8, 20_000)
    for name, worker, kwargs in (
        ("Starlette, called without a server", inprocess.json_requests, {}),
        ("aiohttp.web, pipelined requests", sockets.aiohttp_json, {"tcp": tcp}),
    ):
        print(f"us of CPU a request, answered with JSON: {name}")
        Comparison(worker, {PLAIN: n, OURS: n}, rounds, **kwargs).show({OURS: REQUEST_US})


def clients(quick: bool, tcp: bool) -> None:
    """Added CPU for each message that is read, and for a response that is no stream."""
    rounds, messages, responses = (2, 50_000, 2_000) if quick else (8, 200_000, 10_000)
    for library, streams, answers in (
        ("httpx, blocking", readers.httpx_stream, readers.httpx_json),
        ("aiohttp's client", readers.aiohttp_client_stream, readers.aiohttp_client_json),
    ):
        for what, worker, n, budget in (
            ("a message of 200 bytes, read by lines", streams, messages, MESSAGE_US),
            ("a request, answered with JSON", answers, responses, REQUEST_US),
        ):
            print(f"us of CPU {what}: {library}")
            found = Comparison(worker, dict.fromkeys((PLAIN, OURS, CONTRIB), n), rounds)
            found.show({OURS: budget})
            ratio = median(a / b for a, b in zip(found.us[OURS], found.us[PLAIN], strict=True))
            print(f"  ours / plain, median of the rounds: {ratio:.3f}")


def memory(quick: bool, tcp: bool) -> None:
    """Bytes of a live connection, beside its SDK span."""
    connections, few, many = 500 if quick else 5_000, 3, 500
    figures = {
        variant: measure(inprocess.memory, variant, connections, few, many)
        for variant in (PLAIN, OURS, UNSAMPLED)
    }
    plain = figures.pop(PLAIN)
    print(f"bytes a connection, {connections} live, by tracemalloc; plain {plain['few']:.0f}")
    print(f"  {'':14}{'SDK span alone':>16}{f'ours, {few} messages':>20}{f'{many} messages':>15}")
    for variant, each in figures.items():
        ours, kept = (each[key] - plain[key] - each["span"] for key in ("few", "many"))
        name = "sampled" if variant == OURS else variant
        print(
            f"  {name:14}{each['span']:16.0f}{ours:20.0f}{kept:15.0f}   "
            f"{verdict(ours, CONNECTION_BYTES, 'B')}; "
            f"kept {kept - ours:+.0f}: {verdict(kept - ours, KEPT_BYTES, 'B')}"
        )


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
            print(f"  {what + ', ' + name:34}{line}")
    print(f"one metric collection with {sizes[-1]} live connections, ms (median of rounds)")
    wall, cpu, calm, held = (
        median(each[key] for each in collected) for key in ("wall", "cpu", "calm", "held")
    )
    print(
        f"  {wall:.1f} on the reader's thread ({cpu:.1f} of CPU); the event loop was at most "
        f"{held:.1f} late meanwhile, {calm:.1f} without a collection"
    )


SECTIONS: dict[str, Callable[[bool, bool], None]] = {
    section.__name__: section for section in (starlette, aiohttp, requests, clients, memory, crowd)
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less of everything: under a minute")
    parser.add_argument("--tcp", action="store_true", help="loopback TCP, not Unix sockets")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.worker is not None:
        name, args, kwargs = json.loads(chosen.worker)
        print(json.dumps(_WORKERS[name](*args, **kwargs)), flush=True)
        os._exit(0)  # what a process does at its end is not measured here, but takes its time
    began = time.monotonic()
    print("python tests/benchmarks/bench.py", *arguments)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} CPUs; "
        + ", ".join(f"{library} {version(library)}" for library in _LIBRARIES)
    )
    for name in chosen.only:
        section = SECTIONS[name]
        print(f"\n{name}: {section.__doc__}")
        section(chosen.quick, chosen.tcp)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
