"""What differs between a process with otel_sse and one without, and from the model.

A difference is a kind and a text. The kind is what failures are grouped by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from storm import model
from storm.asgi_apps import template
from storm.plans import Plan
from storm.script import LINGERS

OURS = "otel_sse"
CALLER = 0x00F067AA0BA902B7
LOCAL = 0xDEF
_NUMBER = re.compile(r"item \d+")
_FRAMING = re.compile(r"\r\n(transfer-encoding: chunked|content-length: 0)")
_DATE = re.compile(r"(?i)date: [^\r]*")

Facts = Mapping[str, Any]


class Difference(NamedTuple):
    kind: str
    text: str


def differences(plan: Plan, seen: Facts, plain: Facts) -> list[Difference]:
    """Everything that is wrong about what was ``seen``, beside the ``plain`` process."""
    for name, each in (("with", seen), ("without", plain)):
        if "failed" in each:
            return [Difference(f"harness {name}", each["failed"])]
    found = [
        *_unnoticed(plan, seen, plain),
        *_spans(plan, seen, plain),
        *_streams(plan, seen),
    ]
    return found


# --- the application never notices ------------------------------------------------------------


def _unnoticed(plan: Plan, seen: Facts, plain: Facts) -> list[Difference]:
    found = []

    def same(kind: str, ours: Any, theirs: Any) -> None:
        if ours != theirs:
            found.append(Difference(kind, f"with {ours!r}, without {theirs!r}"))

    same("stuck", seen["stuck"], plain["stuck"])
    same("acted", seen["acted"], plain["acted"])
    same("requests served", len(seen["replies"]), len(plain["replies"]))
    for ours, theirs in zip(seen["replies"], plain["replies"], strict=False):
        same("bytes", _bytes(plan, ours), _bytes(plan, theirs))
    # How far a thread gets that nothing interrupts, and so what it raises to whom, is a race.
    # So is whether the body of a response to HEAD is made.
    races = plan.raises and (plan.method == "HEAD" or (plan.leaves and plan.source == "sync"))
    if not races:
        same("outcome", seen["outcomes"], plain["outcomes"])
    if seen["logs"] != plain["logs"] and not races:
        more = _without(seen["logs"], plain["logs"])
        less = _without(plain["logs"], seen["logs"])
        found.append(Difference("log", f"with us also {more}, missing {less}"))
    found += [Difference("logged by us", line) for line in seen["logs"] if line.startswith(OURS)]
    for ours, theirs in zip(seen["scripts"], plain["scripts"], strict=False):
        same("application's record", _by_actor(plan, ours), _by_actor(plan, theirs))
        if plan.method != "HEAD":
            same("sends", _sends(plan, ours), _sends(plan, theirs))
        same("context", _context(plan, ours["seen"]), _context(plan, theirs["seen"]))
    return found


def _bytes(plan: Plan, reply: Facts) -> str:
    raw = _DATE.sub("date", reply["raw"])
    if plan.server == "granian" and reply["complete"] and not reply["body"]:
        # It gives an empty body a length or a chunk, by which of its threads is faster.
        return _FRAMING.sub("", raw.partition("\r\n\r\n")[0])
    if plan.leaves:
        # How much is read then depends on when the server notices.
        return raw.partition("\r\n\r\n")[0]
    return raw


def _by_actor(plan: Plan, script: Facts) -> dict[str, list[str]]:
    """What each part of the application did: their turns among each other are nobody's promise."""
    found: dict[str, list[str]] = {}
    for event in script["events"]:
        actor = " ".join(event.split()[:2]) if event.startswith(("aro", "mid", "rou")) else "source"
        found.setdefault(actor, []).append(event)
    if plan.method == "HEAD":
        # How much of a body is made that nobody reads depends on when the server notices.
        found.pop("source", None)
        if plan.raises:
            found.clear()
    source = found.get("source", [])
    if plan.source == "sync" and plan.acts:
        # A thread's generator that is interrupted is closed when it is collected.
        late = ("source gets GeneratorExit", "cleans up")
        source = found["source"] = [event for event in source if event not in late]
    acts_after = f"item {plan.at - 1}"
    sends_on = plan.goes_on == "sends" or plan.source == "sync"
    if plan.leaves and sends_on and acts_after in source:
        # How far it gets then depends on when the server notices.
        found = {"source": source[: source.index(acts_after)]}
    return found


def _sends(plan: Plan, script: Facts) -> list[Any]:
    sends = [tuple(each) for each in script["sends"]]
    return sends[: plan.at + 1] if plan.leaves else sends


def _without(some: list[str], others: list[str]) -> list[str]:
    rest = list(others)
    return [each for each in some if each not in rest or rest.remove(each)]


def _context(plan: Plan, seen: Mapping[str, str]) -> dict[str, str]:
    """What code saw as its context; inside a stream, only its baggage is as without us."""
    if plan.method == "HEAD":
        # Whether the body is made at all depends on when the server notices.
        return {where: text for where, text in seen.items() if where not in ("source", "cleanup")}
    if not plan.streams:
        # Whether such a route streams is known too late: there the proxy stands for the span.
        early = "base" in plan.route and plan.method != "HEAD"
        return {where: text[text.index(" ") :] if early else text for where, text in seen.items()}
    # FastAPI's own streams begin to run their endpoint when the response starts, or before.
    whole = () if plan.app == "native" else ("endpoint",)
    # A thread's generator that is interrupted is closed when it is collected.
    late = ("cleanup",) if plan.source == "sync" and plan.acts else ()
    return {
        where: text if where in whole else text.rpartition(" ")[2]
        for where, text in seen.items()
        if where not in late
    }


# --- everybody else's spans -------------------------------------------------------------------


def _spans(plan: Plan, seen: Facts, plain: Facts) -> list[Difference]:
    ours, theirs = _tree(plan, seen["spans"]), _tree(plan, plain["spans"])
    if ours == theirs:
        found = []
    else:
        more = _without(ours, theirs)
        less = _without(theirs, ours)
        found = [Difference("spans", f"with us {more}, without {less}")]
    # Where a route's middleware sets a parent of its own, the application's work is below that.
    nearer = {"span", "local", "contrib"} & set(plan.route)
    own = {span["id"] for span in seen["spans"] if span["scope"] == OURS}
    for span in seen["spans"]:
        if span["scope"] == OURS:
            continue
        below = span["parent"] in own
        inside = span["name"].startswith("app item")
        after = span["name"] in ("app cleanup", "app background")
        after |= plan.app == "native" and span["name"] == "app endpoint"
        # What is sent in a stream, and what is waited for meanwhile.
        after |= span["name"].endswith((" http send", " http receive"))
        # What interrupts a stream passes its route's middlewares before we see that it is over.
        interrupted = seen["acted"] or plan.raises
        after |= interrupted and bool(re.fullmatch(r"app route \d after", span["name"]))
        if below and not inside and not after:
            kind = "after below us" if span["name"].endswith("after") else "below us"
            found.append(Difference(kind, f"{span['name']} is below a stream's segment"))
        # The first items may be made before the response starts.
        early = plan.app == "native" or {"gzip", "base"} & set(plan.route)
        both = plan.app == "native" and plan.route
        early = early and (both or span["name"] in ("app item 0", "app item 1"))
        if inside and not (below or early or nearer or seen["acted"]) and plan.streams:
            found.append(
                Difference("not below us", f"{span['name']} is not below the stream's segment")
            )
    return found


def _tree(plan: Plan, spans: list[Any]) -> list[str]:
    """Each span that is not ours with its parent, ours skipped.

    Once a client has disconnected it depends on the server how many items are made and sent: of
    those each pair counts once. Of a body that nobody reads none does.
    """
    by_id = {span["id"]: span for span in spans}
    found = _lines(spans, by_id)
    if plan.source == "sync" and plan.acts:
        found = [line for line in found if "app cleanup" not in line]
    if plan.method == "HEAD":
        unread = ("app item", "app cleanup", " http send ")
        found = [line for line in found if not any(each in line for each in unread)]
    if plan.server == "granian":
        # Whether what is waited for ends before its request does depends on its threads.
        found = [line for line in found if " http receive " not in line]
    if plan.leaves:
        found = sorted({_NUMBER.sub("item", line) for line in found})
    return found


def _lines(spans: list[Any], by_id: dict[int, Any]) -> list[str]:
    return sorted(
        f"{span['scope'].rpartition('.')[2]}: {span['name']} ({span['kind']}) < "
        f"{_parent(span, by_id)}"
        for span in spans
        if span["scope"] != OURS
    )


def _parent(span: Any, by_id: dict[int, Any]) -> str:
    parent = span["parent"]
    if parent is None:
        return "none"
    if parent in by_id:
        above = by_id[parent]
        if above["scope"] != OURS:
            return str(above["name"])
        # A stream's segment that continues the caller's trace stands where nothing stood.
        if above["parent"] is None or (above["kind"] == "SERVER" and above["parent"] == CALLER):
            return "none"
        return _parent(above, by_id)
    return {CALLER: "caller", LOCAL: "local"}.get(parent, "unknown")


# --- what is reported is true -------------------------------------------------------------------


def _streams(plan: Plan, seen: Facts) -> list[Difference]:
    found: list[Difference] = []
    ours = [span for span in seen["spans"] if span["scope"] == OURS]
    streams = [n for n, reply in enumerate(seen["replies"]) if reply["is_stream"]]
    started = [n for n in range(len(seen["replies"])) if n in streams or _started(plan, seen, n)]
    if not plan.streams:
        streams = started = []
    if len(ours) != len(streams) and len(ours) == len(started):
        # The response did not get out, or the client did not read it.
        streams = started
    if len(ours) != len(streams):
        found.append(Difference("streams", f"{len(streams)} streams, {len(ours)} spans"))
    if seen["live"]:
        found.append(Difference("live", f"{seen['live']} streams are live after their end"))
    active = seen["metrics"].get("sse.server.active_connections", 0)
    if active:
        found.append(Difference("active", f"sse.server.active_connections is {active}"))
    counted = seen["metrics"].get("sse.server.connections", 0)
    if counted != len(streams):
        found.append(Difference("streams", f"sse.server.connections is {counted}"))
    if len(ours) == len(streams):
        for number, span in zip(streams, ours, strict=True):
            found += _stream(plan, seen, number, span)
        found += _agreement(seen, ours)
    return found


def _started(plan: Plan, seen: Facts, number: int) -> bool:
    """Whether the application has sent the response's start."""
    script = seen["scripts"][number]
    # FastAPI sends for its own streams, before their endpoint runs.
    return plan.app == "native" or any(kind == "start" for kind, _, _ in script["sends"])


def _stream(plan: Plan, seen: Facts, number: int, span: Any) -> list[Difference]:
    found = []
    attributes = span["attributes"]
    reason, error = attributes.get("sse.close.reason"), attributes.get("error.type")
    permitted = model.reasons(plan, seen, number)
    if reason not in permitted:
        right = " or ".join(sorted(permitted))
        found.append(Difference("reason", f"{reason} ({error}), right: {right}"))
    elif error not in (right := model.error_types(plan, seen, number, reason)):
        found.append(Difference("error.type", f"{reason} {error}, right: {right}"))
    if (span["status"] == "ERROR") != (error is not None):
        found.append(Difference("status", f"{span['status']} with error.type {error}"))
    for name, (least, most) in model.counts(plan, seen, number).items():
        value = attributes.get(f"sse.{name}")
        if value is None or not least <= value <= most:
            found.append(Difference(f"count {name}", f"{value}, right: {least} to {most}"))
    route = template(plan)
    if attributes.get("http.route") != route:
        found.append(Difference("route", f"{attributes.get('http.route')}, right: {route}"))
    if plan.background == "waits" and "background" in seen["scripts"][number]["events"]:
        took = attributes.get("sse.connection.duration", 0.0)
        if took > LINGERS and "short" not in (plan.pause, plan.ending):
            found.append(Difference("duration", f"{took:.3f} s includes the background task"))
    parents = {None, CALLER} if span["kind"] == "SERVER" else set()
    if parents and span["parent"] not in parents:
        found.append(Difference("our parent", f"SERVER below {span['parent']}"))
    if span["kind"] == "SERVER" and (span["parent"] == CALLER) != plan.caller:
        found.append(Difference("our parent", "the caller's trace is not continued"))
    return found


def _agreement(seen: Facts, ours: list[Any]) -> list[Difference]:
    """Spans, closed events and metrics report the same."""
    found = []
    spans = sorted(str(span["attributes"].get("sse.close.reason")) for span in ours)
    events = sorted(str(event.get("sse.close.reason")) for event in seen["closed"])
    if spans != events:
        found.append(Difference("agreement", f"spans {spans}, closed events {events}"))
    metrics = {
        key.rpartition(" ")[2]: value
        for key, value in seen["metrics"].items()
        if key.startswith("sse.server.connection.duration ")
    }
    counted = {reason: spans.count(reason) for reason in spans}
    if metrics != counted:
        found.append(Difference("agreement", f"spans {counted}, durations {metrics}"))
    for name in ("messages", "comments", "io"):
        total = sum(span["attributes"].get(f"sse.{name}", 0) for span in ours)
        value = seen["metrics"].get(f"sse.server.{name}", 0)
        if value != total:
            found.append(Difference("agreement", f"{name}: spans {total}, metric {value}"))
    return found
