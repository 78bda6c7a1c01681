"""Writes docs/reference/ from the code: options from config.py, signals from docs/semconv/registry.

And the tables of docs/endings.md and docs/compatibility.md, from the tests' data, see tested.py.
``python docs/generate.py`` writes the pages. tests/docs/test_reference.py compares them with what
this would write. A signal that the registry has and the package does not emit yet is left out.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import yaml

from otel_sse import config, semconv

HERE: Final = Path(__file__).resolve().parent
sys.path.append(str(HERE))

import tested  # noqa: E402

NOTE: Final = "<!-- Written by docs/generate.py; do not edit. -->\n"
EMITTED: Final = {
    each.name for role in (semconv.SERVER, semconv.CLIENT) for each in role.metrics.values()
}
# How an SDK shows an instrument: by the registry's annotation `observable`.
KINDS: Final = {"updowncounter": "up-down counter"}


class Registry:
    """The definitions of docs/semconv/registry, by kind and name."""

    def __init__(self, folder: Path) -> None:
        self.attributes: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, list[dict[str, Any]]] = {}
        self.metrics: list[dict[str, Any]] = []
        self.spans: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        for file in sorted(folder.glob("*.yaml")):
            content = yaml.safe_load(file.read_text())
            self.attributes |= {each["key"]: each for each in content.get("attributes", ())}
            for group in content.get("attribute_groups", ()):
                self.groups[group["id"]] = group["attributes"]
            self.metrics += content.get("metrics", ())
            self.spans += content.get("spans", ())
            self.events += content.get("events", ())

    def resolved(self, references: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
        """Each attribute, groups resolved, and when it is there."""
        for each in references:
            if "ref_group" in each:
                yield from self.resolved(self.groups[each["ref_group"]])
            else:
                yield each["ref"], _level(each.get("requirement_level", "recommended"))


def _level(level: str | dict[str, str]) -> str:
    if isinstance(level, str):
        return {"required": "always", "opt_in": "only where asked for"}.get(level, level)
    ((kind, condition),) = level.items()
    condition = _line(condition).rstrip(".")
    return condition[:1].lower() + condition[1:] if kind != "opt_in" else f"opt-in: {condition}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(_line(cell) for cell in line)} |\n" for line in lines)


def options() -> str:
    """The options, from the class, its docstring and the parsers of config.py."""
    doc = inspect.cleandoc(config.Config.__doc__ or "")
    described = dict(re.findall(r"(?m)^    (\w+): ((?:.+\n?)(?:^        .+\n?)*)", doc))
    rows = []
    for each in fields(config.Config):
        takes = config._OPTIONS[each.name][0]
        variable = f"`OTEL_PYTHON_SSE_{each.name.upper()}`"
        if each.name == "excluded_urls":
            variable += ", else `OTEL_PYTHON_EXCLUDED_URLS`"
        text = _line(described[each.name]).replace("``", "`").rstrip(".")
        rows.append((f"`{each.name}`", variable, _default(each.default), takes, text))
    return (
        NOTE
        + """
# Options

Each option is an environment variable, and a keyword argument of `SSEMiddleware` and of the
instrumentors' `instrument()`. The argument takes precedence. A bad argument raises `ValueError`;
a bad variable logs a warning, and the default applies. Instrumentors that share a meter provider
share one configuration: the first applies, and a different one logs a warning.

"""
        + _table(("argument", "variable", "default", "takes", "description"), rows)
        + f"""
`OTEL_PYTHON_DISABLED_INSTRUMENTATIONS` takes {_join(_instrumentations())}.
"""
    )


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, frozenset):
        return f"`{','.join(sorted(value))}`" if value else "none"
    return "none" if value is None else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _instrumentations() -> list[str]:
    text = (HERE.parent / "pyproject.toml").read_text()
    section = text.partition("entry-points.opentelemetry_instrumentor]")[2].partition("\n[")[0]
    return re.findall(r"(?m)^(\w+) =", section)


def _join(names: Iterable[str]) -> str:
    *most, last = (f"`{name}`" for name in names)
    return f"{', '.join(most)} and {last}"


def metrics(registry: Registry) -> str:
    """The metrics, by who emits them."""
    text = (
        NOTE
        + """
# Metrics

From the registry in [`docs/semconv/`](../semconv/README.md). Durations are in seconds,
sizes in bytes. Stability: development.

"""
    )
    parts = (
        ("Server", "sse.server."),
        ("Client", "sse.client."),
        ("Collector", "sse.alert"),
    )
    for title, prefix in parts:
        own = [each for each in registry.metrics if each["name"].startswith(prefix)]
        own = [each for each in own if _is_emitted(each)]
        text += f"## {title}\n\n"
        rows = [
            (f"`{each['name']}`", _instrument(each), each["unit"] or "none", each["brief"])
            for each in own
        ]
        text += _table(("metric", "instrument", "unit", "description"), rows) + "\n"
        for each in own:
            text += _metric(registry, each)
    return text.rstrip("\n") + "\n"


def _is_emitted(metric: dict[str, Any]) -> bool:
    by = set(metric["annotations"]["otel_sse"]["emitted_by"])
    return metric["name"] in EMITTED or not by & {"server", "client"}


def _instrument(metric: dict[str, Any]) -> str:
    kind = KINDS.get(metric["instrument"], metric["instrument"])
    observable = metric["annotations"]["otel_sse"].get("observable")
    return f"observable {kind}" if observable else kind


def _metric(registry: Registry, metric: dict[str, Any]) -> str:
    annotations = metric["annotations"]["otel_sse"]
    text = f"### {metric['name']}\n\n{_line(metric['brief'])}"
    if "note" in metric:
        text += " " + _line(metric["note"])
    text += "\n\n"
    by = annotations["emitted_by"]
    if by == ["browser"]:
        text += "Emitted by the browser's module alone.\n\n"
    if "buckets" in annotations:
        text += (
            f"Buckets: {', '.join(f'{float(bound):.12g}' for bound in annotations['buckets'])}.\n\n"
        )
    attributes = list(registry.resolved(metric.get("attributes", ())))
    if attributes:
        rows = [(f"`{name}`", level) for name, level in attributes]
        text += _table(("attribute", "present"), rows) + "\n"
    else:
        text += "It has no attributes.\n\n"
    return text


def traces(registry: Registry) -> str:
    """The spans and the events."""
    text = (
        NOTE
        + """
# Spans and events

From the registry in [`docs/semconv/`](../semconv/README.md).
[How to read a trace](../tracing.md) shows them at work.

"""
    )
    for span in registry.spans:
        kind = f"Kind {span['kind'].upper()}; name: {_line(span['name']['note'])}"
        text += _signal(registry, f"Span {span['type']}", kind, span)
    for event in registry.events:
        severity = f"Severity {event['annotations']['otel_sse']['severity']}."
        text += _signal(registry, f"Event {event['name']}", severity, event)
    return text.rstrip("\n") + "\n"


def _signal(registry: Registry, title: str, kind: str, signal: dict[str, Any]) -> str:
    note = " " + _line(signal["note"]) if "note" in signal else ""
    rows = [(f"`{name}`", level) for name, level in registry.resolved(signal["attributes"])]
    table = _table(("attribute", "present"), rows)
    return f"## {title}\n\n{_line(signal['brief'])}{note}\n\n{kind}\n\n{table}\n"


def attributes(registry: Registry) -> str:
    """The attributes of the namespace, and the values of closed sets."""
    text = (
        NOTE
        + """
# Attributes

Those of this project's own namespace, from the registry in
[`docs/semconv/`](../semconv/README.md). `http.*`, `url.*`, `client.*`, `server.*`, `network.*`,
`user_agent.*` and `error.type` are those of OpenTelemetry's stable conventions.

"""
    )
    for name, each in registry.attributes.items():
        text += f"## {name}\n\n{_line(each['brief'])}"
        if "note" in each:
            text += " " + _line(each["note"])
        kind = each["type"]
        if isinstance(kind, dict):
            rows = [(f"`{member['value']}`", member.get("brief", "")) for member in kind["members"]]
            text += "\n\n" + _table(("value", "description"), rows)
        else:
            examples = ", ".join(f"`{_example(value)}`" for value in each.get("examples", ()))
            text += f"\n\nType: {kind}{'; for example ' + examples if examples else ''}.\n"
        text += "\n"
    return text.rstrip("\n") + "\n"


def _example(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def endings() -> str:
    """The page of the endings, with its tables."""
    tests = str(HERE.parent / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    from e2e.endings import markdown

    begin, end = "<!-- endings: begin -->\n", "<!-- endings: end -->"
    head, _, rest = (HERE / "endings.md").read_text().partition(begin)
    return head + begin + markdown() + end + rest.partition(end)[2]


def compatibility(page: str) -> str:
    """``page`` with its tables, each between two comments."""
    for name in ("matrix", "servers", "clients"):
        head, rows = getattr(tested, name)()
        begin, end = f"<!-- {name}: written by docs/generate.py -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n{_table(head, rows)}\n{end}{after}"
    return page


def pages() -> dict[Path, str]:
    """Each page with its text."""
    registry = Registry(HERE / "semconv" / "registry")
    return {
        HERE / "reference" / "options.md": options(),
        HERE / "reference" / "metrics.md": metrics(registry),
        HERE / "reference" / "attributes.md": attributes(registry),
        HERE / "reference" / "spans-and-events.md": traces(registry),
        HERE / "endings.md": endings(),
        HERE / "compatibility.md": compatibility((HERE / "compatibility.md").read_text()),
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
