"""Each alert: what makes of a figure processes, and the figures just below and just above.

The thresholds are the defaults; TOLERANCE is how near to them a rate is taken; the slope of a
figure that climbs by steps, five of them, is less exact.
"""

from typing import Any, Final

from alerting.processes import (
    ACTIVE,
    AGE,
    BACKLOG,
    BACKLOG_MAX,
    DROPPED,
    IDLE,
    IO,
    LIMIT,
    MEMORY,
    MESSAGES,
    PER_CLIENT,
    REJECTED,
    RESUMED,
    SEND_TIME,
    STALLED,
    STEP,
    Figure,
    Key,
    Process,
    always,
    born,
    each_second,
    ended,
    failed,
    first_within,
    healthy,
    idle,
)
from alerting.promtool import Firing, Scenario, thresholds

MINUTE: Final = 60
# When most of the cases are looked at: a leak has to last for twenty minutes.
END: Final = 26 * MINUTE


def changed(**figures: Figure) -> list[Process]:
    """A healthy process but for these figures, named as in ``processes``."""
    return [Process({**healthy(), **{KEYS[name]: figure for name, figure in figures.items()}})]


KEYS: Final[dict[str, Key]] = {
    "active": ACTIVE,
    "backlog": BACKLOG,
    "backlog_max": BACKLOG_MAX,
    "dropped": DROPPED,
    "idle": IDLE,
    "io": IO,
    "memory": MEMORY,
    "messages": MESSAGES,
    "per_client": PER_CLIENT,
    "rejected": REJECTED,
    "resumed": RESUMED,
    "send_time": SEND_TIME,
    "stalled": STALLED,
}


def refused(clients: float) -> list[Process]:
    """So many clients are refused at once, in the last exports; none before."""
    return changed(rejected=born(END - 2 * MINUTE, clients))


def broker_errors(rate: float) -> list[Process]:
    """Errors of two classes add up to the rate; refused clients are a class that does not count."""
    figures = {failed("timeout"): each_second(rate / 2), failed("unknown"): each_second(rate / 2)}
    return [Process({**healthy(), **figures, failed("rate_limit"): each_second(10)})]


def pool_share(share: float) -> list[Process]:
    """Two workers with pools are so full together, one is idle; a third worker has no limit."""
    pool = {LIMIT: always(400)}
    return [
        Process({**healthy(800 * share), **pool}),
        Process({**idle(), **pool}, instance="b"),
        Process(healthy(2000), instance="c"),
    ]


def errors(ratio: float, closes: float = 1000) -> list[Process]:
    """This share of the closes, all in the last export, is an error or a time-out."""
    at, bad = END - 4 * MINUTE, closes * ratio
    figures = {
        **healthy(),
        ended("completed"): always(0),
        ended("client_disconnect"): lambda age: closes - bad if age >= at else 0.0,
        ended("error"): born(at, bad * 0.75),
        ended("timeout"): born(at, bad * 0.25),
    }
    return [Process(figures)]


def late_first_messages(share: float) -> list[Process]:
    """This share of the first messages takes longer than the default threshold, 5 s."""
    in_time = each_second(0.2 * (1 - share))
    return [
        Process({**healthy(), first_within("1"): always(0), first_within("5"): in_time}),
    ]


def share_of_one(times_the_mean: float) -> list[Process]:
    """Of four processes, one has so many times the mean's connections."""
    crowded = 3 * 100 * times_the_mean / (4 - times_the_mean)
    sizes = {"a": crowded, "b": 100, "c": 100, "d": 100}
    return [Process(healthy(size), instance=name) for name, size in sizes.items()]


def cut(streams: float) -> list[Process]:
    """One of two processes goes, and with it so many live streams."""
    last = {ACTIVE: always(0), AGE: always(0)}
    if streams:
        last[ended("server_shutdown")] = always(streams)
    return [
        Process(healthy()),
        Process(healthy(), instance="b", end=END - 4 * MINUTE, last=last),
    ]


def silent_since(minutes: float) -> list[Process]:
    last = {ACTIVE: always(0), AGE: always(0)}
    return [Process(healthy(), end=END - minutes * MINUTE, last=last)]


def collector_down(seconds: int) -> str:
    """The collector's ``up`` until the end."""
    down = int(seconds / STEP)
    return f"1x{int(END / STEP) - down} 0x{down}"


# Each alert: what makes of a figure processes, and the figures just below and just above.
# The thresholds are the defaults; TOLERANCE is how near to them a rate is taken;
# the slope of a figure that climbs by steps, five of them, is less exact.
TOLERANCE: Final = 0.01
DEFAULT: Final = {name: entry.get("default", 0) for name, entry in thresholds().items()}
BREACHES: Final[dict[str, tuple[Any, float, float]]] = {}


def _breach(alert: str, make: Any, below: float | None = None, above: float | None = None) -> None:
    limit = DEFAULT[alert]
    low = limit * (1 - TOLERANCE) if below is None else below
    high = limit * (1 + TOLERANCE) if above is None else above
    BREACHES[alert] = (make, low, high)


_breach("SSEConnectionsHigh", lambda v: changed(active=always(v)), 10_000, 10_001)
_breach("SSEMemoryHigh", lambda v: changed(memory=always(v * 2**20)))
_breach(
    "SSEMessageRateLow",
    lambda v: changed(
        messages=each_second(v), send_time=each_second(v / 1000), io=each_second(500 * v)
    ),
    1.01,
    0.99,
)
_breach("SSEProcessingSlow", lambda v: changed(send_time=each_second(20 * v / 1000)))
_breach("SSEMemoryLeak", lambda v: changed(memory=lambda age: 100e6 + v * 2**20 * age))
_breach("SSEProcessingElevated", lambda v: changed(send_time=each_second(20 * v / 1000)))
_breach("SSEMessagesLarge", lambda v: changed(io=each_second(20 * v)))
_breach(
    "SSEMessageRateHigh",
    lambda v: changed(
        messages=each_second(v), send_time=each_second(v / 1000), io=each_second(500 * v)
    ),
)
_breach("SSEConnectionsStalled", lambda v: changed(stalled=always(v)), 100, 101)
_breach("SSEConnectionIdle", lambda v: changed(idle=always(v)))
_breach("SSEBacklogHigh", lambda v: changed(backlog_max=always(v)))
_breach("SSEConnectionsPerClient", lambda v: changed(per_client=always(v)), 100, 101)
_breach("SSEDroppedMessages", lambda v: changed(dropped=each_second(v)))
_breach("SSERejectedConnections", refused, 0, 1)
_breach("SSEBrokerErrors", broker_errors)
_breach("SSEPoolNearlyFull", pool_share)
_breach("SSEBacklogGrowing", lambda v: changed(backlog=each_second(v)), 95_000, 105_000)
_breach("SSEReconnectStorm", lambda v: changed(resumed=each_second(v * 5)))
_breach("SSEEndingErrors", errors)
_breach("SSEFirstMessageSlow", late_first_messages, 0.049, 0.051)
_breach("SSEInstanceUnbalanced", share_of_one)
_breach("SSEShutdownCutStreams", cut, 0, 1)
# Of what is absent, the minutes and seconds of silence: expiration, and what the rule waits.
_breach("SSETelemetryAbsent", silent_since, 6, 8)
_breach("SSECollectorAbsent", collector_down, 60, 80)

# The lesser degree of the same fires too, and Alertmanager inhibits it.
COMPANIONS: Final = {"SSEProcessingSlow": {"SSEProcessingElevated": 1}}


def scenario_of(alert: str, figure: float, firing: Firing, *, pushed: bool = False) -> Scenario:
    made = BREACHES[alert][0](figure)
    processes, up = (changed(), made) if isinstance(made, str) else (made, None)
    return Scenario(processes, {END: firing}, ever=firing, up=up, pushed=pushed)
