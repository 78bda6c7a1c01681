"""What pages record of their streams: a real Chromium, through the real collector."""

import asyncio
import base64
import gzip
import json
import time
from collections import Counter
from typing import Any, Final

import pytest
from aiohttp import web
from browser.collector import Collector
from browser.receivers import AddedReceiver, RawReceiver
from browser.site import Site, Write, forever
from browser.tab import SHARED_LOOP, Opener
from helpers import oracle
from helpers.streams import PIECES, STREAM

from otel_sse import semconv

pytestmark = SHARED_LOOP

# What only a browser records, or only where both ends are linked.
_BROWSER: Final = {
    "sse.client.handler.duration": "s",
    "sse.client.connected_time": "s",
    "sse.client.disconnected_time": "s",
    "sse.client.delivery.duration": "s",
    "sse.client.delivery.skewed": "{message}",
}
_FOLLOW = """path => {
    window.got = [];
    window.source = new monitor.EventSource(path);
    source.onmessage = ({ data }) => got.push(data);
}"""

# Works for as many milliseconds as each message's data.
_WORK = """path => {
    window.done = 0;
    new monitor.EventSource(path).onmessage = ({ data }) => {
        for (const end = performance.now() + Number(data); performance.now() < end;);
        done += 1;
    };
}"""


async def test_counts(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """Messages by type, comments, bytes and sizes are what the stream holds, however it is cut."""

    async def stream(_: object, write: Write) -> None:
        for piece in PIECES:
            await write(piece)
            await asyncio.sleep(0.01)
        await forever()

    site.streams["/events"] = stream
    messages, comments = oracle.read(STREAM)
    page = await tab()
    await page.run(
        """types => {
            window.got = [];
            const source = new monitor.EventSource("/events");
            const take = ({ type, data, lastEventId }) => got.push([type, data, lastEventId]);
            for (const type of types) source.addEventListener(type, take);
        }""",
        sorted({message.type for message in messages}),
    )
    await page.until(f"got.length >= {len(messages)}")
    assert await page.run("got") == [list(message) for message in messages]
    await page.flush()
    types = {
        point.attributes["sse.event.type"]: point.value
        for point in exported.points("sse.client.messages")
    }
    assert types == Counter(message.type for message in messages)
    assert exported.value("sse.client.comments") == comments
    assert exported.value("sse.client.io") == len(STREAM)
    assert exported.value("sse.client.connections", sse__resumed=False) == 1
    assert exported.value("sse.client.connection.time_to_first_message") == 1
    assert exported.value("sse.client.connect.duration") == 1
    assert exported.value("sse.client.message.gap") == len(messages) - 1
    assert exported.value("sse.client.handler.duration") == len(messages)
    assert exported.points("sse.client.connection.duration") == []
    (size,) = exported.points("sse.client.message.size")
    whole = sum(block.end - block.start for block in oracle.wire(STREAM))
    # The LF of a blank line that is cut in two comes after its message.
    assert (size.value, whole - (size.sum or 0)) in ((len(messages), 0), (len(messages), 1))
    assert page.logged == []


async def test_the_handlers_time(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """The page's work for a message is recorded, with the slow share; it is no gap of a stream."""

    async def stream(_: object, write: Write) -> None:
        await write(b"data: 1\n\n" * 3 + b"data: 90\n\n" * 4)
        await forever()

    site.streams["/events"] = stream
    page = await tab()
    await page.run(_WORK, "/events")
    await page.until("done === 7")
    await page.flush()
    (work,) = exported.points("sse.client.handler.duration")
    assert work.value == 7
    assert 0.363 <= (work.sum or 0) < 10
    slow = work.bounds.index(0.05) + 1
    assert sum(work.buckets[slow:]) >= 4
    # In one piece, so no one waited.
    (gap,) = exported.points("sse.client.message.gap")
    assert (gap.value, gap.sum) == (6, 0)


async def test_a_handler_is_no_gap(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """What comes while the page works was not waited for."""

    async def stream(_: object, write: Write) -> None:
        for _ in range(3):
            await write(b"data: 2000\n\n")
            await asyncio.sleep(0.2)
        await forever()

    site.streams["/events"] = stream
    page = await tab()
    await page.run(_WORK, "/events")
    await page.until("done === 3")
    await page.flush()
    (gap,) = exported.points("sse.client.message.gap")
    assert gap.value == 2
    assert (gap.sum or 0) < 1.5


async def test_gaps(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """A gap is the time that the page waited for the next message."""
    seen = asyncio.Event()

    async def stream(_: object, write: Write) -> None:
        await write(b"data: 1\n\n")
        await seen.wait()
        await asyncio.sleep(0.5)
        await write(b": ping\n\ndata: 2\n\n")
        await forever()

    site.streams["/events"] = stream
    page = await tab()
    await page.run(_FOLLOW, "/events")
    await page.until("got.length === 1")
    seen.set()
    await page.until("got.length === 2")
    await page.flush()
    (gap,) = exported.points("sse.client.message.gap")
    assert gap.value == 1
    assert 0.5 <= (gap.sum or 0) < 60


async def test_delivery(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """Where the server writes when it sent, the way is timed; no clock makes it negative."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    late, early = 2.0, -30.0

    async def stream(_: object, write: Write) -> None:
        for delay in (0.0, late, early):
            sent = time.time_ns() - int(delay * 1e9)
            await write(f": otel traceparent={parent};ts={sent}\ndata: x\n\n".encode())
        await write(b": otel is not this\ndata: x\n\n")
        await forever()

    site.streams["/events"] = stream
    page = await tab()
    await page.run(_FOLLOW, "/events")
    await page.until("got.length === 4")
    await page.flush()
    (delivery,) = exported.points("sse.client.delivery.duration")
    assert delivery.value == 2
    assert late - 0.01 <= (delivery.sum or 0) < late + 30
    assert exported.value("sse.client.delivery.skewed") == 1
    # Such a line is no part of the stream.
    assert exported.value("sse.client.comments") == 1
    assert exported.value("sse.client.io") == len(b"data: x\n\n" * 4 + b": otel is not this\n")


async def test_a_restarted_server(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """A cut is recorded as such; the page comes back where it was, and its downtime is recorded."""

    async def stream(request: web.Request, write: Write) -> None:
        last = int(request.headers.get("Last-Event-ID", 0))
        await write(b"retry: 50\nid: %d\ndata: x\n\n" % (last + 1))
        await forever()

    site.streams["/events"] = stream
    page = await tab()
    await page.run(_FOLLOW, "/events")
    await page.until("got.length === 1")
    await asyncio.sleep(0.3)
    await site.stop()
    await page.until("source.readyState === EventSource.CONNECTING")
    began = time.monotonic()
    await asyncio.sleep(1)
    down = time.monotonic() - began
    await site.start()
    await page.until("got.length === 2")
    await page.flush()
    assert [each.headers.get("Last-Event-ID") for each in site.asked("/events")] == [None, "1"]
    assert exported.value("sse.client.reconnections") == 1
    assert exported.value("sse.client.connections", sse__resumed=False) == 1
    assert exported.value("sse.client.connections", sse__resumed=True) == 1
    (ended,) = exported.points("sse.client.connection.duration")
    assert ended.attributes["sse.close.reason"] == "disconnected"
    assert "error.type" not in ended.attributes
    assert down <= exported.value("sse.client.disconnected_time") < down + 30
    assert 0.3 <= exported.value("sse.client.connected_time") < 30
    totals = await page.run("monitor.totals()")
    assert _total(totals, "sse.client.active_connections") == 1


@pytest.mark.parametrize("leave", ["close", "away"])
async def test_a_page_that_is_left(
    tab: Opener, site: Site, exported: AddedReceiver, leave: str
) -> None:
    """A page that is closed in the middle of a stream exports all that it has recorded."""

    async def stream(_: object, write: Write) -> None:
        for _ in range(25):
            await write(b"data: x\n\n")
        await forever()

    site.streams["/events"] = stream
    page = await tab(timer=False)
    await page.run(_FOLLOW, "/events")
    await page.until("got.length === 25")
    assert exported.exports == 0
    if leave == "close":
        await page.page.close()
    else:
        await page.page.goto("about:blank")
    await _arrives(exported, "sse.client.messages", 25)
    (ended,) = exported.points("sse.client.connection.duration")
    assert (ended.value, ended.attributes["sse.close.reason"]) == (1, "client_close")
    assert exported.value("sse.client.connected_time") > 0


async def test_two_pages(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """What two pages export in turns adds up, in one series for both."""
    more = asyncio.Event()

    async def stream(request: web.Request, write: Write) -> None:
        await write(b"data: x\n\n" * int(request.query["first"]))
        await more.wait()
        await write(b"data: x\n\n" * int(request.query["then"]))
        await forever()

    site.streams["/events"] = stream
    one, two = await tab(), await tab()
    await one.run(_FOLLOW, "/events?first=3&then=10")
    await two.run(_FOLLOW, "/events?first=5&then=20")
    await one.until("got.length === 3")
    await two.until("got.length === 5")
    # The one that began later exports first.
    for page in (two, one, two, one):
        await page.flush()
    assert exported.value("sse.client.messages") == 8
    more.set()
    await two.until("got.length === 25")
    await one.until("got.length === 13")
    await asyncio.gather(one.flush(), two.flush())
    (messages,) = exported.points("sse.client.messages")
    assert messages.value == 38
    (sizes,) = exported.points("sse.client.message.size")
    assert (sizes.value, sizes.sum) == (38, 38 * len(b"data: x\n\n"))
    assert exported.value("sse.client.connections") == 2
    lived = [
        _total(await page.run("monitor.totals()"), "sse.client.connected_time")
        for page in (one, two)
    ]
    assert 0 < exported.value("sse.client.connected_time") <= sum(lived)
    assert exported.value("sse.client.connected_time") > max(lived) * 1.01


async def test_many_pages(exported: AddedReceiver, collector: Collector) -> None:
    """What very many pages export at the same time is all in the sum."""
    for _ in range(20):
        await asyncio.gather(*(collector.take("sse.client.io") for _ in range(30)))
    await collector.settle()
    assert exported.value("sse.client.io") == 600


async def test_no_collector(
    tab: Opener, site: Site, exported: AddedReceiver, collector: Collector
) -> None:
    """Without a collector the page works, is quiet and does not grow; nothing is lost."""
    sent = 0
    go = asyncio.Event()

    async def stream(_: object, write: Write) -> None:
        nonlocal sent
        while True:
            await go.wait()
            go.clear()
            for _ in range(10_000):
                await write(b"event: type %d\ndata: x\n\ndata: %0200d\n\n" % (sent, sent))
                sent += 1

    site.streams["/events"] = stream
    page = await tab()
    collector.stop()
    await page.run(
        """() => {
            window.count = 0;
            new monitor.EventSource("/events").onmessage = () => { count += 1; };
        }"""
    )
    heaps = []
    for round_ in (1, 2):
        go.set()
        await page.until(f"count === {round_ * 10_000}")
        await page.run("monitor.flush()")
        heaps.append(await page.run("(gc(), performance.memory.usedJSHeapSize)"))
    assert heaps[1] - heaps[0] < 500_000, heaps
    assert page.logged != []
    assert [line for line in page.logged if "net::ERR_CONNECTION_REFUSED" not in line] == []
    collector.start()
    await page.flush()
    assert exported.value("sse.client.messages", sse__event__type="message") == 20_000
    assert exported.value("sse.client.messages") == 40_000
    types = {point.attributes["sse.event.type"] for point in exported.points("sse.client.messages")}
    assert types == {"message", "_OTHER", *(f"type {each}" for each in range(16))}


async def test_envelopes(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """The page gets the text of compressed messages, in order; the wire's bytes are recorded."""
    texts = [json.dumps({"n": each, "pad": "ü" * 5000}) for each in range(20)]
    wire = b""
    for each, text in enumerate(texts):
        packed = base64.b64encode(gzip.compress(text.encode())).decode()
        envelope = {"encoding": "gzip", "data": packed, "size": len(text.encode())}
        wire += b"data: %s\n\n" % (json.dumps(envelope) if each % 3 else text).encode()

    async def stream(_: object, write: Write) -> None:
        await write(wire)
        await forever()

    site.streams["/events"] = stream
    page = await tab()
    await page.run(_FOLLOW, "/events")
    await page.until(f"got.length === {len(texts)}")
    assert await page.run("got") == texts
    await page.flush()
    (size,) = exported.points("sse.client.message.size")
    assert (size.value, size.sum) == (len(texts), len(wire))


async def _read(request: web.Request, write: Write) -> None:
    body = await request.text()
    for token in body.split():
        await write(b"event: token\ndata: %s\n\n" % token.encode())
    if request.query:
        await forever()


@pytest.mark.parametrize(
    ("query", "script", "reason", "error"),
    [
        ("", "", "completed", None),
        ("endless", "if (got.length === 3) break;", "client_close", None),
        ("endless", "if (got.length === 3) throw new Error('mine');", "client_close", None),
        ("endless", "if (got.length === 3) abort.abort();", "client_close", None),
        ("endless", "if (got.length === 3) abort.abort(new DOMException('', 'TimeoutError'));",
         "timeout", "TimeoutError"),
        ("endless", "", "disconnected", None),
    ],
    ids=["whole", "break", "throw", "abort", "timeout", "cut"],
)  # fmt: skip
async def test_fetch(
    tab: Opener,
    site: Site,
    exported: AddedReceiver,
    query: str,
    script: str,
    reason: str,
    error: str | None,
) -> None:
    """What a POST streams is read and recorded as well, with how it ended."""
    site.streams["/chat"] = _read
    page = await tab()
    reading = page.run(
        """async ([path, script]) => {
            window.got = [];
            const abort = new AbortController();
            const init = { method: "POST", body: "a b c", signal: abort.signal };
            const step = new Function("got", "abort", script.replace("break", "return true"));
            try {
                for await (const { type, data, lastEventId } of monitor.events(path, init)) {
                    got.push([type, data, lastEventId]);
                    if (step(got, abort)) break;
                }
            } catch (error) {
                window.caught = error.name;
            }
        }""",
        [f"/chat?{query}", script],
    )
    task = asyncio.create_task(reading)
    if reason == "disconnected":
        await page.until("window.got?.length === 3")
        site.cut()
    await task
    assert await page.run("got") == [["token", each, ""] for each in "abc"]
    await page.flush()
    method = {"http__request__method": "POST"}
    assert exported.value("sse.client.messages", sse__event__type="token", **method) == 3
    assert exported.value("sse.client.handler.duration", **method) == 3
    (ended,) = exported.points("sse.client.connection.duration", **method)
    assert ended.value == 1
    assert ended.attributes["http.response.status_code"] == 200
    assert (ended.attributes["sse.close.reason"], ended.attributes.get("error.type")) == (
        reason,
        error,
    )


async def test_no_stream(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """An answer that is no event stream is handed to the page, and is no connection."""
    site.answers["/chat"] = [web.json_response({"error": "busy"}, status=503)]
    page = await tab()
    found = await page.run(
        """async () => {
            try {
                for await (const _ of monitor.events("/chat", { method: "POST" }));
            } catch (error) {
                return [error.name, error instanceof sse.NotAStream, error.response.status,
                    await error.response.json()];
            }
        }"""
    )
    assert found == ["NotAStream", True, 503, {"error": "busy"}]
    await page.flush()
    assert exported.metrics() == {"sse.client.connected_time", "sse.client.disconnected_time"}


async def test_a_refused_stream(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """An event stream that is an error is a connection, ended by the page, with the code."""
    refusal = web.Response(status=503, body=b"data: x\n\n", content_type="text/event-stream")
    site.answers["/events"] = [refusal]
    site.streams["/events"] = _read
    page = await tab()
    await page.run(
        """() => {
            window.errors = 0;
            window.source = new monitor.EventSource("/events");
            source.onerror = () => { errors += 1; source.close(); };
        }"""
    )
    await page.until("errors === 1")
    await page.flush()
    (ended,) = exported.points("sse.client.connection.duration")
    assert ended.value == 1
    assert ended.attributes["sse.close.reason"] == "client_close"
    assert ended.attributes["http.response.status_code"] == 503
    assert ended.attributes["error.type"] == "503"
    assert exported.points("sse.client.messages") == []


async def test_an_insecure_page(tab: Opener, site: Site) -> None:
    """A page that came without TLS works too."""

    async def stream(_: object, write: Write) -> None:
        await write(b"data: x\n\n")
        await forever()

    site.streams["/events"] = stream
    page = await tab(host="insecure.test")
    assert await page.run("isSecureContext") is False
    await page.run(_FOLLOW, "/events")
    await page.until("got.length === 1")
    assert _total(await page.run("monitor.totals()"), "sse.client.messages") == 1


async def test_silence(tab: Opener, site: Site) -> None:
    """A stream without a message is recorded as stalled; a keep-alive is no message."""

    async def stream(_: object, write: Write) -> None:
        await write(b"data: x\n\n")
        while True:
            await write(b": ping\n\n")
            await asyncio.sleep(0.1)

    site.streams["/events"] = stream
    patient, strict = await tab(), await tab(stallSeconds=0.5)
    for page in (patient, strict):
        await page.run(_FOLLOW, "/events")
        await page.until("got.length === 1")
    await strict.run(
        """async () => {
            for (let stalled = 0; stalled !== 1; ) {
                await new Promise(resolve => setTimeout(resolve, 50));
                const { points } = (await monitor.totals())["sse.client.stalled_connections"];
                stalled = points[0].value;
            }
        }"""
    )
    totals = await patient.run("monitor.totals()")
    assert _total(totals, "sse.client.stalled_connections") == 0
    assert _total(totals, "sse.client.active_connections") == 1


async def test_named_types(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """Where event types are named, only these and `message` are recorded by name."""

    async def stream(_: object, write: Write) -> None:
        await write(b"event: a\ndata\n\nevent: b\ndata\n\ndata\n\n")
        await forever()

    site.streams["/events"] = stream
    page = await tab(eventTypes=["b"])
    await page.run(_FOLLOW, "/events")
    await page.until("got.length === 1")
    await page.flush()
    types = {
        point.attributes["sse.event.type"]: point.value
        for point in exported.points("sse.client.messages")
    }
    assert types == {"_OTHER": 1, "b": 1, "message": 1}


async def test_the_semantic_conventions(tab: Opener, site: Site, exported: AddedReceiver) -> None:
    """What a page sends has semconv.py's names, units, buckets and attributes, in deltas."""
    pages = RawReceiver()
    expected = {metric.name: metric.unit for metric in semconv.CLIENT_METRICS.values()} | _BROWSER

    async def stream(_: object, write: Write) -> None:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        for sent in (1, 2**62):
            await write(b": otel traceparent=%s;ts=%d\ndata: x\n\n" % (parent.encode(), sent))
        await write(b": ping\n\ndata: x\n\n")

    site.streams["/events"] = stream
    with pages, Collector(exported, pages.endpoint) as collector:
        page = await tab()
        await page.run(
            """async collector => {
                window.monitor = sse.monitor({ collector, service: "shop" });
                for await (const _ of monitor.events("/events"));
                await monitor.flush();
            }""",
            collector.endpoint,
        )
        await collector.settle()
        assert {name: metric.unit for name, metric in pages.sent.items()} == expected
        cumulative = {name for name, metric in pages.sent.items() if not metric.delta}
        assert cumulative == {"sse.client.active_connections", "sse.client.stalled_connections"}
        kinds = {metric.name: metric.buckets for metric in semconv.CLIENT_METRICS.values()}
        buckets = {name: pages.sent[name].buckets for name in kinds}
        assert buckets == kinds
        base = {"http.request.method": "GET", "server.address": "localhost"}
        for name, metric in pages.sent.items():
            assert metric.resource["service.name"] == "shop"
            for attributes in metric.attributes:
                assert base.items() <= attributes.items(), name
                assert isinstance(attributes["server.port"], int)
        # Of the cumulative ones each page has its own; they are not for adding up.
        assert exported.metrics() == set(expected) - cumulative
        assert {point.resource["service.name"] for point in exported.points("sse.client.io")} == {
            "shop"
        }


async def test_untrusted_pages(tab: Opener, exported: AddedReceiver, collector: Collector) -> None:
    """The collector takes nothing of another origin's page, and of ours only the client metrics."""
    page = await tab()
    send = """async ([url, name]) => {
        const point = { asInt: "1", timeUnixNano: "2000", startTimeUnixNano: "1000" };
        const sum = { dataPoints: [point], aggregationTemporality: 1, isMonotonic: true };
        const scopeMetrics = [{ metrics: [{ name, unit: "1", sum }] }];
        const body = JSON.stringify({ resourceMetrics: [{ scopeMetrics }] });
        const headers = { "Content-Type": "application/json" };
        const answer = fetch(url, { method: "POST", headers, body });
        return await answer.then(({ status }) => status, () => 0);
    }"""
    url = f"{collector.endpoint}/v1/metrics"
    assert await page.run(send, [url, "sse.client.comments"]) == 200
    assert await page.run(send, [url, "sse.server.messages"]) == 200
    other = await tab(host="insecure.test")
    assert await other.run(send, [url, "sse.client.io"]) == 0
    await collector.settle()
    assert exported.metrics() == {"sse.client.comments"}


def _total(totals: dict[str, Any], name: str) -> float:
    return float(sum(point["value"] for point in totals[name]["points"]))


async def _arrives(exported: AddedReceiver, name: str, value: float) -> None:
    await asyncio.to_thread(exported.wait_for, lambda: exported.value(name) == value, 60.0)
