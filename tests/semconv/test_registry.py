"""The registry: valid, complete in itself, and the same as the package, the browser module, the
collector's files, the rules and the dashboard.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from jsonschema import Draft202012Validator
from opentelemetry import semconv as upstream
from semconv import pending
from semconv.registry import FILES, MANIFEST, REGISTRY, ROOT, SEMCONV, Signal

import otel_sse.semconv as sse

# Weaver's own schemas lie beside the checkout where the project is built.
WEAVER: Final = ROOT.parent / "shared" / "weaver"
COLLECTOR: Final = ROOT / "collector"
BROWSER: Final = ROOT / "examples" / "browser"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(?:[.][a-z][a-z0-9_]*)+")


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        *((file, "semconv.schema.v2.json") for file in FILES),
        (MANIFEST, "definition-manifest.v2.json"),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_each_file_is_valid_for_weaver(file: Path, schema: str) -> None:
    """OpenTelemetry Weaver's JSON schemas accept the registry and its manifest."""
    if not (WEAVER / schema).is_file():
        pytest.skip(f"Weaver's {schema} is not beside the checkout")
    validator = Draft202012Validator(json.loads((WEAVER / schema).read_text()))
    content = yaml.safe_load(file.read_text())
    assert [
        f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(content)
    ] == []


def test_every_reference_leads_to_an_attribute() -> None:
    """Each is defined here, or is one of the upstream conventions' that is not deprecated; and
    each that is defined is used.
    """
    unknown = REGISTRY.references - REGISTRY.attributes.keys()
    assert unknown <= _upstream()
    assert not [name for name in unknown if name.startswith("sse.")]
    assert REGISTRY.attributes.keys() <= REGISTRY.references
    assert REGISTRY.groups.keys() == REGISTRY.group_references


def _upstream() -> set[str]:
    """The attributes of the upstream conventions' stable part."""
    from opentelemetry.semconv import attributes

    found = set()
    for file in Path(attributes.__path__[0]).glob("*_attributes.py"):
        found |= set(re.findall(r'(?m)^[A-Z_]+: Final = "([a-z_.]+)"$', file.read_text()))
    assert upstream.__name__ == "opentelemetry.semconv"
    return found


def test_the_schema_of_the_dependency_is_the_packages() -> None:
    """The manifest depends on the release of the upstream conventions that the package names."""
    (dependency,) = yaml.safe_load(MANIFEST.read_text())["dependencies"]
    assert dependency["schema_url"]["url"] == sse.SCHEMA_URL


def test_every_definition_is_whole() -> None:
    """Each signal and attribute has a brief, a stability, and an example or its values; each
    attribute of a signal has a requirement level; each metric's emitters are known.
    """
    for key, attribute in REGISTRY.attributes.items():
        assert attribute["stability"] == "development", key
        assert attribute["brief"].endswith("."), key
        assert "examples" in attribute or "members" in attribute["type"], key
    for signal in _signals():
        assert signal.definition["stability"] == "development", signal.name
        assert signal.definition["brief"].endswith("."), signal.name
        assert None not in signal.attributes.values(), signal.name
    for metric in REGISTRY.metrics.values():
        assert metric.emitted_by <= {"server", "client", "browser", "collector"}, metric.name
        histogram = metric.definition["instrument"] == "histogram"
        assert bool(metric.buckets) is histogram, metric.name
        assert metric.buckets == tuple(sorted(set(metric.buckets))), metric.name


def _signals() -> Iterator[Signal]:
    for kind in (REGISTRY.metrics, REGISTRY.spans, REGISTRY.events):
        yield from kind.values()


@pytest.mark.parametrize(
    "names", [REGISTRY.metrics, REGISTRY.events, REGISTRY.references], ids=["m", "e", "a"]
)
def test_no_name_is_anothers_namespace(names: Iterable[str]) -> None:
    """A backend that makes a tree of dotted names can hold all metrics, events, attributes."""
    for name in names:
        assert not [other for other in names if other.startswith(f"{name}.")], name


# --- the package -------------------------------------------------------------------------------


def _package_metrics() -> dict[str, sse.Metric]:
    """Every metric of semconv.py, wherever it stands there."""
    found: dict[str, sse.Metric] = {}

    def collect(value: object) -> None:
        if isinstance(value, sse.Metric):
            assert found.setdefault(value.name, value) == value, value.name
        elif isinstance(value, dict):
            for each in value.values():
                collect(each)
        elif isinstance(getattr(value, "metrics", None), dict):
            collect(value.metrics)  # type: ignore[attr-defined]

    for value in vars(sse).values():
        collect(value)
    return found


def test_the_packages_metrics_are_the_registrys() -> None:
    """All names both ways, with units, descriptions and buckets; what is missing in the package is
    what the list of pending metrics says, no more and no less.
    """
    wanted = REGISTRY.emitted_by("server", "client")
    found = _package_metrics()
    assert found.keys() - wanted.keys() == set()
    assert wanted.keys() - found.keys() == pending.METRICS
    for name, metric in found.items():
        definition = wanted[name].definition
        assert metric.unit == definition["unit"], name
        assert metric.description == definition["brief"], name
        assert metric.buckets == wanted[name].buckets, name


def test_the_packages_attributes_and_events_are_the_registrys() -> None:
    """Every other dotted name of semconv.py is an attribute or an event here, and every one of
    those that the package emits is a name there.
    """
    metrics = _package_metrics()
    found = {
        value
        for value in vars(sse).values()
        if isinstance(value, str) and _NAME.fullmatch(value) and value not in metrics
    }
    found -= {sse.__name__}
    beside = {
        name for signal in REGISTRY.emitted_by("collector").values() for name in signal.attributes
    }
    assert found == (REGISTRY.references - beside) | REGISTRY.events.keys()


def test_the_packages_values_are_the_registrys() -> None:
    """The closed sets of values, of both roles."""
    reason = REGISTRY.attributes["sse.close.reason"]
    roles = reason["annotations"]["otel_sse"]
    assert tuple(roles["server"]) == sse.CLOSE_REASONS
    assert {*roles["client"]} == {
        *(sse.COMPLETED, sse.CLIENT_CLOSE, sse.DISCONNECTED, sse.TIMEOUT, sse.ERROR)
    }
    assert {*roles["server"], *roles["client"]} == REGISTRY.members("sse.close.reason")
    assert REGISTRY.members("sse.backlog.layer") == {sse.TRANSPORT, sse.KERNEL}


# --- the browser module ------------------------------------------------------------------------


def test_the_browser_modules_metrics_are_the_registrys() -> None:
    """Names, kinds, units and buckets of the browser module's table, both ways."""
    source = "".join(file.read_text() for file in sorted(BROWSER.glob("*.js")))
    lists = {
        name: tuple(float(each) for each in re.findall(r"[\d.]+", values))
        for name, values in re.findall(r"(?ms)^const ([A-Z]+) = \[([\d.,\s_]*?)\];", source)
    }
    table = re.findall(
        r'\["(\w+)", "(sse\.client\.[a-z_.]+)", "([^"]*)",\s*"[^"]*"(?:, ([A-Z]+))?\]',
        source,
    )
    wanted = REGISTRY.emitted_by("browser")
    assert sorted(name for _, name, _, _ in table) == sorted(wanted)
    for kind, name, unit, buckets in table:
        definition = wanted[name].definition
        assert kind.removeprefix("Observable").lower() == definition["instrument"], name
        assert unit == definition["unit"], name
        assert (lists[buckets] if buckets else ()) == wanted[name].buckets, name


def test_the_browser_modules_attributes_are_the_registrys() -> None:
    """Each attribute that the module names is one of a client's metrics, and none is missing."""
    source = "".join(file.read_text() for file in sorted(BROWSER.glob("*.js")))
    named = set(re.findall(r'"((?:sse|http|server|url|error)\.[a-z_.]+)"', source))
    named -= REGISTRY.metrics.keys()
    wanted = {
        name for signal in REGISTRY.emitted_by("browser").values() for name in signal.attributes
    }
    # The browser knows neither: its fetch fails without a reason, see examples/browser.
    # A connect's span, which only the browser makes, has the path too.
    assert named <= wanted | {"sse.event.id", "url.path"}
    assert wanted - named <= {"error.type"}


# --- collector, rules, dashboard ---------------------------------------------------------------

# The collector's own intermediate names, and the templates of Alertmanager.
_INTERNAL: Final = re.compile(r"sse[.](rate|held|total|tmpl|subject|text|html|runbook)\b")


def test_the_collectors_files_name_what_the_registry_has() -> None:
    """Each dotted name of ours in a collector's configuration or in the thresholds."""
    files = [*COLLECTOR.glob("*.yaml"), *COLLECTOR.glob("*.template"), BROWSER / "collector.yaml"]
    known = {*REGISTRY.metrics, *REGISTRY.references, *REGISTRY.events}
    seen = set()
    for file in files:
        text = file.read_text().replace("[.]", ".")
        for found in re.finditer(r"(?<![\w./-])sse[.][a-z_]+(?:[.][a-z_]+)*", text):
            name = found[0]
            # A pattern for many: `sse.client.*`.
            beginning = re.match(r"[.]\S", text[found.end() :])
            if not beginning and not _INTERNAL.match(name):
                assert name in known, (file.name, name)
                seen.add(name)
    assert {"sse.server.active_connections", "sse.alert", "sse.send.max_duration"} <= seen


def test_rules_dashboard_and_runbook_name_what_the_registry_has() -> None:
    """Each Prometheus name and label of ours in an expression, and each value of a close reason."""
    names = {name for metric in REGISTRY.metrics.values() for name in metric.prometheus}
    labels = {name.replace(".", "_") for name in REGISTRY.references}
    seen: set[str] = set()
    for expression in _expressions():
        # Recorded names bear colons.
        for token in re.findall(r"(?<![\w:])sse_\w+(?![\w:])", expression):
            assert token in names | labels, expression
            seen.add(token)
        for label in re.findall(r"\b(?:http|url|error)_\w+", expression):
            if not re.search(rf"\b{label}\w*(?:_total|_seconds)", expression):
                assert label in labels, expression
        for values in re.findall(r'sse_close_reason(?:=|!=|=~)"([^"]*)"', expression):
            assert {*values.split("|")} <= REGISTRY.members("sse.close.reason"), expression
    assert {"sse_server_connection_limit", "sse_close_reason", "sse_alert"} <= seen


def test_every_recorded_name_is_recorded() -> None:
    """Each name with colons in an expression of a rule, a panel or the runbook is recorded, and
    each that is recorded is used.
    """
    groups = [
        group
        for name in ("recording.yaml", "alerts.yaml", "slo.yaml")
        for group in yaml.safe_load((COLLECTOR / "prometheus" / name).read_text())["groups"]
    ]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    used = {
        token
        for expression in _expressions()
        for token in re.findall(r"\b[a-z]\w*:\w+:\w+", expression)
    }
    assert used == recorded


def _expressions() -> Iterator[str]:
    for file in sorted((COLLECTOR / "prometheus").glob("*.yaml")):
        yield from _strings(yaml.safe_load(file.read_text()), "expr")
    yield from _strings(json.loads((COLLECTOR / "dashboards/dashboard.json").read_text()), "expr")
    yield from re.findall(r"(?s)```promql\n(.*?)```", (COLLECTOR / "runbook.md").read_text())


def _strings(node: Any, key: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from _strings(value, key)
    elif isinstance(node, list):
        for each in node:
            yield from _strings(each, key)


def test_every_close_reason_and_metric_is_explained_on_the_page() -> None:
    """The proposal names every metric, so that none is without its place in the argument."""
    page = (SEMCONV / "README.md").read_text()
    assert [name for name in REGISTRY.metrics if f"`{name}`" not in page] == []
    assert [each for each in REGISTRY.members("sse.close.reason") if f"`{each}`" not in page] == []
