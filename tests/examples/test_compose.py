"""The compose file, as far as it can be checked where no engine is: the schema of the Compose
Specification takes it, the configurations that it mounts are those of collector/, and the programs
that it starts take them by the very commands that it gives.
"""

import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from collector.processes import CONFIGS, Collector, Process, get
from examples.commands import EXAMPLES
from examples.composed import (
    COMPOSE,
    DOCKERFILE,
    FILE,
    PROJECT,
    SERVICES,
    WORKERS,
    binds,
    mounted,
)
from helpers.servers import free_port
from helpers.tools import tool
from helpers.waiting import wait_until
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

# A name, and a version to its last number.
PINNED: Final = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+(-[a-z0-9.-]+)?")
# What Prometheus 3 asks a target for.
PROMETHEUS_3: Final = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.1"
)


def check(file: Path) -> "subprocess.CompletedProcess[str]":
    """How the Compose Specification's schema judges a file."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, str(file)], capture_output=True, text=True)


def test_the_schema_takes_it() -> None:
    """The Compose Specification's own, of the package that ships it."""
    checked = check(FILE)
    assert checked.returncode == 0, checked.stdout


def test_the_schema_would_find_a_fault(tmp_path: Path) -> None:
    """A key that there is not, and a value of the wrong kind, each at its place."""
    for right, wrong in (
        ("mem_limit: 512m", "memory: 512m"),
        ("stop_grace_period: 30s", "init: 3"),
    ):
        broken = tmp_path / "compose.yaml"
        broken.write_text(FILE.read_text().replace(right, wrong, 1))
        checked = check(broken)
        assert checked.returncode != 0
        assert "::$.services" in checked.stdout


def test_the_plugin_takes_it() -> None:
    """The same by ``docker compose``, where that is; it needs no engine for this."""
    docker = shutil.which("docker")
    asked = docker and subprocess.run([docker, "compose", "version"], capture_output=True)
    if not docker or not asked or asked.returncode != 0:
        pytest.skip("docker compose is not here")
    command = [docker, "compose", "--file", str(FILE), "config", "--quiet"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_images_are_pinned() -> None:
    """Each by its whole version; the collector is that of builder.yaml."""
    images = [each["image"] for each in SERVICES.values()]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert len(images) == len(SERVICES) + 2
    for image in images:
        assert PINNED.fullmatch(image), image
    built = yaml.safe_load((CONFIGS / "builder.yaml").read_text())["dist"]["version"]
    assert SERVICES["otel-collector"]["image"].endswith(f"-contrib:{built}")


def test_what_is_mounted_is_what_the_tests_run() -> None:
    """What configures a program is of collector/ or the server's own, and nothing of it is here."""
    for name, source, _ in binds():
        if name == "haproxy":
            assert source == EXAMPLES / "server/haproxy.cfg"
            continue
        assert source.exists(), source
        if name != "grafana" and source != COMPOSE / "secrets":
            assert source == CONFIGS or source.parent == CONFIGS
    own = {each.name for each in COMPOSE.rglob("*") if each.is_file()}
    assert own <= {
        "README.md",
        "compose.yaml",
        "Dockerfile",
        "Dockerfile.dockerignore",
        ".gitignore",
        "datasources.yaml",
        "dashboards.yaml",
    }


def test_the_real_collector_takes_its_command() -> None:
    """The files of its command together, with its environment."""
    service = SERVICES["otel-collector"]
    files = [each.removeprefix("--config=") for each in service["command"]]
    options = [f"--config={mounted('otel-collector', each)}" for each in files]
    checked = subprocess.run(
        [tool("otelcol"), "validate", *options],
        env={**os.environ, **service["environment"]},
        capture_output=True,
        text=True,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    # Without the first, or the scrape, half of the others' work is for nothing.
    assert {"base.yaml", "thresholds.collector.yaml", "scrape.yaml"} <= {
        Path(each).name for each in files
    }


def test_a_scrape_by_prometheus_3_has_the_names_of_the_rules() -> None:
    """It asks for names with dots, where they have them; the tests' Prometheus does not."""
    with Collector("scrape") as collector:
        exporter = OTLPMetricExporter(f"{collector.endpoint}/v1/metrics")
        meters = MeterProvider([PeriodicExportingMetricReader(exporter)], shutdown_on_exit=False)
        meters.get_meter("test").create_counter("sse.server.messages", "{message}").add(1)
        meters.shutdown()
        address = f"http://127.0.0.1:{collector.ports['scrape']}/metrics"
        request = urllib.request.Request(address, headers={"Accept": PROMETHEUS_3})
        with urllib.request.urlopen(request, timeout=20) as response:
            text = response.read().decode()
    assert "\nsse_server_messages_total{" in text
    assert "sse.server.messages" not in re.sub(r"(?m)^#.*$", "", text)


class Started(Process):
    """A service's own script, run by a shell with its folders elsewhere, on a port of its own."""

    def __init__(self, service: str, folder: Path) -> None:
        assert SERVICES[service]["entrypoint"] == ["/bin/sh", "-ec"]
        (script,) = SERVICES[service]["command"]
        homes = {
            f"/bin/{service}": f"{tool(service)} --web.listen-address=127.0.0.1:{{port}}",
            "/config": str(mounted(service, "/config")),
            "/tmp": str(folder),
            f"/{service}": str(folder / "data"),
        }
        self.port = free_port()
        places = "|".join(map(re.escape, homes))
        # A path begins there, and goes on or ends.
        script = re.sub(rf"(?<![\w./-])({places})(?![\w-])", lambda at: homes[at[1]], script)
        super().__init__("/bin/sh", "-ec", script.replace("{port}", str(self.port)))

    def start(self) -> None:
        super().start()
        self.ready(f"http://127.0.0.1:{self.port}/-/ready")

    def ask(self, path: str) -> Any:
        return json.loads(get(f"http://127.0.0.1:{self.port}{path}"))


def test_prometheus_starts_as_composed(tmp_path: Path) -> None:
    """By its command: it scrapes the collector, notifies Alertmanager, and has every rule. The
    sources are not touched.
    """
    before = {each: each.read_bytes() for each in (CONFIGS / "prometheus").iterdir()}
    with Started("prometheus", tmp_path) as prometheus:
        targets = wait_until(lambda: prometheus.ask("/api/v1/targets")["data"]["activeTargets"])
        managers = wait_until(
            lambda: prometheus.ask("/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
        )
        groups = prometheus.ask("/api/v1/rules")["data"]["groups"]
    assert [each["scrapeUrl"] for each in targets] == ["http://otel-collector:8889/metrics"]
    assert [each["url"] for each in managers] == ["http://alertmanager:9093/api/v2/alerts"]
    alerts = {rule["name"] for group in groups for rule in group["rules"]}
    wanted = {each["alert"] for each in yaml.safe_load((CONFIGS / "thresholds.yaml").read_text())}
    assert wanted <= alerts
    assert {each: each.read_bytes() for each in (CONFIGS / "prometheus").iterdir()} == before
    checked = subprocess.run(
        [tool("promtool"), "check", "config", str(tmp_path / "prometheus.yaml")],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alertmanager_starts_as_composed(tmp_path: Path) -> None:
    """By its command: the log of the alerts is the server's webhook, all else is as it was."""
    with Started("alertmanager", tmp_path) as alertmanager:
        status = alertmanager.ask("/api/v2/status")
    taken = yaml.safe_load(status["config"]["original"])
    shipped = yaml.safe_load((CONFIGS / "alertmanager/alertmanager.yaml").read_text())
    hooks = {each["name"]: each["webhook_configs"][0]["url"] for each in taken["receivers"]}
    assert hooks["log"] == "http://worker-1:8080/alerts"
    assert "worker" not in hooks["critical"] + hooks["warning"]
    assert len(taken["route"]["routes"]) == len(shipped["route"]["routes"])
    checked = subprocess.run(
        [tool("amtool"), "check-config", str(tmp_path / "alertmanager.yaml")],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "1 templates" in checked.stdout


def test_secrets_are_where_alertmanager_looks() -> None:
    """Its configuration names them relative to the folder that it is started in."""
    text = (CONFIGS / "alertmanager/alertmanager.yaml").read_text()
    named = set(re.findall(r"_file: (\S+?)\}*$", text, re.MULTILINE))
    assert named == {f"secrets/{name}" for name in ("smtp_password", "slack_url", "webhook_token")}
    folder = SERVICES["alertmanager"]["working_dir"]
    assert mounted("alertmanager", f"{folder}/secrets") == COMPOSE / "secrets"
    kept = (COMPOSE / "secrets/.gitignore").read_text().splitlines()
    assert kept[1:] == ["*", "!.gitignore"]


def test_grafana_is_provisioned() -> None:
    """The dashboard takes whatever source of its type is the default, and there is one; the file is
    where Grafana is configured to look.
    """
    dashboard = json.loads(mounted("grafana", "/dashboards/dashboard.json").read_text())
    (source,) = (each for each in dashboard["templating"]["list"] if each["type"] == "datasource")
    assert set(_uids(dashboard["panels"])) == {f"${{{source['name']}}}"}
    home = "/etc/grafana/provisioning"
    sources = yaml.safe_load(mounted("grafana", f"{home}/datasources/sse.yaml").read_text())
    defaults = [each for each in sources["datasources"] if each.get("isDefault")]
    assert [each["type"] for each in defaults] == [source["query"]]
    (provider,) = yaml.safe_load(mounted("grafana", f"{home}/dashboards/sse.yaml").read_text())[
        "providers"
    ]
    shown = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(shown).parent == Path(provider["options"]["path"]) == Path("/dashboards")
    assert mounted("grafana", shown) == CONFIGS / "dashboards/dashboard.json"


def _uids(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("datasource"), dict):
            yield node["datasource"]["uid"]
        for value in node.values():
            yield from _uids(value)
    elif isinstance(node, list):
        for each in node:
            yield from _uids(each)


def test_addresses_are_services() -> None:
    """Whatever one container calls is another one, or itself."""
    texts = [FILE.read_text(), (COMPOSE / "grafana/datasources.yaml").read_text()]
    # A comma or a slash: what sed puts in.
    called = re.findall(r"(?:://|[\d/]/)([a-z][\w.-]*):(\d+)", "\n".join(texts))
    assert {host for host, _ in called} - {"localhost"} == {
        "worker-1",
        "redis",
        "otel-collector",
        "prometheus",
        "alertmanager",
        "jaeger",
    }
    assert {host for host, _ in called} - {"localhost"} <= SERVICES.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_fit_to_run(name: str) -> None:
    """Bounded in memory and log, restarted, unprivileged, on this machine's address alone, and
    waited for by what can check that it is there.
    """
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert not {"privileged", "network_mode", "user"} & service.keys()
    # Tokens and passwords come from files, or are not there.
    assert not re.search("password|token|secret", str(service.get("environment")).lower())
    for other, wanted in service.get("depends_on", {}).items():
        healthy = "healthcheck" in SERVICES[other] or "build" in SERVICES[other]
        condition = "service_healthy" if healthy else "service_started"
        assert wanted == {"condition": condition}, other


def test_the_workers_are_where_haproxy_looks() -> None:
    """Each at an address of its own in the network, and HAProxy at the one that they believe."""
    (config,) = PROJECT["networks"]["default"]["ipam"]["config"]
    network, others = (ipaddress.ip_network(config[each]) for each in ("subnet", "ip_range"))
    homes = {
        name: service["networks"]["default"]["ipv4_address"]
        for name, service in SERVICES.items()
        if "networks" in service
    }
    assert homes.keys() == {"haproxy", "alertmanager", *WORKERS}
    assert len(set(homes.values())) == len(homes)
    for each in map(ipaddress.ip_address, homes.values()):
        assert each in network
        # No other service is given it.
        assert each not in others
    environment = SERVICES["haproxy"]["environment"]
    assert [environment[f"SSE_WORKER_{number}"] for number in (1, 2, 3, 4)] == [
        f"{homes[each]}:{SERVICES[each]['environment']['SSE_SERVER_PORT']}" for each in WORKERS
    ]
    for each in WORKERS:
        assert SERVICES[each]["environment"]["SSE_SERVER_PROXY"] == homes["haproxy"]
        assert SERVICES[each]["environment"]["SSE_SERVER_ALERTS_FROM"] == homes["alertmanager"]


def test_volumes_are_used() -> None:
    """Each named volume is one service's, and is declared."""
    named = [
        mount.split(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", ())
        if not mount.startswith(".")
    ]
    assert sorted(named) == sorted(PROJECT["volumes"])


def test_the_server_gets_the_signal() -> None:
    """SIGTERM comes to the process itself, which is no shell and not root; the engine waits for
    longer than the server drains.
    """
    text = DOCKERFILE.read_text()
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert json.loads(command) == ["opentelemetry-instrument", "python", "-m", "server"]
    assert "\nENTRYPOINT" not in text
    assert "\nSTOPSIGNAL SIGTERM\n" in text
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE)
    assert all(SERVICES[each]["stop_grace_period"] == "30s" for each in WORKERS)
    (health,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", text, re.MULTILINE)
    assert "/healthz" in json.loads(health)[-1]
    compile(json.loads(health)[-1], "<health>", "exec")


def test_the_image_installs_what_there_is() -> None:
    """The extra and the group of its pip are those of pyproject.toml."""
    project = (EXAMPLES.parent / "pyproject.toml").read_text()
    (line,) = re.findall(r"pip install (.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    (group,) = re.findall(r"--group (\w+)", line)
    (extra,) = re.findall(r"'\.\[(\w+)\]'", line)
    extras, _, groups = project.partition("[dependency-groups]")
    assert re.search(rf"^{extra} = \[", extras, re.MULTILINE)
    assert re.search(rf"^{group} = \[", groups, re.MULTILINE)
