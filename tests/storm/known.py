"""Faults that are known and not fixed yet: what they are, and which differences they explain.

A run counts the examples of each. Any other difference fails. An entry goes when its fix comes:
``test_storm.py`` fails where the example of an entry does not show its fault any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from storm.compare import Difference
from storm.plans import AIOHTTP_SERVERS, Plan
from storm.script import OWN_REASON


class Known(NamedTuple):
    """A fault; ``explains`` is whether it explains a difference of a plan.

    ``example`` is a plan that shows it every time: once it does not, the entry has to go.
    """

    name: str
    why: str
    example: str
    explains: Callable[[Plan, Difference], bool]


def _local_parent(plan: Plan, difference: Difference) -> bool:
    return "local" in plan.everywhere and difference.kind in ("spans", "context")


def _proxy_shows(plan: Plan, difference: Difference) -> bool:
    return not plan.streams and difference.kind == "context"


def _baggage(plan: Plan, difference: Difference) -> bool:
    both = "baggage" in plan.everywhere and "contrib" in plan.everywhere
    return both and difference.kind in ("spans", "context", "below us")


def _after(plan: Plan, difference: Difference) -> bool:
    return difference.kind == "after below us"


def _inner_parent(plan: Plan, difference: Difference) -> bool:
    return difference.kind == "spans" and "after (INTERNAL) < " in difference.text


def _late_error(plan: Plan, difference: Difference) -> bool:
    late = plan.app in ("sender", "native") or "base" in plan.route
    raises = plan.fails != "never" or plan.cleanup == "raises"
    return late and raises and difference.text.startswith("completed")


def _unannounced_stop(plan: Plan, difference: Difference) -> bool:
    return plan.ending == "stop" and difference.text.startswith("unknown")


def _handled(plan: Plan, difference: Difference) -> bool:
    kinds = ("error.type", "reason")
    return plan.failure in ("handled", "http", "timeout") and (
        difference.kind in kinds and "RuntimeError" in difference.text
    )


def _aiohttp_stop(plan: Plan, difference: Difference) -> bool:
    stop = plan.server in AIOHTTP_SERVERS and plan.ending == "stop"
    return stop and difference.text.startswith("client_disconnect")


def _other_response(plan: Plan, difference: Difference) -> bool:
    on_aiohttp = plan.server in AIOHTTP_SERVERS and plan.fails != "never"
    answered = plan.failure in ("http", "handled") or "absorbs" in plan.middlewares
    return on_aiohttp and answered and difference.kind in ("reason", "count io", "status")


def _background_error(plan: Plan, difference: Difference) -> bool:
    return plan.background == "raises" and "Late" in difference.text


def _background_time(plan: Plan, difference: Difference) -> bool:
    # Two BaseHTTPMiddlewares let the send of the final body be cancelled.
    unfinished = plan.leaves or plan.everywhere.count("base") >= 2
    return unfinished and difference.kind == "duration"


def _cancellation(plan: Plan, difference: Difference) -> bool:
    return plan.sets_reason != "none" and "CancelledError, right" in difference.text


def _cleanup_error(plan: Plan, difference: Difference) -> bool:
    interrupted = plan.cleanup == "raises" and plan.acts
    shown = ("error (storm.script.Cleanup)", f"{OWN_REASON} storm.script.Cleanup")
    return interrupted and difference.text.startswith(shown)


def _hypercorn_transport(plan: Plan, difference: Difference) -> bool:
    return plan.server == "hypercorn" and plan.leaves and difference.text.startswith("completed")


KNOWN: tuple[Known, ...] = (
    Known(
        "clean-up's error",
        "an error of the clean-up that a disconnect or a stop sets off is the stream's",
        '{"server": "aiohttp-cancels", "app": "aiohttp", "cleanup": "raises", "ending": "closes"}',
        _cleanup_error,
    ),
    Known(
        "hypercorn's transport",
        "a FIN does not close hypercorn's transport, which is not found behind Starlette either",
        '{"server": "hypercorn", "app": "raw", "ending": "closes"}',
        _hypercorn_transport,
    ),
    Known(
        "another response",
        "aiohttp: what a middleware writes after an error in the stream completes it and counts",
        '{"server": "aiohttp", "app": "aiohttp", "fails": "last", "middlewares": ["absorbs"]}',
        _other_response,
    ),
    Known(
        "background's error",
        "where the final body was not sent a background task's error is the stream's",
        '{"background": "raises", "ending": "closes"}',
        _background_error,
    ),
    Known(
        "background's time",
        "where the final body was not sent the stream lasts until its background task is over",
        '{"background": "waits", "ending": "closes"}',
        _background_time,
    ),
    Known(
        "cancellation's type",
        "error.type is CancelledError where the application set `timeout` and was cancelled",
        '{"server": "aiohttp-cancels", "app": "aiohttp", "sets_reason": "endpoint", '
        '"ending": "closes"}',
        _cancellation,
    ),
    Known(
        "handled exception",
        "an exception for which the application has a handler is a RuntimeError",
        '{"fails": "first", "failure": "http"}',
        _handled,
    ),
    Known(
        "aiohttp's stop",
        "aiohttp's stop is a disconnect where the handler's clean-up awaits",
        '{"server": "aiohttp", "app": "aiohttp-sse", "ending": "stop"}',
        _aiohttp_stop,
    ),
    Known(
        "local parent",
        "a local non-recording parent is taken for one that is over",
        '{"middlewares": ["local"]}',
        _local_parent,
    ),
    Known(
        "proxy shows",
        "a request that is no stream sees the proxy span",
        '{"app": "text", "middlewares": ["contrib"]}',
        _proxy_shows,
    ),
    Known(
        "baggage",
        "with baggage the proxy span is the parent of contrib's server span",
        '{"middlewares": ["baggage", "contrib"], "mounts": 1}',
        _baggage,
    ),
    Known(
        "after the stream",
        "what runs after the stream is below its ended segment where no span encloses it",
        '{"route": ["pure"]}',
        _after,
    ),
    Known(
        "inner parent",
        "after the stream an outer frame sees the span that enclosed an inner one",
        '{"middlewares": ["span"], "mounts": 1}',
        _inner_parent,
    ),
    Known(
        "late error",
        "an error that follows the final body at once is ignored",
        '{"app": "sender", "fails": "first"}',
        _late_error,
    ),
    Known(
        "stop without a signal",
        "a server's stop without a signal is unknown",
        '{"ending": "stop"}',
        _unannounced_stop,
    ),
)


def explanation(plan: Plan, difference: Difference) -> Known | None:
    """The known fault that explains the difference, if one does."""
    return next((each for each in KNOWN if each.explains(plan, difference)), None)
