"""Thousands of clients of ``examples/server`` in a process of its own: see load.py.

``python crowd.py PORT`` runs commands: a JSON list ``[verb, argument, ...]`` a line on its
standard input, and answers each with a line of JSON. The messages that it understands have the
data ``NUMBER MONOTONIC_NS PADDING``; those of a topic are numbered 0, 1, 2 ...
"""

import asyncio
import json
import re
import sys
import time
from collections import Counter, defaultdict
from typing import Any

# What a stream opens with, a message, a gap, and the end that is no break.
PLACE = re.compile(rb"id: (\S+)\n\n")
MESSAGE = re.compile(
    rb"id: (\S+)\n(?:event: .*\n)?data: (\d+) (\d+) .*\n\n|event: gap\ndata: (.*)\n\n"
)
END = b"\r\n0\r\n\r\n"
# Connections that are opened at once.
AT_ONCE = 200


class Topic:
    """What was received of a topic, by all of its clients."""

    def __init__(self) -> None:
        self.messages = self.wrong = self.dropped = 0
        # By number: how many have it, and nanoseconds until the last one had.
        self.receipts: Counter[int] = Counter()
        self.late: dict[int, int] = {}


class Client(asyncio.Protocol):
    """One client, over all of its connections."""

    transport: asyncio.Transport

    def __init__(self, topic: Topic, name: str) -> None:
        self._topic = topic
        self._name = name
        self._place = self._rest = b""
        # The number that has to come next.
        self._next = 0
        self.joined = asyncio.Event()
        # When it was ended in order, in monotonic nanoseconds.
        self.ended = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        last = b"Last-Event-ID: %s\r\n" % self._place if self._place else b""
        transport.write(
            b"GET /events?topic=%s HTTP/1.1\r\nHost: [::1]\r\n%s\r\n" % (self._name.encode(), last)
        )
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        whole, blank, self._rest = (self._rest + data).rpartition(b"\n\n")
        if self._rest.endswith(END):
            self.ended = now
        topic = self._topic
        for id_, number, sent, gap in MESSAGE.findall(whole + blank):
            if gap:
                dropped = json.loads(gap)["dropped"]
                topic.dropped += dropped
                self._next += dropped
                continue
            topic.messages += 1
            topic.wrong += int(number) != self._next
            self._next = int(number) + 1
            topic.receipts[int(number)] += 1
            topic.late[int(number)] = now - int(sent)
            self._place = id_
        if not self.joined.is_set() and (self._place or PLACE.search(whole + blank)):
            self.joined.set()


class Crowd:
    """Clients in groups. Its public methods are the verbs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._groups: dict[str, list[Client]] = {}
        self._topics: defaultdict[str, Topic] = defaultdict(Topic)

    async def open(self, group: str, topic: str, count: int) -> None:
        """Opens so many connections, and waits until each one has its place."""
        self._groups[group] = [Client(self._topics[topic], topic) for _ in range(count)]
        await self.come(group)

    async def come(self, group: str) -> None:
        """Opens the connections again, with ``Last-Event-ID``."""
        turns = asyncio.Semaphore(AT_ONCE)

        async def connect(client: Client) -> None:
            async with turns:
                client.joined.clear()
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: client, "127.0.0.1", self._port)
                await client.joined.wait()

        await asyncio.gather(*map(connect, self._groups[group]))

    async def disconnect(self, group: str) -> None:
        for client in self._groups[group]:
            client.transport.abort()

    async def pause(self, group: str) -> None:
        for client in self._groups[group]:
            client.transport.pause_reading()

    async def go_on(self, group: str) -> None:
        for client in self._groups[group]:
            client.transport.resume_reading()

    async def ended(self, group: str) -> tuple[int, float]:
        """How many have been ended in order, and when the last of them was, in seconds."""
        ends = [each.ended for each in self._groups[group] if each.ended]
        return len(ends), max(ends, default=0) / 1e9

    async def counts(self, topic: str) -> dict[str, Any]:
        """``messages`` received, ``wrong`` in their order, ``dropped`` as gaps show; and by number
        how many have a message, and ``late``, seconds until the last one had it.
        """
        found = self._topics[topic]
        numbers = sorted(found.receipts)
        return {
            "messages": found.messages,
            "wrong": found.wrong,
            "dropped": found.dropped,
            "receipts": [found.receipts[each] for each in numbers],
            "late": [found.late[each] / 1e9 for each in numbers],
        }


async def main(port: int) -> None:
    crowd = Crowd(port)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        verb, *arguments = json.loads(line)
        print(json.dumps(await getattr(crowd, verb)(*arguments)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
