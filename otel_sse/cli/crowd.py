"""Many readers of one stream at once, summed up in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from otel_sse.cli.client import Reading, Request, read
from otel_sse.cli.distribution import Distribution
from otel_sse.cli.findings import Finding, problem

# Between two clients' starts, in seconds: a crowd, not a flood.
_STAGGER: Final = 0.01
_MAX_ERRORS: Final = 10


@dataclass
class Crowd:
    """What its readers saw; distributions are in seconds, one value for each stream (the gaps:
    for each message).
    """

    asked: int
    endings: dict[str, int] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    messages: int = 0
    bytes: int = 0
    connected: Distribution = field(default_factory=Distribution)
    headers: Distribution = field(default_factory=Distribution)
    first_message: Distribution = field(default_factory=Distribution)
    gaps: Distribution = field(default_factory=Distribution)
    delivery: Distribution = field(default_factory=Distribution)

    def add(self, reading: Reading) -> None:
        self.endings[reading.ending] = self.endings.get(reading.ending, 0) + 1
        if reading.status is not None:
            self.statuses[reading.status] = self.statuses.get(reading.status, 0) + 1
        if reading.error and (reading.error in self.errors or len(self.errors) < _MAX_ERRORS):
            self.errors[reading.error] = self.errors.get(reading.error, 0) + 1
        self.messages += reading.parser.messages
        self.bytes += reading.bytes
        for distribution, value in (
            (self.connected, reading.connected),
            (self.headers, reading.headers_after),
            (self.first_message, reading.first_message),
        ):
            if value is not None:
                distribution.add(value)
        self.gaps.merge(reading.gaps)
        self.delivery.merge(reading.delivery)

    def as_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "endings": self.endings,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "errors": self.errors,
            "messages": self.messages,
            "bytes": self.bytes,
            "connected": self.connected.as_json(),
            "headers": self.headers.as_json(),
            "first_message": self.first_message.as_json(),
            "gaps": self.gaps.as_json(),
            "delivery": self.delivery.as_json(),
        }

    def judge(self) -> list[Finding]:
        bad = sum(self.endings.get(each, 0) for each in ("failed", "refused", "cut"))
        if not bad:
            return []
        answers = ", ".join(
            [
                *(
                    f"{n} with status {status}"
                    for status, n in self.statuses.items()
                    if status != 200
                ),
                *(f"{count}: {text}" for text, count in self.errors.items()),
            ]
        )
        return [
            problem(
                "clients-failed",
                f"{bad} of {self.asked} clients got no stream or lost it: "
                f"{answers or 'no event stream'}.",
                "Look for a limit of connections, threads or files in the server and the proxies.",
            )
        ]


async def run(
    request: Request,
    clients: int,
    first: Reading,
    watch: Callable[[list[Reading]], None],
    max_messages: int | None,
) -> None:
    """Reads with that many clients until all are done or the scope is cancelled.

    Args:
        request: what each of them asks.
        clients: how many.
        first: the reading of the first of them, kept in detail.
        watch: given the readings when it begins; they change until ``run`` is over.
        max_messages: how many each reads at most.

    """
    readings = [first, *(Reading(detailed=False) for _ in range(clients - 1))]
    watch(readings)
    async with anyio.create_task_group() as tasks:
        for number, reading in enumerate(readings):
            tasks.start_soon(_one, request, reading, max_messages, number * _STAGGER)


async def _one(request: Request, reading: Reading, max_messages: int | None, delay: float) -> None:
    await anyio.sleep(delay)
    await read(request, reading=reading, max_messages=max_messages)
