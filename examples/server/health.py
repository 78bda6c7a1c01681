"""One state of health, with its reason, and since when.

| state        | is                                                                               |
|--------------|----------------------------------------------------------------------------------|
| `refusing`   | new clients are refused, or were within the last minute                          |
| `degraded`   | clients are served, and something is wrong: an alert, or the broker              |
| `no_data`    | there are no figures, or not enough of them yet                                  |
| `not_judged` | there are no thresholds to judge the figures by, or there is no OpenTelemetry    |
| `healthy`    | every threshold is judged, and none is breached                                  |

The first that holds is the state: what is known to be wrong is never hidden by what is not known,
and nothing is called healthy that was not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

REFUSING: Final = "refusing"
DEGRADED: Final = "degraded"
NO_DATA: Final = "no_data"
NOT_JUDGED: Final = "not_judged"
HEALTHY: Final = "healthy"
STATES: Final = (REFUSING, DEGRADED, NO_DATA, NOT_JUDGED, HEALTHY)
# Reasons of one state that are named; the others are counted.
_NAMED: Final = 3


@dataclass(frozen=True)
class Condition:
    """A state that holds, and why: a sentence."""

    state: str
    reason: str


def _nothing() -> Iterable[Condition]:
    return ()


class Health:
    """``conditions`` are those that the application knows of itself, asked each time."""

    def __init__(self, conditions: Callable[[], Iterable[Condition]] = _nothing) -> None:
        self._conditions = conditions
        self._state = ""
        self._since = 0.0

    def judge(self, observed: Iterable[Condition], now: float) -> dict[str, Any]:
        """The state for /status, ``since`` in Unix seconds as ``now`` is. ``observed`` are the
        conditions that the figures give: one at least.
        """
        found = [*self._conditions(), *observed]
        state = min((each.state for each in found), key=STATES.index)
        reasons = [each.reason for each in found if each.state == state]
        if state != self._state:
            self._state, self._since = state, now
        more = len(reasons) - _NAMED
        return {
            "state": state,
            "reason": " ".join(reasons[:_NAMED]) + (f" And {more} more." if more > 0 else ""),
            "since": self._since,
        }
