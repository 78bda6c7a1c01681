"""Real backends: their own queries return what an instrumented application exported."""

import contextlib
import itertools
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from collector.processes import App, Collector, Process, get
from collector.simulated import MEMORY, SimulatedProcess
from helpers.servers import free_port
from helpers.tools import tool
from helpers.waiting import wait_until

from otel_sse import semconv

THROUGH = pytest.mark.parametrize("through", [False, True], ids=["directly", "through-collector"])
SHORT = {"OTEL_PYTHON_SSE_SEGMENT_SECONDS": "1"}


class Jaeger(Process):
    """Jaeger with its memory as the storage."""

    def __init__(self, folder: Path) -> None:
        self.query, grpc, otlp = free_port(), free_port(), free_port()
        self.endpoint = f"http://127.0.0.1:{otlp}"
        config = {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {
                    "traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}
                },
                "telemetry": {"metrics": {"level": "none"}},
            },
            "extensions": {
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": {"endpoint": f"127.0.0.1:{self.query}"},
                    "grpc": {"endpoint": f"127.0.0.1:{grpc}"},
                    # Or it exports spans of its own queries to port 4317.
                    "enable_tracing": False,
                },
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 1000}}}},
            },
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{otlp}"}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        }
        path = folder / "jaeger.yaml"
        path.write_text(yaml.safe_dump(config))
        super().__init__(tool("jaeger"), "--config", str(path))

    def start(self) -> None:
        super().start()
        self.ready(f"http://127.0.0.1:{self.query}/api/services")

    def spans(self, operation: str) -> list[dict[str, Any]]:
        """The spans of that name, in the order of their start."""
        query = urllib.parse.urlencode({"service": "streams", "operation": operation, "limit": 100})
        answer = json.loads(get(f"http://127.0.0.1:{self.query}/api/traces?{query}") or "{}")
        found = [span for trace in answer.get("data") or () for span in trace["spans"]]
        named = [span for span in found if span["operationName"] == operation]
        return sorted(named, key=lambda span: int(span["startTime"]))


def tags(span: dict[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


@THROUGH
def test_jaeger_shows_streams_segments_links_events_and_reasons(
    through: bool, tmp_path: Path
) -> None:
    """A stream of several segments: each is a trace that links to the one before and to the first,
    with the messages as events, and the last bears the totals and the reason.
    """
    with Jaeger(tmp_path) as jaeger:
        with _way(through, jaeger.endpoint) as endpoint:
            options = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
            with App(endpoint, **options, **SHORT) as app:
                app.read("/ticker", seconds=3.5)
                app.read("/broken")
                app.stop()
            wait_until(lambda: len(jaeger.spans("SSE /broken")) == 1)
            last = "sse.segment.final"
            wait_until(
                lambda: [each for each in jaeger.spans("SSE /ticker") if tags(each).get(last)]
            )
        segments = jaeger.spans("SSE /ticker")
        (broken,) = jaeger.spans("SSE /broken")

    assert [tags(each)["sse.segment.index"] for each in segments] == list(range(len(segments)))
    assert len(segments) >= 3
    first = segments[0]
    for before, segment in itertools.pairwise(segments):
        links = {(link["traceID"], link["spanID"]) for link in segment["references"]}
        assert (before["traceID"], before["spanID"]) in links
        assert (first["traceID"], first["spanID"]) in links
    assert len({segment["traceID"] for segment in segments}) == len(segments)
    for segment in segments[:-1]:
        events = [{f["key"]: f["value"] for f in log["fields"]} for log in segment["logs"]]
        messages = [event for event in events if event["event"] == "sse.message"]
        assert messages
        assert {event["sse.event.type"] for event in messages} == {"price"}
        sequence = [event["sse.message.sequence"] for event in messages]
        assert sequence == sorted(sequence)
    final = tags(segments[-1])
    assert final["sse.close.reason"] == "client_disconnect"
    assert final["sse.messages"] == sum(tags(each)["sse.segment.messages"] for each in segments)
    assert tags(broken)["sse.close.reason"] == "error"
    assert tags(broken)["error.type"] == "LookupError"
    assert tags(broken)["error"] is True


class VictoriaMetrics(Process):
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        super().__init__(
            tool("victoria-metrics"),
            f"-httpListenAddr=127.0.0.1:{self.port}",
            f"-storageDataPath={folder / 'data'}",
            "-opentelemetry.usePrometheusNaming",
            # Or it answers with what was true half a minute ago.
            "-search.latencyOffset=0s",
        )

    def start(self) -> None:
        super().start()
        self.ready(f"{self.endpoint}/health")

    def ask(self, query: str) -> dict[tuple[str, ...], float]:
        return ask(f"{self.endpoint}/api/v1/query", query)


def ask(url: str, query: str) -> dict[tuple[str, ...], float]:
    """The values that PromQL finds now, by the values of their labels without the name."""
    text = get(f"{url}?{urllib.parse.urlencode({'query': query})}")
    result = json.loads(text or '{"data": {"result": []}}')["data"]["result"]
    return {
        tuple(
            value for label, value in sorted(each["metric"].items()) if label != "__name__"
        ): float(each["value"][1])
        for each in result
    }


@THROUGH
def test_victoriametrics_answers_promql(through: bool, tmp_path: Path) -> None:
    """The exact counters and the reasons of the closes, by the names that the rules use."""
    with VictoriaMetrics(tmp_path) as victoria:
        direct = f"{victoria.endpoint}/opentelemetry/v1/metrics"
        with _way(through, victoria.endpoint) as endpoint:
            options = {"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
            if not through:
                options["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"] = direct
            with App(endpoint, **options) as app:
                for _ in range(3):
                    app.read("/chat")
                app.read("/broken")
                app.stop()
            messages = "sum by (http_route) (sse_server_messages_total)"
            wait_until(lambda: victoria.ask(messages) == {("/chat",): 60, ("/broken",): 1})
            closes = "sum by (sse_close_reason) (sse_server_connection_duration_seconds_count)"
            wait_until(lambda: victoria.ask(closes) == {("completed",): 3, ("error",): 1})
            open_now = victoria.ask("sum(sse_server_active_connections)")
            assert open_now == {(): 0}


def test_victoriametrics_has_an_alert_while_it_lasts(tmp_path: Path) -> None:
    """``sse.alert`` over OTLP: it is there with the breach, and ends with it."""
    with VictoriaMetrics(tmp_path) as victoria, _collector(victoria.endpoint) as collector:
        process = SimulatedProcess(collector.endpoint, start=60)
        process.export({MEMORY: 2**31}, seconds=30)
        found = wait_until(lambda: victoria.ask("sum by (alert, severity, threshold) (sse_alert)"))
        assert found == {("SSEMemoryHigh", "warning", "1024"): 2048}
        process.export({MEMORY: 2**20}, seconds=30)
        wait_until(
            lambda: victoria.ask("process_memory_usage_bytes") and not victoria.ask("sse_alert")
        )


class Prometheus(Process):
    """One that takes remote write."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        config = folder / "prometheus.yaml"
        config.write_text("{}\n")
        super().__init__(
            tool("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-remote-write-receiver",
        )

    def start(self) -> None:
        super().start()
        self.ready(f"{self.endpoint}/-/ready")

    def ask(self, query: str) -> dict[tuple[str, ...], float]:
        return ask(f"{self.endpoint}/api/v1/query", query)


@pytest.mark.parametrize("kind", [Prometheus, VictoriaMetrics])
def test_remote_write_has_the_names_of_the_scrape(
    kind: type[Prometheus | VictoriaMetrics], tmp_path: Path
) -> None:
    """A backend gets by remote write what it would have scraped, and the end of an alert."""
    endpoint = {"SSE_MAX_CONNECTIONS": "10"}
    with kind(tmp_path) as prometheus:
        endpoint["REMOTE_WRITE_ENDPOINT"] = f"{prometheus.endpoint}/api/v1/write"
        with Collector("thresholds.collector", "remote-write", **endpoint) as collector:
            process = SimulatedProcess(collector.endpoint, start=60)
            opened = {semconv.CONNECTIONS: 11}
            process.export({semconv.ACTIVE: 11, semconv.MESSAGES: 5, **opened}, seconds=30)
            wait_until(lambda: prometheus.ask("sse_alert"))
            by = "sum by (job, instance, alert, severity, threshold)"
            assert prometheus.ask(f"{by} (sse_alert)") == {
                ("SSEConnectionsHigh", process.instance, "shop", "critical", "10"): 11
            }
            wait_until(lambda: prometheus.ask("sum(sse_server_messages_total)") == {(): 5})
            process.export({semconv.ACTIVE: 10, semconv.MESSAGES: 50, **opened}, seconds=30)
            wait_until(lambda: prometheus.ask("sum(sse_server_active_connections)") == {(): 10})
            wait_until(lambda: prometheus.ask("sse_alert") == {})


def _collector(backend: str) -> Collector:
    addresses = {"JAEGER_ENDPOINT": backend, "VICTORIAMETRICS_ENDPOINT": backend}
    return Collector("thresholds.collector", "jaeger", "victoriametrics", **addresses)


@contextlib.contextmanager
def _way(through: bool, backend: str) -> Iterator[str]:
    """Where the application sends to: the backend, or a collector before it."""
    if not through:
        yield backend
        return
    with _collector(backend) as collector:
        yield collector.endpoint
