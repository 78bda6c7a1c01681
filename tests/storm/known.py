"""Faults that are known and not fixed yet: what they are, and which differences they explain.

A run counts the examples of each. Any other difference fails. An entry goes when its fix comes:
``test_storm.py`` fails where the example of an entry does not show its fault any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from storm.compare import Difference
from storm.plans import Plan


class Known(NamedTuple):
    """A fault; ``explains`` is whether it explains a difference of a plan.

    ``example`` is a plan that shows it every time: once it does not, the entry has to go.
    """

    name: str
    why: str
    example: str
    explains: Callable[[Plan, Difference], bool]


KNOWN: tuple[Known, ...] = ()


def explanation(plan: Plan, difference: Difference) -> Known | None:
    """The known fault that explains the difference, if one does."""
    return next((each for each in KNOWN if each.explains(plan, difference)), None)
