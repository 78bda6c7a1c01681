"""The manifests of examples/kubernetes, built by kustomize and validated without a cluster.

Core kinds by the schemas that kubernetes-validate ships, PodMonitor and ScaledObject by their
operators' own resource definitions, which .ci/install fetches. The OpenTelemetry operator's
Instrumentation has no definition here: it is only read. The queries that scale run in the real
Prometheus, on what the real collector makes of real streams.
"""

import copy
import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml
from alerting.stack import Client, Stack
from helpers.tools import tool
from helpers.waiting import wait_until
from server.settings import load

from otel_sse import semconv

FOLDER: Final = Path(__file__).resolve().parents[2] / "examples" / "kubernetes"
CONFIGS: Final = FOLDER.parents[1] / "collector"
OVERLAYS: Final = ("base", "hpa", "keda", "operator", "podmonitor")
_TOOLS: Final = Path(os.environ.get("OTEL_SSE_TOOLS") or Path.home() / ".cache/otel-sse-tools")
_VERSION: Final = "1.32"
# By kind: where its definition is.
_CRDS: Final = {
    "PodMonitor": "monitoring.coreos.com_podmonitors.yaml",
    "ScaledObject": "keda.sh_scaledobjects.yaml",
}
# Nothing here validates these.
_UNVALIDATED: Final = {"Instrumentation"}

Manifest = dict[str, Any]


@functools.cache
def build(overlay: str) -> list[Manifest]:
    """The overlay's manifests, by the command that README.md gives."""
    if kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize"]
    else:
        command = [tool("kustomize"), "build"]
    built = subprocess.run(
        [*command, "--load-restrictor", "LoadRestrictionsNone", str(FOLDER / overlay)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (
        each
        for each in manifests
        if each["kind"] == kind and each["metadata"]["name"].startswith(name)
    )
    return found


def definition(kind: str) -> Manifest:
    """The JSON schema of a custom resource; the test is skipped where it is missing, and fails in
    CI.
    """
    path = _TOOLS / "crds" / _CRDS[kind]
    if not path.exists():
        reason = f"the definition of {kind} is not here: run .ci/install"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    versions = yaml.safe_load(path.read_text())["spec"]["versions"]
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in versions if each["served"])
    closed: Manifest = _closed(schema)
    closed["properties"]["metadata"] = {"type": "object"}
    return closed


def _closed(schema: Any) -> Any:
    """The schema that takes no unknown field, as the API server warns of them."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if closed.pop("x-kubernetes-int-or-string", False) is True:
        closed.pop("type", None)
    open_ = closed.get("x-kubernetes-preserve-unknown-fields") is True
    if isinstance(schema.get("properties"), dict) and "type" in schema and not open_:
        closed.setdefault("additionalProperties", False)
    return closed


def validate(manifest: Manifest) -> None:
    kind = manifest["kind"]
    if kind in _CRDS:
        jsonschema.validate(manifest, definition(kind))
    elif kind not in _UNVALIDATED:
        kubernetes_validate.validate(manifest, _VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid(overlay: str) -> None:
    """Every field of every manifest is one that its kind has, with a value that it takes."""
    for manifest in build(overlay):
        validate(manifest)


@pytest.mark.parametrize(
    ("overlay", "kind", "path"),
    [
        ("base", "Deployment", ("spec", "template", "spec")),
        ("hpa", "HorizontalPodAutoscaler", ("spec", "behavior")),
        ("podmonitor", "PodMonitor", ("spec", "podMetricsEndpoints", 0)),
        ("keda", "ScaledObject", ("spec", "advanced", "horizontalPodAutoscalerConfig")),
    ],
)
def test_a_mistake_is_found(overlay: str, kind: str, path: tuple[Any, ...]) -> None:
    """The validation rejects a misspelt field, deep inside."""
    name = "collector-gateway" if kind == "PodMonitor" else "sse-server"
    manifest = copy.deepcopy(one(build(overlay), kind, name))
    validate(manifest)
    at = manifest
    for key in path:
        at = at[key]
    at["misspelt"] = {}
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate(manifest)


def test_what_is_not_validated_is_known() -> None:
    """README.md names the kinds that no test validates, and there are no others."""
    kinds = {manifest["kind"] for overlay in OVERLAYS for manifest in build(overlay)}
    assert kinds >= {*_CRDS, *_UNVALIDATED, "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    readme = (FOLDER / "README.md").read_text()
    assert all(f"`{kind}`" in readme for kind in _UNVALIDATED)


# --- what belongs together -----------------------------------------------------------------


def _pods(manifests: list[Manifest]) -> list[Manifest]:
    return [
        each["spec"]["template"]
        for each in manifests
        if each["kind"] in ("Deployment", "DaemonSet", "StatefulSet")
    ]


@pytest.mark.parametrize("overlay", ["hpa", "keda"])
def test_names_belong_together(overlay: str) -> None:
    """Selectors find pods, ports and volumes exist, and what is scaled is there."""
    manifests = build(overlay)
    pods = _pods(manifests)
    for manifest in manifests:
        selector = manifest.get("spec", {}).get("selector")
        if manifest["kind"] in ("Service", "PodDisruptionBudget", "PodMonitor"):
            labels = selector.get("matchLabels", selector)
            (pod,) = (each for each in pods if labels.items() <= each["metadata"]["labels"].items())
            ports = {
                port["name"]
                for container in pod["spec"]["containers"]
                for port in container.get("ports", ())
            }
            wanted = {each["targetPort"] for each in manifest["spec"].get("ports", ())}
            wanted |= {each["port"] for each in manifest["spec"].get("podMetricsEndpoints", ())}
            assert wanted <= ports
        target = manifest.get("spec", {}).get("scaleTargetRef")
        if target:
            scaled = one(manifests, target.get("kind", "Deployment"), target["name"])
            assert "replicas" not in scaled["spec"]
    maps = {each["metadata"]["name"] for each in manifests if each["kind"] == "ConfigMap"}
    for pod in pods:
        volumes = {each["name"]: each for each in pod["spec"].get("volumes", ())}
        claims = {"data"}
        for container in pod["spec"]["containers"]:
            assert re.search(r":\d+\.\d+\.\d+(-\w+)?$", container["image"]), container["image"]
            assert "memory" in container["resources"]["limits"]
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if "httpGet" in container.get(probe, {}):
                    assert container[probe]["httpGet"]["port"] in ports
            assert {each["name"] for each in container["volumeMounts"]} <= {*volumes, *claims}
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps


def _server() -> Manifest:
    return one(build("base"), "Deployment", "sse-server")["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def _environment(container: Manifest) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


def test_the_server_takes_its_environment() -> None:
    """Every setting exists, its value is accepted, and fits the container's limits."""
    (container,) = _server()["containers"]
    settings = load(_environment(container))
    assert settings.port == container["ports"][0]["containerPort"]
    assert settings.memory_limit_mb < 1024 == _mebibytes(container["resources"]["limits"]["memory"])


def test_the_server_answers_to_the_names_of_its_service() -> None:
    """Pods that ask for the Service by any of its names in the cluster's DNS get no 421."""
    service = one(build("base"), "Service", "sse-server")["metadata"]
    name, namespace = service["name"], service["namespace"]
    inside = f"{name}.{namespace}"
    (container,) = _server()["containers"]
    allowed = load(_environment(container)).allowed_hosts.split(",")
    assert {name, inside, f"{inside}.svc", f"{inside}.svc.cluster.local"} <= set(allowed)


def _mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


def test_a_pod_has_the_time_to_end_its_streams() -> None:
    """The grace period holds `preStop`, the end of the streams and their export."""
    pod = _server()
    (container,) = pod["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    report = float(_environment(container)["OTEL_PYTHON_SSE_SHUTDOWN_SECONDS"])
    # 18 s: the slowest end of 10,000 streams, examples/server/README.md.
    assert pause > 0
    assert report >= 18
    assert pause + report < pod["terminationGracePeriodSeconds"]
    # A pod that is full or stopping is found before `preStop` is over.
    probe = container["readinessProbe"]
    assert probe["httpGet"]["path"] == "/readyz"
    assert probe["periodSeconds"] * probe["failureThreshold"] < pause


@pytest.mark.parametrize("kind", ["DaemonSet", "Deployment"])
def test_the_collectors_take_their_configuration(kind: str, tmp_path: Path) -> None:
    """The real collector validates the files of each command, as they are in the ConfigMaps."""
    manifests = build("base")
    name = "collector-agent" if kind == "DaemonSet" else "collector-gateway"
    (container,) = one(manifests, kind, name)["spec"]["template"]["spec"]["containers"]
    for file, text in one(manifests, "ConfigMap", name)["data"].items():
        assert text == (CONFIGS / file).read_text()
        (tmp_path / file).write_text(text)
    arguments = [each.replace("/config/", f"{tmp_path}/") for each in container["args"]]
    checked = subprocess.run(
        [tool("otelcol"), "validate", *arguments],
        env={**os.environ, **_environment(container), "SSE_QUEUE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    built = yaml.safe_load((CONFIGS / "builder.yaml").read_text())["dist"]["version"]
    assert container["image"].endswith(f"-contrib:{built}")


# --- scaling -------------------------------------------------------------------------------


def _queries() -> dict[str, str]:
    """As prometheus-adapter makes it of its template for the HPA's selector, and as KEDA has it."""
    hpa = one(build("hpa"), "HorizontalPodAutoscaler", "sse-server")
    metric = hpa["spec"]["metrics"][0]["external"]["metric"]
    values = yaml.safe_load((FOLDER / "hpa/prometheus-adapter.yaml").read_text())
    (rule,) = values["rules"]["external"]
    assert rule["seriesQuery"] == metric["name"]
    labels = ",".join(
        f'{key}="{value}"' for key, value in metric["selector"]["matchLabels"].items()
    )
    adapter = rule["metricsQuery"].replace("<<.Series>>", metric["name"])
    keda = one(build("keda"), "ScaledObject", "sse-server")["spec"]["triggers"][0]["metadata"]
    return {"adapter": adapter.replace("<<.LabelMatchers>>", labels), "keda": keda["query"]}


def test_both_ways_of_scaling_are_the_same() -> None:
    """The HPA and the ScaledObject have the same query, target, limits and behaviour."""
    adapter, keda = _queries().values()
    assert adapter == keda
    hpa = one(build("hpa"), "HorizontalPodAutoscaler", "sse-server")["spec"]
    scaled = one(build("keda"), "ScaledObject", "sse-server")["spec"]
    assert hpa["behavior"] == scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    target = hpa["metrics"][0]["external"]["target"]
    assert target["type"] == "AverageValue"
    assert target["averageValue"] == scaled["triggers"][0]["metadata"]["threshold"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (
        scaled["minReplicaCount"],
        scaled["maxReplicaCount"],
    )
    assert hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 600


def test_the_queries_name_what_is_emitted() -> None:
    """The metric and the labels are those of semconv.py, and the job is the server's name."""
    (container,) = _server()["containers"]
    service = _environment(container)["OTEL_SERVICE_NAME"]
    metric = semconv.ACTIVE.name.replace(".", "_")
    attributes = (semconv.HTTP_METHOD, semconv.HTTP_ROUTE, semconv.URL_SCHEME)
    labels = {"job", "instance", *(each.replace(".", "_") for each in attributes)}
    for query in _queries().values():
        assert re.findall(r"\bsse_\w+", query) == [metric]
        (grouped,) = re.findall(r"by \(([^)]*)\)", query)
        assert {each.strip() for each in grouped.split(",")} == labels
        assert re.findall(r'job="([^"]*)"', query) == [service]


def test_the_queries_count_streams_in_the_real_prometheus(tmp_path: Path) -> None:
    """Real streams of two processes of the service, by way of the real collector: each query gives
    their number, and leaves out another service's.
    """
    queries = _queries()
    with Stack(tmp_path) as stack:
        stack.start_collector()
        stack.start_prometheus()
        one_, two = (stack.start_application("sse-server") for _ in range(2))
        other = stack.start_application("other")
        clients = [Client(port, "/silent") for port in (one_, one_, two, other)]

        def counts() -> dict[str, float]:
            found = {name: stack.query(query) for name, query in queries.items()}
            return {
                name: float(result[0]["value"][1]) if result else 0.0
                for name, result in found.items()
            }

        wait_until(lambda: counts() == {"adapter": 3, "keda": 3}, what="the streams")
        for client in clients:
            client.close()
        wait_until(lambda: counts() == {"adapter": 0, "keda": 0}, what="their end")
