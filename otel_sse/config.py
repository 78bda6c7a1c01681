"""The options of the contract: one frozen object, made and checked once.

A keyword argument wins over its environment variable. A bad keyword is a ``ValueError``; a bad
variable is a logged warning and the default, because telemetry never stops an application.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger("otel_sse")

_PREFIX = "OTEL_PYTHON_SSE_"


class _Bad(Exception):
    """Says what an option takes."""


def _words(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if isinstance(value, str) and value.strip().lower() in choices:
            return value.strip().lower()
        raise _Bad("one of " + ", ".join(choices))

    return parse


def _message_events(value: Any) -> frozenset[str]:
    parts = [value] if isinstance(value, str) else value
    if isinstance(parts, Iterable):
        words = {w.strip().lower() for p in parts for w in str(p).split(",")} - {""}
        if words and (words <= {"span", "log"} or words == {"none"}):
            return frozenset(words - {"none"})
    raise _Bad("span, log, span,log or none")


def _seconds(*, zero: bool = False) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number) and (number > 0 or (zero and number == 0)):
            return number
        raise _Bad("a number of seconds, " + ("0 (off) or more" if zero else "more than 0"))

    return parse


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else None
    if word in ("true", "false"):
        return word == "true"
    raise _Bad("true or false")


def _names(value: Any) -> frozenset[str]:
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, Iterable):
        names = list(value)
        if all(isinstance(name, str) for name in names):
            return frozenset(name.strip() for name in names) - {""}
    raise _Bad("names, separated by commas")


def _patterns(value: Any) -> "re.Pattern[str] | None":
    parts = value.split(",") if isinstance(value, str) else value
    try:
        wanted = [part.strip() for part in parts if part.strip()]
        return re.compile("|".join(f"(?:{part})" for part in wanted)) if wanted else None
    except (TypeError, AttributeError, re.error) as error:
        raise _Bad(f"regular expressions, separated by commas ({error})") from None


@dataclass(frozen=True)
class Config:
    """What an application may choose. Defaults are the contract's.

    Attributes:
        excluded_urls: a connection whose URL (scheme, host and path) one of these matches is
            not told.
        message_events: where a message is told: ``span``, ``log``, both or neither.
        message_event_detail: ``edges`` (first, slow and last messages) or ``all``.
        lifecycle_events: ``all``, ``closed`` or ``none``.
        segment_seconds: length of a span segment, in seconds.
        stall_seconds: silence after which a connection counts as stalled, in seconds; 0: off.
        slow_send_seconds: wait from which a send counts as slow, in seconds.
        event_types: names told in ``sse.event.type``; empty: the first 16 seen.
        capture_event_id: whether the ``id`` field of a message is told.

    """

    excluded_urls: "re.Pattern[str] | None" = None
    message_events: frozenset[str] = frozenset({"span"})
    message_event_detail: str = "edges"
    lifecycle_events: str = "all"
    segment_seconds: float = 300.0
    stall_seconds: float = 60.0
    slow_send_seconds: float = 0.5
    event_types: frozenset[str] = frozenset()
    capture_event_id: bool = False

    def excludes(self, url: str) -> bool:
        return self.excluded_urls is not None and self.excluded_urls.search(url) is not None


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "excluded_urls": _patterns,
    "message_events": _message_events,
    "message_event_detail": _words("edges", "all"),
    "lifecycle_events": _words("all", "closed", "none"),
    "segment_seconds": _seconds(),
    "stall_seconds": _seconds(zero=True),
    "slow_send_seconds": _seconds(),
    "event_types": _names,
    "capture_event_id": _flag,
}


def load(options: dict[str, Any]) -> Config:
    """The configuration from keyword ``options`` and, where one is absent, the environment.

    Raises:
        ValueError: an option has a bad value.
        TypeError: there is no such option.

    """
    unknown = sorted(set(options) - set(_PARSERS))
    if unknown:
        raise TypeError(f"otel_sse has no option {unknown[0]!r}; it takes {', '.join(_PARSERS)}")
    chosen: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        if options.get(name) is not None:
            try:
                chosen[name] = parse(options[name])
            except _Bad as takes:
                raise ValueError(f"otel_sse: {name}={options[name]!r}: it takes {takes}") from None
            continue
        for variable in _variables(name):
            value = os.environ.get(variable, "")
            if not value.strip():
                continue
            try:
                chosen[name] = parse(value)
            except _Bad as takes:
                _log.warning(
                    "%s=%r is ignored: it takes %s; the default is kept", variable, value, takes
                )
            break
    return Config(**chosen)


def _variables(name: str) -> tuple[str, ...]:
    own = _PREFIX + name.upper()
    return (own, "OTEL_PYTHON_EXCLUDED_URLS") if name == "excluded_urls" else (own,)
