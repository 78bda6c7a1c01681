"""Random applications with otel_sse and without it: the application never notices, and what is
reported is true.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from storm.compare import differences
from storm.pair import Pair
from storm.plans import AIOHTTP_APPS, ASGI_APPS, ENDINGS, SERVERS, Plan
from storm.run import Storm

pytestmark = pytest.mark.timeout(900)

# Chosen so that it takes less than a minute where the machine has two cores for itself.
EXAMPLES = 200
SEED = 1
STREAM = Plan(middlewares=("span",), caller=True, shape="commented", messages=3)

Change = Callable[[Any], None]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield pair


def test_no_application_notices_and_every_report_is_true(pair: Pair) -> None:
    """The same stacks of frameworks, middlewares, errors, clean-up and endings behave and look the
    same with otel_sse, and the model permits what is reported of them.
    """
    storm = Storm(pair)
    storm.run(EXAMPLES, SEED)
    run = {name: {v for n, v in storm.dimensions if n == name} for name, _ in storm.dimensions}
    assert run["server"] == set(SERVERS)
    assert run["app"] == {*ASGI_APPS, *AIOHTTP_APPS}
    assert run["ending"] == set(ENDINGS)
    found = [f"{fault.kind}: {fault.text}\n{fault.plan.dumps()}" for fault in storm.faults]
    assert not found, "\n\n".join(found)


def _log(seen: Any) -> None:
    seen["logs"].append("uvicorn.error ERROR more")


def _own_log(seen: Any) -> None:
    seen["logs"].append("otel_sse WARNING something")


def _byte(seen: Any) -> None:
    seen["replies"][0]["raw"] += "x"


def _event(seen: Any) -> None:
    seen["scripts"][0]["events"].remove("item 1")


def _outcome(seen: Any) -> None:
    seen["outcomes"] = ["LookupError"]


def _parent(seen: Any) -> None:
    next(s for s in seen["spans"] if s["name"] == "app endpoint")["parent"] = None


def _not_below(seen: Any) -> None:
    next(s for s in seen["spans"] if s["name"] == "app item 1")["parent"] = None


def _below(seen: Any) -> None:
    ours = next(s for s in seen["spans"] if s["scope"] == "otel_sse")
    next(s for s in seen["spans"] if s["name"] == "app endpoint")["parent"] = ours["id"]


def _gone(seen: Any) -> None:
    seen["spans"] = [s for s in seen["spans"] if s["scope"] != "otel_sse"]


def _active(seen: Any) -> None:
    seen["metrics"]["sse.server.active_connections"] = 1


def _live(seen: Any) -> None:
    seen["live"] = 1


def _closed(seen: Any) -> None:
    seen["closed"].clear()


def _change(name: str, value: Any) -> Change:
    def change(seen: Any) -> None:
        ours = next(s for s in seen["spans"] if s["scope"] == "otel_sse")
        ours["attributes"][name] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("log", _log),
        ("logged by us", _own_log),
        ("bytes", _byte),
        ("application's record", _event),
        ("outcome", _outcome),
        ("spans", _parent),
        ("not below us", _not_below),
        ("below us", _below),
        ("streams", _gone),
        ("active", _active),
        ("live", _live),
        ("agreement", _closed),
        ("reason", _change("sse.close.reason", "unknown")),
        ("error.type", _change("error.type", "LookupError")),
        ("status", _change("error.type", "LookupError")),
        ("count messages", _change("sse.messages", 4)),
        ("count comments", _change("sse.comments", 2)),
        ("count io", _change("sse.io", 1)),
        ("route", _change("http.route", "/other")),
    ],
)
def test_the_oracle_finds_what_is_changed(kind: str, change: Change, pair: Pair) -> None:
    """A stream without a difference has one of that kind once its observation is changed."""
    seen, plain = pair.observe(STREAM)
    assert not differences(STREAM, seen, plain)
    changed = copy.deepcopy(seen)
    change(changed)
    assert kind in {each.kind for each in differences(STREAM, changed, plain)}


def test_a_plan_is_its_description() -> None:
    """What a failure prints builds the same plan again."""
    plan = Plan(server="hypercorn", route=("gzip", "base"), fails="midway", ending="closes", at=2)
    assert Plan.loads(plan.dumps()) == plan
    assert Plan.loads(Plan().dumps()) == Plan()
