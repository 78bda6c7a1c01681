"""A killed process exports nothing more: what it exported before has to be right and recent."""

import asyncio
import itertools
import re
import secrets
import signal

from helpers.otlp import Receiver, Span
from helpers.processes import Served, serve
from helpers.raw_client import RawClient

TALKING, SILENT, ENDED = 4, 2, 3
ENDLESS = 10**6
SEGMENT = 1.0
# How often spans and events, and metrics, are exported; and what a slow machine may add, in s.
BATCH, INTERVAL, SLACK = 0.1, 0.3, 5.0


class Reader:
    """Reads a stream until its server is gone; ``made`` is when its messages were made, Unix ns."""

    def __init__(self, raw: RawClient, trace_id: str) -> None:
        self.trace_id = trace_id
        self.made: list[int] = []
        self._raw = raw

    @classmethod
    async def ask(cls, served: Served, path: str) -> "Reader":
        trace_id = secrets.token_hex(16)
        traceparent = f"traceparent: 00-{trace_id}-{secrets.token_hex(8)}-01"
        return cls(await RawClient.get(served.port, path, traceparent), trace_id)

    async def read(self) -> None:
        body = await self._raw.reader.read(-1)
        self.made = [int(made) for made in re.findall(rb"data: (\d+)\n\n", body)]
        await self._raw.close()


def segments(receiver: Receiver, client: Reader) -> list[Span]:
    """The segments of a client's stream that have arrived, the oldest first."""
    ids = {
        span.attributes["sse.connection.id"]
        for span in receiver.spans("SSE")
        if span.trace_id == client.trace_id
    }
    found = [span for span in receiver.spans("SSE") if span.attributes["sse.connection.id"] in ids]
    return sorted(found, key=lambda span: int(span.attributes["sse.segment.index"]))


async def test_what_was_exported_before_a_kill_is_right(receiver: Receiver) -> None:
    """SIGKILL with live streams: the segments that ended are exported without a gap, with every
    message sent in them, and no more is lost than a segment and an export interval.
    """
    command = "uvicorn workers_killed:app --port {port} --log-level warning"
    with serve(
        command,
        receiver,
        OTEL_PYTHON_SSE_SEGMENT_SECONDS=str(SEGMENT),
        OTEL_BSP_SCHEDULE_DELAY=str(int(BATCH * 1000)),
        OTEL_BLRP_SCHEDULE_DELAY=str(int(BATCH * 1000)),
        OTEL_METRIC_EXPORT_INTERVAL=str(int(INTERVAL * 1000)),
    ) as served:
        await served.started()
        ended = [await Reader.ask(served, "/stream/7") for _ in range(ENDED)]
        silent = [await Reader.ask(served, "/stream/3?silent") for _ in range(SILENT)]
        talking = [await Reader.ask(served, f"/stream/{ENDLESS}") for _ in range(TALKING)]
        reading = [asyncio.create_task(each.read()) for each in (*ended, *silent, *talking)]

        def exported() -> bool:
            return all(len(segments(receiver, each)) >= 3 for each in (*silent, *talking))

        await asyncio.to_thread(receiver.wait_for, exported, 60)
        served.ended(signal.SIGKILL)
        await asyncio.gather(*reading)

    for client in (*silent, *talking):
        assert_right_so_far(receiver, client)
    for client in ended:
        (span,) = segments(receiver, client)
        assert span.attributes["sse.segment.final"] is True
        assert span.attributes["sse.messages"] == len(client.made) == 7
    assert len(receiver.records("sse.connection.opened")) == ENDED + SILENT + TALKING
    closed = receiver.records("sse.connection.closed")
    assert {each.trace_id for each in closed} == {each.trace_id for each in ended}
    assert_metrics_right_so_far(receiver, [*ended, *silent, *talking])


def assert_right_so_far(receiver: Receiver, client: Reader) -> None:
    found = segments(receiver, client)
    assert [span.attributes["sse.segment.index"] for span in found] == list(range(len(found)))
    assert not any("sse.segment.final" in span.attributes for span in found)
    for span, following in itertools.pairwise(found):
        assert following.start == span.end
        assert following.links[0].span_id == span.span_id
    until = found[-1].end
    sent = sum(made < until for made in client.made)
    # The message that ends a segment was made a moment before, and is in the next one.
    reported = sum(span.attributes["sse.segment.messages"] for span in found)
    assert reported in (sent, sent - 1)
    lost = (client.made[-1] - until) / 1e9
    assert lost < SEGMENT * 1.1 + BATCH + SLACK


def assert_metrics_right_so_far(receiver: Receiver, clients: list[Reader]) -> None:
    assert receiver.value("sse.server.active_connections") == SILENT + TALKING
    assert receiver.value("sse.server.connections") == len(clients)
    assert receiver.value("sse.server.connection.duration") == ENDED
    (point,) = receiver.points("sse.server.messages")
    made = sorted(made for client in clients for made in client.made)
    # A point's time is that of its collection's end, which began a moment before.
    before = sum(each < point.time - 1e9 for each in made)
    assert len(clients) < before <= point.value <= sum(each <= point.time for each in made)
    lost = (made[-1] - point.time) / 1e9
    assert lost < INTERVAL + SLACK
