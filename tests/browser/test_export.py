"""How a page's telemetry leaves it: options, refusals, providers of its own, spans, the end."""

import asyncio
import json
import re
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from browser.collector import Collector
from browser.receivers import AddedReceiver
from browser.site import Site, Write, forever
from browser.tab import SHARED_LOOP, Opener, Tab
from helpers.servers import free_port
from helpers.tools import tool
from helpers.waiting import until

pytestmark = SHARED_LOOP

_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"
_OPEN = """path => {
    window.got = [];
    window.source = new monitor.EventSource(path);
    source.onmessage = ({ data }) => got.push(data);
}"""


async def _tick(_: web.Request, write: Write) -> None:
    """One message, and no end."""
    await write(b"data: x\n\n")
    await forever()


class PickyCollector:
    """Answers an OTLP/JSON export with what a test wants, on the page's own origin."""

    def __init__(self, site: Site) -> None:
        self.url = f"{site.url}/otlp"
        # The status of each next request; then 200. A limit refuses what is larger.
        self.statuses: list[int] = []
        self.limit = 0
        self.accepted: list[web.Request] = []
        site.answers["/otlp/v1/metrics"] = self._metrics
        site.answers["/otlp/v1/traces"] = lambda _: web.json_response({})

    def _metrics(self, request: web.Request) -> web.Response:
        status = self.statuses.pop(0) if self.statuses else 200
        if self.limit and (request.content_length or 0) > self.limit:
            status = 413
        if status == 200:
            self.accepted.append(request)
            return web.json_response({})
        # No retry within the exporter's own ten seconds.
        return web.Response(status=status, headers={"Retry-After": "60"})

    async def points(self, name: str) -> list[dict[str, Any]]:
        """The data points of that metric, of all accepted requests."""
        found = []
        for request in self.accepted:
            body = json.loads(await request.read())
            for resource in body["resourceMetrics"]:
                for scope in resource["scopeMetrics"]:
                    for metric in scope["metrics"]:
                        if metric["name"] == name:
                            data = metric.get("sum") or metric["histogram"]
                            found += data["dataPoints"]
        return found


async def _messages(collector: PickyCollector) -> int:
    points = await collector.points("sse.client.messages")
    return sum(int(point["asDouble" if "asDouble" in point else "asInt"]) for point in points)


# --- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("{}", "collector is missing"),
        ("", "it takes an object"),
        ("null", "it takes an object"),
        ("{ colector: 'http://localhost' }", "there is no option 'colector'"),
        ("{ collector: '', service: 'shop' }", "collector is empty"),
        ("{ collector: 'http://[', service: 'shop' }", "'http://[', which is no URL"),
        ("{ collector: 'localhost:4318', service: 'shop' }", "of scheme 'localhost:'"),
        ("{ collector: 'https://c/v1/metrics', service: 'shop' }", "leave out /v1/..."),
        ("{ collector: 'https://c/?key=1', service: 'shop' }", "with a query"),
        ("{ collector: 'https://c' }", "service is undefined"),
        ("{ collector: 'https://c', service: 'a', headers: { 'a b': 'c' } }", "headers is"),
        ("{ collector: 'https://c', service: 'a', stallSeconds: 0 }", "stallSeconds is 0"),
        ("{ collector: 'https://c', service: 'a', eventTypes: 'a' }", "eventTypes is 'a'"),
        ("{ meterProvider: {} }", "getMeter()"),
        ("{ meterProvider: { getMeter() {} }, service: 'a' }", "set service there"),
        ("{ collector: null, tracerProvider: 1 }", "getTracer()"),
    ],
)
async def test_a_wrong_option_is_named(tab: Opener, options: str, expected: str) -> None:
    """A mistake is a TypeError at the call; its message names what is wrong and what is taken."""
    page = await tab(collector=None)
    message = await page.run(
        f"""() => {{
            try {{
                sse.monitor({options});
            }} catch (error) {{
                return `${{error.name}}: ${{error.message}}`;
            }}
        }}"""
    )
    assert message.startswith("TypeError: monitor(): ")
    assert expected in message


async def test_without_a_collector_nothing_is_sent(tab: Opener, site: Site) -> None:
    """``collector: null`` keeps the figures in the page, and the console stays empty."""
    site.streams["/events"] = _tick
    page = await tab(collector=None)
    await page.run(_OPEN, "/events")
    await page.until("got.length === 1")
    await page.run("monitor.flush()")
    totals = await page.run("monitor.totals()")
    assert totals["sse.client.messages"]["points"][0]["value"] == 1
    assert {each.path for each in site.requests} == {"/events"}
    assert page.logged == []


async def test_headers_and_resource_attributes(tab: Opener, site: Site) -> None:
    """They are on each request to the collector, and in each export."""
    site.streams["/events"] = _tick
    collector = PickyCollector(site)
    page = await tab(
        collector=collector.url,
        headers={"Authorization": "Bearer key"},
        resourceAttributes={"deployment.environment.name": "test"},
    )
    await page.run(_OPEN, "/events")
    await page.until("got.length === 1")
    await page.run("monitor.flush()")
    for path in ("metrics", "traces"):
        (request,) = site.asked(f"/otlp/v1/{path}")
        assert request.headers["Authorization"] == "Bearer key"
        (resource,) = next(iter(json.loads(await request.read()).values()))
        attributes = {
            each["key"]: each["value"]["stringValue"] for each in resource["resource"]["attributes"]
        }
        assert attributes["deployment.environment.name"] == "test"
        assert attributes["service.name"] == "shop"


async def test_headers_to_the_real_collector(
    tab: Opener, site: Site, exported: AddedReceiver
) -> None:
    """The shipped configuration lets pages of its origins send headers of their own."""
    site.streams["/events"] = _tick
    page = await tab(headers={"X-Key": "1"})
    await page.run(_OPEN, "/events")
    await page.until("got.length === 1")
    await page.flush()
    await asyncio.to_thread(
        exported.wait_for, lambda: exported.value("sse.client.messages") == 1, 60.0
    )


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500])
async def test_a_batch_that_is_refused_is_dropped_and_counted(
    tab: Opener, site: Site, status: int
) -> None:
    """What the collector refuses permanently does not block what comes after it; the console has
    one warning of the module, however many batches are refused.
    """
    more = asyncio.Event()

    async def stream(_: object, write: Write) -> None:
        await write(b"data: x\n\n")
        await more.wait()
        await write(b"data: x\n\n" * 4)
        await forever()

    site.streams["/events"] = stream
    collector = PickyCollector(site)
    # 413: however it is split.
    collector.statuses = [status] * (1 if status != 413 else 20)
    page = await tab(collector=collector.url)
    await page.run(_OPEN, "/events")
    await page.until("got.length === 1")
    await page.run("monitor.flush()")
    refused = await page.run("monitor.exportStatus()")
    assert refused["droppedPoints"] > 0
    assert refused["exportedPoints"] == 0
    assert str(status) in refused["lastError"]
    collector.statuses = [status] * (1 if status != 413 else 20)
    await page.run("monitor.flush()")
    collector.statuses = []
    more.set()
    await page.until("got.length === 5")
    await page.run("monitor.flush()")
    assert await _messages(collector) == 4
    after = await page.run("monitor.exportStatus()")
    assert after["exportedPoints"] > 0
    (warning,) = (line for line in page.logged if line.startswith("monitor(): "))
    assert f"with status {status}" in warning
    assert ("base URL" in warning) == (status == 404)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_batch_that_is_refused_for_now_is_kept(
    tab: Opener, site: Site, status: int
) -> None:
    """What the collector may accept later is sent again, and not counted as dropped."""
    site.streams["/events"] = _tick
    collector = PickyCollector(site)
    collector.statuses = [status]
    page = await tab(collector=collector.url)
    await page.run(_OPEN, "/events")
    await page.until("got.length === 1")
    await page.run("monitor.flush()")
    assert collector.accepted == []
    await page.run("monitor.flush()")
    assert await _messages(collector) == 1
    assert (await page.run("monitor.exportStatus()"))["droppedPoints"] == 0


async def test_a_batch_that_is_too_large_is_split(tab: Opener, site: Site) -> None:
    """A receiver with a small limit gets every data point once, in several requests; the next
    batch is split from the start.
    """
    blocks = b"".join(b"event: type-%d\ndata: x\n\n" % each for each in range(12))
    more = asyncio.Event()

    async def stream(_: object, write: Write) -> None:
        await write(blocks + b"data: end\n\n")
        await more.wait()
        await write(blocks + b"data: end\n\n")
        await forever()

    site.streams["/events"] = stream
    collector = PickyCollector(site)
    collector.limit = 5000
    page = await tab(collector=collector.url)
    await page.run(_OPEN, "/events")
    await page.until("got.length === 1")
    await page.run("monitor.flush()")
    assert await _messages(collector) == 13
    first = len(collector.accepted)
    assert first > 1
    types = [
        attribute["value"]["stringValue"]
        for point in await collector.points("sse.client.messages")
        for attribute in point["attributes"]
        if attribute["key"] == "sse.event.type"
    ]
    assert len(types) == len(set(types)) == 13
    requests = len(site.asked("/otlp/v1/metrics"))
    assert requests > first
    more.set()
    await page.until("got.length === 2")
    await page.run("monitor.flush()")
    assert await _messages(collector) == 26
    again = len(site.asked("/otlp/v1/metrics")) - requests
    assert again == len(collector.accepted) - first
    assert (await page.run("monitor.exportStatus()"))["droppedPoints"] == 0


# --- spans ---------------------------------------------------------------------------------


_FOREIGN_SPAN = """async url => {
    const span = { traceId: "0af7651916cd43dd8448eb211c80319c", spanId: "b7ad6b7169203331",
        name: "x", kind: 3, startTimeUnixNano: "1000", endTimeUnixNano: "2000" };
    const body = JSON.stringify({ resourceSpans: [{ scopeSpans: [{ spans: [span] }] }] });
    const headers = { "Content-Type": "application/json" };
    const { status } = await fetch(url, { method: "POST", headers, body });
    if (status !== 200) throw new Error(status);
}"""


async def test_a_span_for_each_connect(
    tab: Opener, site: Site, exported: AddedReceiver, collector: Collector
) -> None:
    """A connect is a CLIENT span until the response's headers, by way of the real collector, and
    the server is handed its context; a refused one has the status.
    """
    site.streams["/events"] = _tick
    site.answers["/events"] = [web.Response(status=503, headers={"Retry-After": "1"})]
    page = await tab()
    # A span that is not the module's: the shipped configuration drops it.
    await page.run(_FOREIGN_SPAN, f"{collector.endpoint}/v1/traces")
    await page.run(_OPEN, "/events")
    await page.until("got.length === 1")
    await page.run("monitor.flush()")
    await asyncio.to_thread(exported.wait_for, lambda: len(exported.spans()) == 2, 60.0)
    refused, opened = sorted(exported.spans(), key=lambda span: span.start)
    for span, request in zip((refused, opened), site.asked("/events"), strict=True):
        assert (span.name, span.kind, span.scope) == ("SSE GET", "CLIENT", "otel_sse.browser")
        assert span.resource["service.name"] == "shop"
        assert span.attributes["server.address"] == "localhost"
        assert span.attributes["url.path"] == "/events"
        expected = f"00-{span.trace_id}-{span.span_id}-01"
        assert request.headers["traceparent"] == expected
    assert (refused.status, opened.status) == ("ERROR", "UNSET")
    assert refused.attributes["error.type"] == "503"
    assert opened.attributes["http.response.status_code"] == 200
    assert "error.type" not in opened.attributes


async def test_another_origin_gets_no_trace_header(
    tab: Opener, site: Site, exported: AddedReceiver
) -> None:
    """A header that the other server would have to permit would break the stream."""
    other = site.url.replace("localhost", "127.0.0.1")
    headers = {"Access-Control-Allow-Origin": "*", "Content-Type": "text/event-stream"}
    site.answers["/events"] = lambda _: web.Response(body=b"data: x\n\n", headers=headers)
    page = await tab()
    await page.run(_OPEN, f"{other}/events")
    await page.until("got.length >= 1")
    await page.run("source.close()")
    await page.run("monitor.flush()")
    assert "traceparent" not in site.asked("/events")[0].headers
    await asyncio.to_thread(exported.wait_for, lambda: len(exported.spans()) >= 1, 60.0)


# --- the page's own providers --------------------------------------------------------------

_OWN = """
import { MeterProvider, MetricReader } from "@opentelemetry/sdk-metrics";
import * as traces from "@opentelemetry/sdk-trace";

class Reader extends MetricReader {
  async onForceFlush() {}
  async onShutdown() {}
}
export const reader = new Reader();
export const meterProvider = new MeterProvider({ readers: [reader] });
export const spans = new traces.InMemorySpanExporter();
const spanProcessors = [new traces.SimpleSpanProcessor({ exporter: spans })];
export const tracerProvider = new traces.TracerProvider({ spanProcessors });
"""


async def test_a_pages_own_providers(tab: Opener, site: Site, bundle: Path) -> None:
    """Metrics and spans go to the providers of the page's own SDK and nowhere else; ``shutdown``
    ends the recording, and the providers go on.
    """
    (bundle / "own.js").write_text(_OWN)
    await _run(bundle, "esbuild", "own.js", "--bundle", "--format=esm", "--outdir=dist")
    site.streams["/events"] = _tick
    page = await tab(collector=None)
    await page.run(
        """async () => {
            window.own = await import("/dist/own.js");
            const { meterProvider, tracerProvider } = own;
            window.monitor = sse.monitor({ meterProvider, tracerProvider });
            window.read = async () => {
                const { resourceMetrics } = await own.reader.collect();
                const metrics = resourceMetrics.scopeMetrics.flatMap(({ metrics }) => metrics);
                return Object.fromEntries(metrics.map(
                    ({ descriptor, dataPoints }) => [descriptor.name, dataPoints]));
            };
        }"""
    )
    await page.run(_OPEN, "/events")
    await page.until("got.length === 1")
    recorded = await page.run("read()")
    assert [each["value"] for each in recorded["sse.client.messages"]] == [1]
    assert [each["value"] for each in recorded["sse.client.active_connections"]] == [1]
    assert recorded["sse.client.connected_time"][0]["value"] > 0
    assert (await page.run("monitor.totals()"))["sse.client.messages"]["points"][0]["value"] == 1
    assert await page.run("own.spans.getFinishedSpans().map(({ name }) => name)") == ["SSE GET"]
    assert {each.path for each in site.requests} == {"/events"}
    await page.run("monitor.shutdown()")
    await page.run(_OPEN, "/events")
    await page.until("got.length === 1")
    after = await page.run("read()")
    assert [each["value"] for each in after["sse.client.connections"]] == [1]
    assert await page.run("own.spans.getFinishedSpans().length") == 1
    assert page.logged == []


# --- shutdown ------------------------------------------------------------------------------


async def test_shutdown(tab: Opener, site: Site) -> None:
    """It exports what there is; streams go on, nothing is recorded or sent any more, and the last
    totals can be read.
    """
    more = asyncio.Event()

    async def stream(_: object, write: Write) -> None:
        await write(b"data: x\n\n")
        await more.wait()
        await write(b"data: x\n\n")
        await forever()

    site.streams["/events"] = stream
    collector = PickyCollector(site)
    page = await tab(collector=collector.url)
    await page.run(_OPEN, "/events")
    await page.until("got.length === 1")
    await page.run("Promise.all([monitor.shutdown(), monitor.shutdown()])")
    assert await _messages(collector) == 1
    requests = len(site.requests)
    more.set()
    await page.until("got.length === 2")
    await page.run("monitor.flush()")
    await page.run("dispatchEvent(new PageTransitionEvent('pagehide'))")
    totals = await page.run("monitor.totals()")
    assert totals["sse.client.messages"]["points"][0]["value"] == 1
    assert await page.run("source.readyState") == 1
    assert len(site.requests) == requests
    assert page.logged == []


# --- what is shipped beside it -------------------------------------------------------------

_GOOD = """
import { MeterProvider, TracerProvider } from "@opentelemetry/api";
import { monitor, EventStreamParser, NotAStream, unwrap } from "./dist/sse-monitor.js";

const { EventSource, events, totals, exportStatus, shutdown } = monitor({
  collector: "https://collector.example",
  service: "shop",
  headers: { Authorization: "Bearer key" },
  resourceAttributes: { "service.version": "1" },
  eventTypes: ["tick"],
});
new EventSource("/events").onmessage = ({ data }: MessageEvent<string>) => console.log(data);
export async function run(meterProvider: MeterProvider, tracerProvider: TracerProvider) {
  monitor({ meterProvider, tracerProvider });
  monitor({ collector: null });
  try {
    for await (const { type, data, lastEventId } of events("/chat", { method: "POST" })) {
      const texts: string[] = [type, data, lastEventId, await unwrap(data)];
      console.log(texts);
    }
  } catch (error) {
    if (error instanceof NotAStream) console.log(error.response.status);
  }
  const dropped: number = exportStatus().droppedPoints;
  console.log(dropped, (await totals())["sse.client.messages"]?.unit);
  for (const item of new EventStreamParser().feed(new Uint8Array())) {
    if (item.comment === undefined) console.log(item.data, item.size);
  }
  await shutdown();
  // @ts-expect-error the service is missing
  monitor({ collector: "https://collector.example" });
  // @ts-expect-error neither a collector nor a provider
  monitor({});
  // @ts-expect-error a provider exports on its own
  monitor({ meterProvider, collector: "https://collector.example" });
  // @ts-expect-error there is no such option
  monitor({ collector: null, colector: "" });
}
"""


async def test_types(bundle: Path) -> None:
    """A page in TypeScript uses all of it under ``--strict``, and mistakes do not compile."""
    page = bundle / "page.ts"
    page.write_text(_GOOD)
    await _run(
        bundle,
        *("tsc", "--noEmit", "--strict", "--target", "es2022", "--module", "esnext"),
        *("--moduleResolution", "bundler", "--lib", "es2022,dom", page.name),
    )


async def _run(bundle: Path, program: str, *arguments: str) -> None:
    """Runs one of the example's npm packages, in its folder."""
    process = await asyncio.create_subprocess_exec(
        *(bundle / "node_modules" / ".bin" / program, *arguments), cwd=bundle, stdout=PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def test_the_readmes_collector_shows_what_pages_send(
    tab: Opener, site: Site, tmp_path: Path
) -> None:
    """README.md's command, with other ports, writes the page's metrics and spans on its log."""
    (command,) = re.findall(r"^otelcol-contrib (.*)$", (_EXAMPLE / "README.md").read_text(), re.M)
    port = free_port()
    settings = [
        f"receivers::otlp/browser::protocols::http::endpoint: 127.0.0.1:{port}",
        "receivers::otlp::protocols::http::endpoint: 127.0.0.1:0",
        "receivers::otlp::protocols::grpc::endpoint: 127.0.0.1:0",
        "extensions::health_check::endpoint: 127.0.0.1:0",
        "service::telemetry::metrics::level: none",
    ]
    options = [part for each in settings for part in ("--config", f"yaml:{each}")]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *(tool("otelcol"), *command.split(), *options),
            cwd=_EXAMPLE,
            stdout=output,
            stderr=STDOUT,
        )
    try:
        await until(lambda: "Everything is ready" in log.read_text(), 60)
        site.streams["/events"] = _tick
        page: Tab = await tab(collector=f"http://127.0.0.1:{port}")
        await page.run(_OPEN, "/events")
        await page.until("got.length === 1")
        await page.run("monitor.flush()")
        await until(lambda: "sse.client.messages" in log.read_text())
        await until(lambda: "SSE GET" in log.read_text())
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)
