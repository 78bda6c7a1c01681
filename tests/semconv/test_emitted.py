"""What real runs emit is what the registry has: names, units, kinds and attribute sets, nothing
missing and nothing beyond it.
"""

import asyncio
from typing import Any, Final

import pytest
from opentelemetry.trace import SpanKind
from semconv import pending
from semconv.registry import REGISTRY, Signal
from semconv.runs import ABSENT, Run, run

# Attribute types of the registry, as Python has them.
_TYPES: Final = {"string": str, "boolean": bool, "int": int, "double": float}
_SPANS: Final = {
    "sse.server.connection": lambda span: span.kind is SpanKind.SERVER,
    "sse.server.segment": lambda span: "url.scheme" in span.attributes and _index(span) > 0,
    "sse.client.connection": lambda span: "server.address" in span.attributes,
}
# The totals of a connection, which only its last segment bears.
_TOTALS: Final = frozenset(
    ("sse.close.reason", "sse.messages", "sse.comments", "sse.io", "sse.connection.duration")
)


def _index(span: Any) -> int:
    return int(span.attributes["sse.segment.index"])


@pytest.fixture(scope="module")
def emitted() -> Run:
    return asyncio.run(run())


def test_the_instruments_are_the_registrys(emitted: Run) -> None:
    """What the meter was asked to create: name, kind, observable or not, unit, description and
    buckets, both ways but for what is pending.
    """
    wanted = REGISTRY.emitted_by("server", "client")
    assert emitted.instruments.keys() - wanted.keys() == set()
    missing = wanted.keys() - emitted.instruments.keys()
    assert missing - ABSENT == pending.METRICS - ABSENT
    for name, made in emitted.instruments.items():
        definition, notes = wanted[name].definition, wanted[name].annotations
        assert made.kind == definition["instrument"], name
        assert made.observable == notes.get("observable", False), name
        assert made.unit == definition["unit"], name
        assert made.description == definition["brief"], name
        assert made.buckets == wanted[name].buckets, name


def test_every_metric_is_emitted_with_the_registrys_attributes(emitted: Run) -> None:
    """Each metric has points; each point has what is required and nothing that the registry does
    not have; and each attribute is there at least once, but for what is pending.
    """
    wanted = REGISTRY.emitted_by("server", "client")
    assert emitted.points.keys() == wanted.keys() - pending.METRICS - ABSENT
    absent = set()
    for name, points in emitted.points.items():
        assert emitted.units[name] == wanted[name].definition["unit"]
        assert emitted.types[name] == wanted[name].definition["instrument"]
        assert points, name
        for attributes in points:
            _check(wanted[name], attributes)
        seen = {key for attributes in points for key in attributes}
        absent |= {(name, key) for key in wanted[name].attributes if key not in seen}
    assert absent == pending.ATTRIBUTES


def _check(signal: Signal, attributes: dict[str, Any], leave: frozenset[str] = frozenset()) -> None:
    """That required attributes are there, unknown ones are not, and each has its type."""
    assert attributes.keys() <= signal.attributes.keys(), (signal.name, attributes)
    assert signal.required - leave <= attributes.keys(), (signal.name, attributes)
    for key, value in attributes.items():
        kind = REGISTRY.attributes.get(key, {}).get("type")
        if isinstance(kind, dict):
            assert value in REGISTRY.members(key), (signal.name, key, value)
        elif kind is not None:
            assert type(value) is _TYPES[kind], (signal.name, key, value)


@pytest.mark.parametrize("name", _SPANS)
def test_every_span_has_the_registrys_attributes(name: str, emitted: Run) -> None:
    """Each span of the type, its totals on the last segment alone; and each attribute of the
    registry is there at least once.
    """
    signal = REGISTRY.spans[name]
    spans = [span for span in emitted.spans if _SPANS[name](span)]
    assert spans
    server = name.startswith("sse.server")
    beyond = set() if server else {"sse.send.max_duration"}
    seen = set()
    for span in spans:
        attributes = dict(span.attributes or {})
        final = attributes.get("sse.segment.final", False)
        _check(signal, attributes, frozenset() if final else _TOTALS)
        assert bool(_TOTALS & attributes.keys()) is final
        assert (span.status.status_code.name == "ERROR") is ("error.type" in attributes)
        expected = "SSE /" if "http.route" in attributes else "SSE"
        assert span.name.startswith(expected if server else "SSE GET"), span.name
        seen |= attributes.keys()
    optional = {"error.type"} if name == "sse.server.segment" else set()
    assert signal.attributes.keys() - seen - optional == beyond


def test_every_span_is_of_one_type(emitted: Run) -> None:
    """No span is emitted that the registry does not have."""
    for span in emitted.spans:
        assert [name for name, matches in _SPANS.items() if matches(span)] != [], span.name
    kinds = {span.kind for span in emitted.spans if "server.address" in (span.attributes or {})}
    assert kinds == {SpanKind.INTERNAL}


@pytest.mark.parametrize("name", REGISTRY.events)
def test_every_event_has_the_registrys_attributes(name: str, emitted: Run) -> None:
    """Each log-based event of that name, with its severity; each attribute at least once."""
    signal = REGISTRY.events[name]
    events = [event for event in emitted.events if event.event_name == name]
    assert events
    seen = set()
    for event in events:
        attributes = dict(event.attributes)
        _check(signal, attributes)
        failed = attributes.get("sse.close.reason") == "error"
        wanted = "ERROR" if failed else signal.annotations["severity"]
        assert event.severity_text == wanted
        seen |= attributes.keys()
    assert signal.attributes.keys() - seen == set()


def test_no_event_is_beyond_the_registry(emitted: Run) -> None:
    """Log-based events, and the events of spans, which have the message's own attributes."""
    assert {event.event_name for event in emitted.events} == REGISTRY.events.keys()
    own = {
        "sse.message.sequence",
        "sse.event.type",
        "sse.message.size",
        "sse.send.duration",
        "sse.event.id",
    }
    found = [event for span in emitted.spans for event in span.events]
    # Where an exception ends a span, the API adds its own event.
    assert {event.name for event in found} - {"exception"} == {"sse.message"}
    assert {
        key for event in found if event.name == "sse.message" for key in event.attributes
    } == own
