"""Runs random applications with otel_sse and without it, and reports what differs.

``python tests/storm/run.py [EXAMPLES [SEED]]``; ``python tests/storm/run.py PLAN`` with a plan as
JSON runs that one and prints what both processes observed.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

if __name__ == "__main__":
    # The tests' folder in place of this one.
    sys.path[0] = str(Path(__file__).parent.parent)

from hypothesis import HealthCheck, Phase, given, seed, settings
from storm.compare import Difference, differences
from storm.pair import Pair
from storm.plans import SERVERS, Plan, plans

EXAMPLES = 20_000
# Plans that are run to make the description of a failure smaller.
SHRINKS = 60


@dataclasses.dataclass
class Fault:
    """A difference, and the smallest plan that shows it."""

    kind: str
    plan: Plan
    text: str
    examples: int = 1

    def explains(self, plan: Plan, difference: Difference) -> bool:
        """Whether it is this one: the same kind, in a plan that has all that this one needs."""
        has = dataclasses.asdict(plan)

        def holds(name: str, needed: Any) -> bool:
            if isinstance(needed, tuple):
                return set(needed) <= set(has[name])
            return bool(has[name] == needed)

        needs = self.plan.difference()
        return difference.kind == self.kind and all(holds(*each) for each in needs.items())


class Storm:
    """One run: what was run, what was found."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.examples = 0
        self.dimensions: Counter[tuple[str, str]] = Counter()
        self.faults: list[Fault] = []

    def run(self, examples: int, number: int) -> None:
        """Runs so many plans, chosen by the seed ``number``."""

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(plans())
        def one(plan: Plan) -> None:
            self.check(plan)

        one()

    def check(self, plan: Plan) -> None:
        self.examples += 1
        for field in dataclasses.fields(plan):
            value = getattr(plan, field.name)
            for each in value if isinstance(value, tuple) else (value,):
                self.dimensions[field.name, str(each)] += 1
        found = self.pair.differences(plan)
        # One of each kind.
        for each in {each.kind: each for each in reversed(found)}.values():
            fault = next((f for f in self.faults if f.explains(plan, each)), None)
            if fault is None:
                small, text = self.shrink(plan, each)
                self.faults.append(Fault(each.kind, small, text))
                print(f"\n{each.kind}: {text[:600]}\n  {small.dumps()}", flush=True)
            else:
                fault.examples += 1

    def shrink(self, plan: Plan, difference: Difference) -> tuple[Plan, str]:
        """A smaller plan with a difference of the same kind."""
        text = difference.text
        budget = SHRINKS
        smaller = True
        while smaller and budget > 0:
            smaller = False
            for candidate in _smaller(plan):
                budget -= 1
                if budget < 0:
                    break
                same = [
                    each
                    for each in self.pair.differences(candidate)
                    if each.kind == difference.kind
                ]
                if same:
                    plan, text, smaller = candidate, same[0].text, True
                    break
        return plan, text

    def report(self) -> None:
        """Prints how many examples were run by dimension, and what was found."""
        print(f"\n{self.examples} examples")
        names = list(dict.fromkeys(name for name, _ in self.dimensions))
        for name in names:
            values = [(v, n) for (k, v), n in self.dimensions.items() if k == name]
            line = ", ".join(f"{v} {n}" for v, n in sorted(values, key=lambda pair: -pair[1]))
            print(f"  {name}: {line}")
        print(f"{len(self.pair.unconfirmed)} differences did not show again:")
        for plan, found in self.pair.unconfirmed:
            kinds = ", ".join(dict.fromkeys(each.kind for each in found))
            print(f"  {kinds}: {plan.dumps()}\n    {found[0].text[:400]}")
        for fault in sorted(self.faults, key=lambda fault: -fault.examples):
            print(f"FAULT {fault.kind} ({fault.examples} examples): {fault.text[:600]}")
            print(f"  python tests/storm/run.py '{fault.plan.dumps()}'")
        print("no difference" if not self.faults else f"{len(self.faults)} faults")


def _smaller(plan: Plan) -> Any:
    """The plans with one thing less."""
    simple = Plan()
    for name, value in plan.difference().items():
        if name in ("server", "app") and (plan.server in SERVERS[4:]):
            if name == "server" and value != "aiohttp":
                yield dataclasses.replace(plan, server="aiohttp")
            continue
        if isinstance(value, tuple):
            for n in range(len(value)):
                yield dataclasses.replace(plan, **{name: value[:n] + value[n + 1 :]})
        elif name == "messages":
            for fewer in (2, 1, 3):
                if plan.at <= fewer < value:
                    yield dataclasses.replace(plan, messages=fewer)
        elif name == "at":
            yield dataclasses.replace(plan, at=1)
        else:
            yield dataclasses.replace(plan, **{name: getattr(simple, name)})


def show(text: str) -> int:
    """Runs one plan and prints all of it; whether it differs."""
    plan = Plan.loads(text)
    with Pair() as pair:
        seen, plain = pair.observe(plan)
    for side, each in (("with otel_sse", seen), ("without", plain)):
        print(f"--- {side}")
        for name, value in each.items():
            for line in value if isinstance(value, list) else (value,):
                print(f"{name}: {json.dumps(line)}")
    found = differences(plan, seen, plain)
    for one in found:
        print(f"DIFFERENCE {one.kind}: {one.text}")
    return bool(found)


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        return show(sys.argv[1])
    examples = int(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLES
    number = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    print(f"{examples} examples, seed {number}", flush=True)
    began = monotonic()
    with Pair() as pair:
        storm = Storm(pair)
        try:
            storm.run(examples, number)
        except KeyboardInterrupt:
            pass
        storm.report()
    print(f"in {monotonic() - began:.0f} s")
    return bool(storm.faults)


if __name__ == "__main__":
    sys.exit(main())
