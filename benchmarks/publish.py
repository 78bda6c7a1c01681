"""One publisher, 1,000 connections, with otel_sse and without it, and with contrib's:

    python benchmarks/publish.py [--clients 1000] [--rate 20] [--seconds 10] [--rounds 3]

Starlette on uvicorn with uvloop and httptools, on TCP; each variant is a process of its own, once a
round, in random order, and the clients are another process, which never sleeps. So many messages a
second go to each of the clients. Printed are the medians of the rounds: the server's CPU, and how
late the clients had the messages (the delay of each delivery, from before it was published). The
exit status is 1 where a client missed a message, or not each was counted.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import variants
from fanout import allow_many_descriptors, start_crowd
from helpers.servers import free_port
from variants import CONTRIB, CONTRIB_QUIET, FLOOR, OURS, PLAIN

SIZE = 200
JOINED = b"id: 0\ndata: joined\n\n"


async def serve(variant: str, given: argparse.Namespace) -> None:
    """The process of the server: a line on its standard input has it publish."""
    import uvicorn

    queues: list[asyncio.Queue[bytes]] = []

    async def source() -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        queues.append(queue)
        yield JOINED
        while True:
            yield await queue.get()
            queue.task_done()

    reader = None if variant in (PLAIN, FLOOR) else variants.provide()
    with ExitStack() as stack:
        if variant in (OURS, FLOOR):
            stack.enter_context(variants.instrumented("starlette", variant))
        config = uvicorn.Config(
            variants.starlette_app(variant, source),
            **{"port": given.port, "loop": "none", "http": "httptools"},
            **{"log_level": "critical", "lifespan": "off", "backlog": given.clients},
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        await asyncio.to_thread(sys.stdin.readline)
        began, used = time.monotonic(), time.process_time()
        published = int(given.rate * given.seconds)
        for number in range(published):
            await asyncio.sleep(max(0.0, began + number / given.rate - time.monotonic()))
            sent = f"{number} {time.monotonic_ns()} ".ljust(SIZE, "x")
            message = f"id: {number}\ndata: {sent}\n\n".encode()
            for queue in queues:
                queue.put_nowait(message)
        await asyncio.gather(*(queue.join() for queue in queues))
        used, seconds = time.process_time() - used, time.monotonic() - began
        if variant == OURS:
            variants.check(reader, (published + 1) * given.clients)
        print(json.dumps({"published": published, "cpu": used, "seconds": seconds}), flush=True)
        server.should_exit = server.force_exit = True
        await serving


async def measure(variant: str, given: argparse.Namespace) -> dict[str, float]:
    port = free_port()
    options = [f"--{name}={getattr(given, name)}" for name in ("clients", "rate", "seconds")]
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--serve", variant, "--port", str(port), *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    await listening(port)
    clients = await start_crowd(port, "/stream", given.clients, 0, awake=True)
    assert await clients.stdout.readline() == b"joined\n"
    server.stdin.write(b"\n")
    served = json.loads(await server.stdout.readline())
    # What is under way arrives.
    await asyncio.sleep(1)
    clients.stdin.write(b"\n")
    read = json.loads(await clients.stdout.readline())
    await clients.wait()
    await server.wait()
    if read["counts"] != [served["published"]]:
        raise RuntimeError(f"{variant}: messages each {read['counts']} of {served['published']}")
    return {
        "core": 100 * served["cpu"] / served["seconds"],
        "delivery": 1e6 * served["cpu"] / served["published"] / given.clients,
        "took": served["seconds"] / given.seconds,
        **{name: 1000 * read[name] for name in ("p50", "p99")},
    }


async def listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


async def compare(given: argparse.Namespace) -> None:
    names = [PLAIN, FLOOR, OURS, CONTRIB_QUIET, CONTRIB]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in random.sample(names, len(names)):
            found[name].append(await measure(name, given))
    print(
        f"{given.clients:,} connections, {given.rate:g} messages a second to each,"
        f" {given.clients * given.rate:,.0f} deliveries a second; the median of {given.rounds}"
    )
    print(f"{'':32}{'of a core':>11}{'a delivery':>12}{'p50':>10}{'p99':>10}")
    for name, rounds in found.items():
        at: Any = {key: median(each[key] for each in rounds) for key in rounds[0]}
        late = "" if at["took"] < 1.1 else f"   {at['took']:.1f} times too slow for the rate"
        print(
            f"{name:32}{at['core']:9.0f} %{at['delivery']:9.1f} us{at['p50']:7.1f} ms"
            f"{at['p99']:7.1f} ms{late}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20, help="messages a second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    allow_many_descriptors()
    if given.serve:
        import uvloop

        uvloop.run(serve(given.serve, given))
    else:
        asyncio.run(compare(given))


if __name__ == "__main__":
    main()
