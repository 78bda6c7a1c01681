"""Renders the thresholds of thresholds.yaml for the collector and for Prometheus.

    python render.py

writes thresholds.collector.yaml, in which each number is still a variable of the environment
that the collector runs in, and the rule files in prometheus/, in which the numbers are
those of the environment now.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import rules  # noqa: E402

# A metric; whether it is of a mean message; times or over what, to be in the threshold's unit.
_MEASURED: Final = re.compile(
    r"(?P<metric>\S+)(?P<per> / sse[.]server[.]messages)?(?: (?P<scale>[*/] \d+))?"
)

# Counters that have no series before their first event, to the metric that has one then: they get
# a zero from it. A process that has streams writes messages; the others may happen before any.
_FROM_ZERO: Final = {
    "sse.server.messages": "sse.server.connections",
    "sse.server.dropped_messages": "sse.server.connections_per_client.max",
    "server.rejected_connections": "sse.server.connections_per_client.max",
    "server.errors": "sse.server.connections_per_client.max",
}

# Of the inputs, those that become a rate; `sse.server.connections` stays a number.
_RATES: Final = {"sse.server.io", "sse.server.send.time", *_FROM_ZERO}

# A process that receives SIGTERM exports several times at once; what has happened between two of
# them is no rate. In nanoseconds: one export a second, none too punctual, has rates.
_INTERVAL: Final = "datapoint.time_unix_nano - datapoint.start_time_unix_nano >= 900000000"

_HEAD: Final = "# Made by render.py: change thresholds.yaml and render it anew.\n#\n"

_RULE: Final = """\
      - name: {alert}
        type: scale
        metric1: {metric}
        operation: multiply
        scale_by: 1
"""

_COPY: Final = """\
          - copy_metric(name="{metric}") where metric.name == "{source}"
"""

_REMEMBER: Final = """\
          - set(resource.attributes["sse.total.{metric}"], datapoint.value_int)
            where metric.name == "sse.total.{metric}"
"""

_RESTORE: Final = """\
      - context: datapoint
        conditions:
          - metric.name == "{metric}"
        statements:
          - set(datapoint.value_int, 0)
          - set(datapoint.value_int, resource.attributes["sse.total.{metric}"])
            where resource.attributes["sse.total.{metric}"] != nil
"""

_STAMP: Final = """\
      - context: datapoint
        conditions:
          - metric.name == "{alert}"
        statements:
{scaled}\
          - set(datapoint.attributes["alert"], metric.name)
          - set(datapoint.attributes["severity"], "{severity}")
          - set(datapoint.attributes["threshold"], "{number}")
          - set(datapoint.flags, 1) where not ({breached})
"""


def collector(thresholds: list[dict[str, Any]]) -> str:
    """The collector's part."""
    generated, stamped = [], []
    without = []
    inputs = {"sse.server.messages", *_FROM_ZERO.values()}
    for each in thresholds:
        if "collector" not in each:
            continue
        measured = _MEASURED.fullmatch(each["collector"])
        if not measured:
            raise SystemExit(f"{each['alert']}: not understood: {each['collector']}")
        metric, per, scale = measured.group("metric", "per", "scale")
        inputs.add(metric)
        without += [
            f'        - metric.name == "{metric}" and datapoint.attributes["{name}"] == "{value}"'
            for name, value in each.get("without", {}).items()
        ]
        generated.append(_RULE.format(alert=each["alert"], metric=metric))
        stamped.append(
            _STAMP.format(
                alert=each["alert"],
                severity=each["severity"],
                number=_number(each),
                scaled=_scaled(per, scale),
                breached=_breached(each, rate=metric in _RATES),
            )
        )
    counted = {metric: source for metric, source in _FROM_ZERO.items() if metric in inputs}
    content = (HERE / "thresholds.collector.template").read_text()
    for name, value in {
        "inputs": _pattern(inputs),
        "without": "\n".join(without),
        "from_zero": _pattern(counted),
        "copies": _joined(_COPY, counted),
        "totals": _joined(_REMEMBER, counted),
        "restored": _joined(_RESTORE, counted),
        "rates": ", ".join(sorted(inputs & _RATES)),
        "generated": "".join(generated).rstrip("\n"),
        "stamped": "".join(stamped).rstrip("\n"),
    }.items():
        content = content.replace(f"@{name}@", value)
    return _HEAD + content


def _pattern(names: Iterable[str]) -> str:
    return "|".join(sorted(names)).replace(".", "[.]")


def _joined(text: str, counted: dict[str, str]) -> str:
    made = [text.format(metric=metric, source=source) for metric, source in counted.items()]
    return "".join(made).rstrip("\n")


def _number(threshold: dict[str, Any]) -> str:
    return f"${{env:{threshold['variable']}:-{threshold['default']}}}"


def _scaled(per: str | None, scale: str | None) -> str:
    value = "datapoint.value_double"
    statements = []
    if per:
        rate = 'resource.attributes["sse.rate"]'
        statements.append(f"set({value}, {value} / {rate}) where {rate} > 0")
        statements.append(f"set({value}, 0.0) where {rate} == 0")
    if scale:
        statements.append(f"set({value}, {value} {scale}.0)")
    return "".join(f"          - {statement}\n" for statement in statements)


def _breached(threshold: dict[str, Any], rate: bool) -> str:
    low = threshold["variable"].startswith("SSE_MIN_")
    parts = [f"datapoint.value_double {'<' if low else '>'} {_number(threshold)}"]
    if low:
        parts.append('resource.attributes["sse.held"] > 0')
    if rate:
        parts.append(_INTERVAL)
    return " and ".join(parts)


def render() -> None:
    """Writes all of it."""
    thresholds = yaml.safe_load((HERE / "thresholds.yaml").read_text())
    (HERE / "thresholds.collector.yaml").write_text(collector(thresholds))
    rules.render()


if __name__ == "__main__":
    render()
