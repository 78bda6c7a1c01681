"""The files of collector/: each is valid, they go together, and each does to real data what
it describes.
"""

import contextlib
import http.client
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from collector.processes import CONFIGS, App, Collector, Process, configs, to
from helpers.otlp import Receiver, Span
from helpers.servers import free_port, refusing_port
from helpers.tools import tool
from helpers.waiting import wait_until
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

THRESHOLDS: Final = "thresholds.collector"
# What is added to base.yaml and the thresholds, each by itself or all together.
ADDED: Final = (
    "scrape",
    "remote-write",
    "jaeger",
    "tempo",
    "victoriametrics",
    "drop-noise",
    "http-latency",
    "span-latency",
    "tail-sampling",
    "persistence",
)
TOGETHER: Final = (
    (),
    (THRESHOLDS,),
    *((THRESHOLDS, each) for each in ADDED),
    (THRESHOLDS, *ADDED),
    (THRESHOLDS, *reversed(ADDED)),
    (THRESHOLDS, "agent"),
    (THRESHOLDS, "agent", "scrape", "drop-noise", "http-latency"),
    ("gateway", "jaeger", "victoriametrics", "tail-sampling", "persistence"),
)


@pytest.mark.parametrize("files", TOGETHER, ids="+".join)
def test_what_goes_together_is_valid(files: tuple[str, ...]) -> None:
    """The real collector accepts base.yaml with each of the files, and with all of them."""
    checked = subprocess.run(
        [tool("otelcol"), "validate", *configs("base", *files)], capture_output=True, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_config_is_tried() -> None:
    """A file that is added to collector/ is among those above, or this fails."""
    tried = {
        "base",
        "builder",
        "objectives",
        "thresholds",
        *(name for files in TOGETHER for name in files),
    }
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == tried


def test_the_readmes_commands_are_valid() -> None:
    """Each command that the README gives for a collector is one that the collector accepts."""
    commands = re.findall(r"^ *otelcol-contrib ((?:.*\\\n)*.*)$", _readme(), re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        arguments = shlex.split(command.replace("\\\n", " ").replace("validate ", ""))
        checked = subprocess.run(
            [tool("otelcol"), "validate", *arguments], cwd=CONFIGS, capture_output=True, text=True
        )
        assert (checked.returncode, checked.stderr) == (0, ""), command


def test_the_readme_knows_every_threshold() -> None:
    """Its table has each alert with its severity, variable and default, and no other."""
    section = _readme().partition("\n## The thresholds\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (SSE\w+) \| (\w+) \| (?:`(\w+)` \| ([\d.]+))?", section, re.MULTILINE)
    assert rows == [
        (each["alert"], each["severity"], each.get("variable", ""), str(each.get("default", "")))
        for each in yaml.safe_load((CONFIGS / "thresholds.yaml").read_text())
    ]


def test_the_readme_knows_every_objective() -> None:
    """Its tables have each objective and each alert on its error budget, and no other."""
    content = yaml.safe_load((CONFIGS / "objectives.yaml").read_text())
    objectives = re.findall(
        r"^\| .* \| `(\w+)` \| `(\w+)` \| ([\d.]+) \|$", _readme(), re.MULTILINE
    )
    assert objectives == [
        (each["slo"], each["variable"], str(each["default"])) for each in content["objectives"]
    ]
    row = r"^\| (SSE\w+) \| (\w+) \| `(\w+)` \| ([\d.]+) \| .* and "
    assert re.findall(row, _readme(), re.MULTILINE) == [
        (each["alert"], each["severity"], each["variable"], str(each["default"]))
        for each in content["alerts"]
    ]


def _readme() -> str:
    return (CONFIGS / "README.md").read_text()


def test_no_two_added_files_replace_the_same_list() -> None:
    """Merged files replace lists: one added file at most sets each, or all alike."""
    lists: dict[tuple[str, ...], list[Any]] = {}
    for name in ADDED:
        for path, value in _lists(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())):
            values = lists.setdefault(path, [])
            assert value in values or not values, (name, path)
            values.append(value)


def _lists(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _lists(value, (*path, key))
    elif isinstance(node, list):
        yield path, node


def test_persistence_sends_where_the_backends_files_send() -> None:
    """persistence.yaml has to repeat the endpoints; in any order of files they are the same."""
    added = yaml.safe_load((CONFIGS / "persistence.yaml").read_text())["exporters"]
    for name in ("jaeger", "tempo", "victoriametrics"):
        own = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["exporters"]
        for exporter, config in own.items():
            assert config.items() <= added.pop(exporter).items()
    assert not added


def test_all_parts_are_of_the_stock_distribution() -> None:
    """builder.yaml names modules of OpenTelemetry's own alone, and all of one version."""
    manifest = yaml.safe_load((CONFIGS / "builder.yaml").read_text())
    parts = [each["gomod"] for kind, parts in manifest.items() if kind != "dist" for each in parts]
    version = manifest["dist"]["version"]
    for part in parts:
        module, at = part.split()
        assert module.startswith(
            (
                "go.opentelemetry.io/collector/",
                "github.com/open-telemetry/opentelemetry-collector-contrib/",
            )
        )
        assert at == f"v{version}" or "/confmap/provider/" in module


@pytest.fixture(scope="module")
def cleaned() -> Iterator[tuple[Receiver, Receiver, Collector]]:
    """An application under contrib's instrumentation, its export before and after the collector."""
    with Receiver() as raw, Receiver() as clean:
        control = (
            f"exporters::otlp_http/raw::endpoint: {raw.endpoint}",
            "exporters::otlp_http/raw::sending_queue::enabled: false",
            "service::pipelines::traces/raw::receivers: [otlp]",
            "service::pipelines::traces/raw::exporters: [otlp_http/raw]",
            "service::pipelines::metrics/raw::receivers: [otlp]",
            "service::pipelines::metrics/raw::exporters: [otlp_http/raw]",
        )
        files = (THRESHOLDS, "scrape", "drop-noise", "http-latency", "span-latency")
        settings = (
            *control,
            *to(clean.endpoint, "traces"),
            "connectors::span_metrics::metrics_flush_interval: 1s",
        )
        routes = "^/(chat|broken)$"
        with Collector(*files, settings=settings, SSE_ROUTES=routes) as collector:
            with App(collector.endpoint) as app:
                app.read("/chat")
                app.read("/broken")
                app.read("/page")
                app.stop()
            # Not noise, though each is nearly called so.
            spans = Spans(collector.endpoint)
            spans.export_one("render", "opentelemetry.instrumentation.templates")
            spans.export_one("mail http send", "shop")
            raw.wait_for(lambda: raw.value("sse.server.connection.duration") == 2)
            raw.wait_for(lambda: len(raw.spans("SSE")) == 2)
            yield raw, clean, collector


Cleaned = tuple[Receiver, Receiver, Collector]


def test_noise_is_dropped_and_nothing_else(cleaned: Cleaned) -> None:
    """Contrib's span for each chunk goes; the requests' and the streams' own spans stay."""
    raw, clean, _ = cleaned
    noise = [
        span
        for span in raw.spans("GET ")
        if span.name.endswith((" http send", " http receive")) and span.kind == "INTERNAL"
    ]
    assert len([span for span in noise if span.name == "GET /chat http send"]) > 20
    kept = {span.span_id for span in clean.spans()}
    assert kept == {span.span_id for span in raw.spans()} - {span.span_id for span in noise}
    names = {span.name for span in clean.spans()}
    assert {"SSE /chat", "SSE /broken", "GET /chat", "GET /page"} <= names
    assert {"render", "mail http send"} <= names


def test_streams_are_kept_out_of_the_latency_of_http(cleaned: Cleaned) -> None:
    """The routes that are named lose their durations, the page keeps its own; the streams' own
    metrics stay.
    """
    raw, _, collector = cleaned
    targets = {point.attributes["http.target"] for point in raw.points("http.server.duration")}
    assert targets == {"/chat", "/broken", "/page"}
    durations = collector.scraped("http_server_duration_milliseconds_count")
    assert {labels["http_target"] for labels, _ in durations} == {"/page"}
    sizes = collector.scraped("http_server_response_size_bytes_count")
    assert {labels["http_target"] for labels, _ in sizes} >= {"/page"}
    streams = collector.scraped("sse_server_connection_duration_seconds_count")
    assert {labels["http_route"] for labels, _ in streams} == {"/chat", "/broken"}


def test_latency_from_spans_is_without_streams(cleaned: Cleaned) -> None:
    """Neither streams' spans nor the HTTP spans around them are in the metrics made of spans."""
    _, _, collector = cleaned
    name = "traces_span_metrics_duration_seconds_count"
    found = wait_until(lambda: collector.scraped(name))
    assert {labels["span_name"] for labels, _ in found} >= {"GET /page"}
    assert not [labels for labels, _ in found if labels.get("http_route") in ("/chat", "/broken")]
    assert not [labels for labels, _ in found if labels["span_name"].startswith("SSE")]


def test_streams_are_kept_out_of_the_latency_of_the_stable_conventions() -> None:
    """There the route is called ``http.route``."""
    with Receiver() as receiver:
        settings = to(receiver.endpoint, "metrics")
        with Collector("http-latency", settings=settings, SSE_ROUTES="^/chat$") as collector:
            with App(collector.endpoint, OTEL_SEMCONV_STABILITY_OPT_IN="http") as app:
                app.read("/chat")
                app.read("/page")
                app.stop()
            receiver.wait_for(lambda: receiver.value("sse.server.connection.duration") == 1)
        points = receiver.points("http.server.request.duration")
        assert {point.attributes["http.route"] for point in points} == {"/page"}


def has_slow_send(segment: Span) -> bool:
    """Whether an event of a segment is a message whose send took 0.3 seconds or longer."""
    durations = (event.attributes.get("sse.send.duration") for event in segment.events)
    return any(isinstance(duration, float) and duration >= 0.3 for duration in durations)


def test_tail_sampling_keeps_errors_and_slow_sends(tmp_path: Path) -> None:
    """Whole traces: of a stream that broke all is kept, of an ordinary one nothing. Of a long one
    with a slow send at its beginning the segment that saw it is kept, and the last one, which bears
    the totals; those between are not.
    """
    env = {
        "SSE_DECISION_WAIT": "2s",
        "SSE_KEEP_PERCENT": "0",
        "SSE_SLOW_SEND_SECONDS": "0.3",
    }
    with Receiver() as receiver:
        settings = to(receiver.endpoint, "traces")
        with Collector("tail-sampling", "drop-noise", settings=settings, **env) as collector:
            short = {"OTEL_PYTHON_SSE_SEGMENT_SECONDS": "1"}
            slow = {"OTEL_PYTHON_SSE_SLOW_SEND_SECONDS": "0.3"}
            with App(collector.endpoint, **short, **slow) as app:
                app.read("/chat")
                app.read("/ticker", seconds=2.5)
                app.read("/bursts", wait=0.8, seconds=4)
                app.stop()
            # Traces are decided in the order in which they came: with this one all are.
            with App(collector.endpoint, OTEL_SERVICE_NAME="last") as app:
                app.read("/broken")
                app.stop()
            receiver.wait_for(lambda: {"SSE /broken"} <= {s.name for s in receiver.spans()}, 60)
        streams = [span for span in receiver.spans() if span.name.startswith("SSE")]
        assert {span.name for span in streams} == {"SSE /bursts", "SSE /broken"}
        segments = {
            int(str(span.attributes["sse.segment.index"])): span
            for span in streams
            if span.name == "SSE /bursts"
        }
        last = max(segments)
        assert last >= 3
        assert segments[last].attributes["sse.segment.final"] is True
        assert 0 in segments
        # A busy machine may make a send slow between the two: such a segment is kept, rightly.
        assert all(has_slow_send(segments[index]) for index in segments if index != last)
        assert len(segments) <= last
        assert {(span.resource["service.name"], span.name) for span in receiver.spans("GET")} == {
            ("streams", "GET /bursts"),
            ("last", "GET /broken"),
        }


class Spans:
    """Exports spans by the SDK, each in a request of its own."""

    def __init__(self, endpoint: str) -> None:
        resource = Resource({"service.name": "numbers"})
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{endpoint}/v1/traces")
        self.provider.add_span_processor(SimpleSpanProcessor(exporter))

    def export(self, first: int, last: int) -> None:
        for number in range(first, last):
            self.export_one(f"span {number}", "test")

    def export_one(self, name: str, scope: str) -> None:
        self.provider.get_tracer(scope).start_span(name).end()


def _numbers(*receivers: Receiver) -> set[int]:
    return {int(s.name.split()[1]) for each in receivers for s in each.spans("span ")}


def test_a_restart_and_an_absent_backend_lose_nothing(tmp_path: Path) -> None:
    """Killed, and stopped, while no backend is there: all that it took arrives, once one is."""
    absent = f"http://127.0.0.1:{refusing_port()}"
    files = (THRESHOLDS, "jaeger", "persistence")
    queue = {"SSE_QUEUE_DIR": str(tmp_path / "queue")}
    with Collector(*files, JAEGER_ENDPOINT=absent, **queue) as collector:
        Spans(collector.endpoint).export(0, 20)
        collector.kill()
    with Collector(*files, JAEGER_ENDPOINT=absent, **queue) as collector:
        Spans(collector.endpoint).export(20, 40)
        collector.stop()
    with (
        Receiver() as receiver,
        Collector(*files, JAEGER_ENDPOINT=receiver.endpoint, **queue) as collector,
    ):
        Spans(collector.endpoint).export(40, 60)
        receiver.wait_for(lambda: len(_numbers(receiver)) == 60, 60)
        assert _numbers(receiver) == set(range(60))


def test_without_persistence_the_same_is_lost(tmp_path: Path) -> None:
    """The test above can fail: a killed collector without the file forgets its queue."""
    absent = f"http://127.0.0.1:{refusing_port()}"
    with Collector("jaeger", JAEGER_ENDPOINT=absent) as collector:
        Spans(collector.endpoint).export(0, 20)
        collector.kill()
    with (
        Receiver() as receiver,
        Collector("jaeger", JAEGER_ENDPOINT=receiver.endpoint) as collector,
    ):
        Spans(collector.endpoint).export(20, 21)
        receiver.wait_for(lambda: 20 in _numbers(receiver))
        assert _numbers(receiver) == {20}


def test_a_collector_restarted_midway_loses_nothing_of_a_live_application() -> None:
    """Streams go on while the collector is away for a moment: every close arrives in the end."""
    with Receiver() as receiver:
        settings = to(receiver.endpoint, "traces", "metrics", "logs")
        with Collector(settings=settings) as collector, App(collector.endpoint) as app:
            for _ in range(5):
                app.read("/chat")
            receiver.wait_for(lambda: receiver.spans("SSE"))
            collector.stop()
            for _ in range(5):
                app.read("/chat")
            collector.start()
            for _ in range(5):
                app.read("/chat")
            app.stop()
            receiver.wait_for(lambda: len(receiver.spans("SSE")) >= 15, 60)
            receiver.wait_for(lambda: receiver.value("sse.server.connection.duration") == 15)
            receiver.wait_for(lambda: len(receiver.records("sse.connection.closed")) >= 15)
        assert len({span.attributes["sse.connection.id"] for span in receiver.spans("SSE")}) == 15


def test_agents_behind_haproxy_stay_at_a_gateway_and_survive_its_loss(tmp_path: Path) -> None:
    """Each of four agents' spans come to one gateway; when one gateway dies, the other gets all
    that is exported from then on, and nothing is lost.
    """
    with Receiver() as one, Receiver() as two, _Hosts(tmp_path, one, two) as hosts:
        sources = [Spans(agent.endpoint) for agent in hosts.agents]
        for number, source in enumerate(sources):
            source.export(number * 100, number * 100 + 10)
        wanted = {number * 100 + each for number in range(4) for each in range(10)}
        wait_until(lambda: _numbers(one, two) == wanted)
        at_one, at_two = ({n // 100 for n in _numbers(each)} for each in (one, two))
        assert at_one
        assert at_two
        assert not at_one & at_two

        hosts.gateways[0].kill()
        for number, source in enumerate(sources):
            source.export(number * 100 + 10, number * 100 + 20)
        wanted |= {each + 10 for each in wanted}
        wait_until(lambda: _numbers(one, two) == wanted, 90)


class _Hosts:
    """Four agents, HAProxy, and two gateways that hand over to a receiver each."""

    def __init__(self, folder: Path, one: Receiver, two: Receiver) -> None:
        self.gateways = [
            Collector("gateway", settings=to(each.endpoint, "traces")) for each in (one, two)
        ]
        port = free_port()
        first, second = (f"127.0.0.1:{each.ports['http']}" for each in self.gateways)
        self.haproxy = Process(
            tool("haproxy"),
            *("-db", "-f", str(CONFIGS / "haproxy.cfg")),
            SSE_BIND=f"127.0.0.1:{port}",
            SSE_GATEWAY_1=first,
            SSE_GATEWAY_2=second,
        )
        self.port = port
        self.agents = [
            Collector(
                THRESHOLDS,
                "agent",
                SSE_GATEWAY=f"http://127.0.0.1:{port}",
                SSE_QUEUE_DIR=str(folder / str(number)),
                HOSTNAME=f"host-{number}",
            )
            for number in range(4)
        ]

    def __enter__(self) -> "_Hosts":
        with contextlib.ExitStack() as started:
            for each in (*self.gateways, self.haproxy, *self.agents):
                started.enter_context(each)
            wait_until(self._listens)
            self._started = started.pop_all()
        return self

    def _listens(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/")
            # The gateway's own answer: it takes only POSTs.
            return connection.getresponse().status in (404, 405)
        except OSError:
            return False
        finally:
            connection.close()

    def __exit__(self, *_: object) -> None:
        self._started.close()
