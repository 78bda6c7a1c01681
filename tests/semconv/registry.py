"""The registry of docs/semconv, read: each signal with its attributes, groups resolved."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
SEMCONV: Final = ROOT / "docs" / "semconv"
MANIFEST: Final = SEMCONV / "manifest.yaml"
FILES: Final = tuple(sorted((SEMCONV / "registry").glob("*.yaml")))
# A Prometheus name's ending by unit; an annotation in braces is no unit.
_SUFFIXES: Final = {"s": "_seconds", "By": "_bytes"}


@dataclass(frozen=True)
class Signal:
    """A metric, span or event: its definition, and its attributes to their requirement levels."""

    name: str
    definition: dict[str, Any]
    attributes: dict[str, Any]

    @property
    def annotations(self) -> dict[str, Any]:
        found: dict[str, Any] = self.definition.get("annotations", {}).get("otel_sse", {})
        return found

    @property
    def emitted_by(self) -> set[str]:
        return set(self.annotations["emitted_by"])

    @property
    def buckets(self) -> tuple[float, ...]:
        return tuple(map(float, self.annotations.get("buckets", ())))

    @property
    def required(self) -> set[str]:
        return {name for name, level in self.attributes.items() if level == "required"}

    @property
    def prometheus(self) -> set[str]:
        """The names under which Prometheus has a metric."""
        unit = self.definition["unit"]
        name = self.name.replace(".", "_") + _SUFFIXES.get(unit, "")
        kind = self.definition["instrument"]
        if kind == "histogram":
            return {f"{name}_{part}" for part in ("bucket", "count", "sum")}
        return {f"{name}_total" if kind == "counter" else name}


@dataclass
class Registry:
    """All of it, by name. ``references`` are the attributes that signals and groups refer to."""

    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, Signal] = field(default_factory=dict)
    spans: dict[str, Signal] = field(default_factory=dict)
    events: dict[str, Signal] = field(default_factory=dict)
    groups: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    references: set[str] = field(default_factory=set)
    group_references: set[str] = field(default_factory=set)

    def members(self, attribute: str) -> set[str]:
        """The values of a closed set."""
        return {each["value"] for each in self.attributes[attribute]["type"]["members"]}

    def emitted_by(self, *emitters: str) -> dict[str, Signal]:
        return {name: each for name, each in self.metrics.items() if each.emitted_by & {*emitters}}

    def resolved(self, references: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
        for each in references:
            if "ref_group" in each:
                self.group_references.add(each["ref_group"])
                yield from self.resolved(self.groups[each["ref_group"]])
            else:
                self.references.add(each["ref"])
                yield each["ref"], each.get("requirement_level")


def load() -> Registry:
    registry = Registry()
    contents = [yaml.safe_load(file.read_text()) for file in FILES]
    for content in contents:
        for each in content.get("attributes", ()):
            assert each["key"] not in registry.attributes, each["key"]
            registry.attributes[each["key"]] = each
        for each in content.get("attribute_groups", ()):
            assert each["id"] not in registry.groups, each["id"]
            registry.groups[each["id"]] = each["attributes"]
    for content in contents:
        for kind, name in (("metrics", "name"), ("spans", "type"), ("events", "name")):
            signals: dict[str, Signal] = getattr(registry, kind)
            for each in content.get(kind, ()):
                assert each[name] not in signals, each[name]
                attributes = list(registry.resolved(each.get("attributes", [])))
                names = [key for key, _ in attributes]
                assert len(names) == len(set(names)), each[name]
                signals[each[name]] = Signal(each[name], each, dict(attributes))
    return registry


REGISTRY: Final = load()
