"""The options: one frozen object, made and checked once.

A keyword argument wins over its environment variable. A bad keyword is a ``ValueError``; a bad
variable is a logged warning and the default, because telemetry never stops an application.
"""

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypedDict

_log = logging.getLogger("otel_sse")

# The bad variables and values that were warned of: each instrumentor reads the environment.
_warned: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Config:
    """The options, with their defaults.

    Attributes:
        excluded_urls: a stream whose URL (scheme, host and path) one of these matches is not
            recorded.
        message_events: how messages are recorded: ``span`` events, ``log`` events, both or neither.
        message_event_detail: ``edges`` (first, slow and last messages) or ``all``.
        lifecycle_events: ``all``, ``closed`` or ``none``.
        segment_seconds: length of a span segment, in seconds.
        stall_seconds: idle time after which a stream counts as stalled, in seconds; 0: off.
        slow_send_seconds: wait from which a send counts as slow, in seconds.
        event_types: values exported in ``sse.event.type``; empty: the first 16 seen.
        capture_event_id: whether the ``id`` field of a message is recorded.
        propagate: whether a server writes a trace comment in front of each message.
        shutdown_seconds: time from the stop signal until the process is killed, in seconds.
        final_events: event types by which a protocol ends its stream, beside ``data: [DONE]``: a
            reader that closes the stream behind one has read all of it.

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
    propagate: bool = False
    # `docker stop` allows 10 s, the shortest of the usual limits.
    shutdown_seconds: float = 10.0
    final_events: frozenset[str] = frozenset(
        {"message_stop", "response.completed", "response.failed", "response.incomplete"}
    )

    def excludes(self, url: str) -> bool:
        return self.excluded_urls is not None and self.excluded_urls.search(url) is not None


class Options(TypedDict, total=False):
    """The options as keyword arguments, for type checkers; None stands for what is absent."""

    excluded_urls: str | Collection[str] | None
    message_events: str | Collection[str] | None
    message_event_detail: str | None
    lifecycle_events: str | None
    segment_seconds: float | None
    stall_seconds: float | None
    slow_send_seconds: float | None
    event_types: str | Collection[str] | None
    capture_event_id: bool | None
    propagate: bool | None
    shutdown_seconds: float | None
    final_events: str | Collection[str] | None


def load(options: Mapping[str, Any]) -> Config:
    """The configuration from keyword ``options`` and, where one is absent, the environment.

    Raises:
        ValueError: an option has a bad value.
        TypeError: there is no such option.
    """
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise TypeError(f"otel_sse has no option {unknown[0]!r}; it takes {', '.join(_OPTIONS)}")
    chosen: dict[str, Any] = {}
    for name, (takes, parse) in _OPTIONS.items():
        given = options.get(name)
        variable, value = _from_environment(name)
        try:
            if given is not None:
                many = isinstance(given, (list, tuple, set, frozenset))
                chosen[name] = parse(",".join(given) if many else str(given))
            elif value:
                chosen[name] = parse(value)
        except (KeyError, TypeError, ValueError, re.error) as error:
            if given is not None:
                raise ValueError(f"otel_sse: {name}={given!r}: it takes {takes}") from error
            if (variable, value) not in _warned:
                _warned.add((variable, value))
                _log.warning(
                    "%s=%r is ignored: it takes %s; the default is kept", variable, value, takes
                )
    return Config(**chosen)


def keep_first_config(first: Config, other: Config) -> Config:
    """``first``; if ``other`` is different, a warning is logged."""
    if other != first:
        _log.warning(
            "otel_sse is configured already and keeps that configuration; a meter provider "
            "has one. Ignored: %s",
            ", ".join(
                f"{name}={value!r}"
                for name, value in vars(other).items()
                if value != getattr(first, name)
            ),
        )
    return first


def _from_environment(name: str) -> tuple[str, str]:
    variables = ["OTEL_PYTHON_SSE_" + name.upper()]
    if name == "excluded_urls":
        variables.append("OTEL_PYTHON_EXCLUDED_URLS")
    for variable in variables:
        if value := os.environ.get(variable, "").strip():
            return variable, value
    return variables[0], ""


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",")) - {""}


def _patterns(text: str) -> "re.Pattern[str] | None":
    patterns = sorted(_names(text))
    return re.compile("|".join(f"(?:{each})" for each in patterns)) if patterns else None


def _events(text: str) -> frozenset[str]:
    words = _names(text.lower())
    if not words or (words != {"none"} and words - {"span", "log"}):
        raise ValueError(text)
    return words - {"none"}


def _one_of(*words: str) -> tuple[str, Callable[[str], str]]:
    return "one of " + ", ".join(words), lambda text: {word: word for word in words}[text.lower()]


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) < float("inf"):
        raise ValueError(text)
    return seconds


_SWITCH: Final[tuple[str, Callable[[str], Any]]] = (
    "true or false",
    lambda text: {"true": True, "false": False}[text.lower()],
)
# What each option takes, in words, and how it is read from a text.
_OPTIONS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "excluded_urls": ("regular expressions, separated by commas", _patterns),
    "message_events": ("span, log, span,log or none", _events),
    "message_event_detail": _one_of("edges", "all"),
    "lifecycle_events": _one_of("all", "closed", "none"),
    "segment_seconds": ("a number of seconds, more than 0", _seconds),
    "stall_seconds": (
        "a number of seconds, 0 (off) or more",
        lambda text: _seconds(text) if float(text) else 0.0,
    ),
    "slow_send_seconds": ("a number of seconds, more than 0", _seconds),
    "event_types": ("names, separated by commas", _names),
    "capture_event_id": _SWITCH,
    "propagate": _SWITCH,
    "shutdown_seconds": ("a number of seconds, more than 0", _seconds),
    "final_events": ("names, separated by commas", _names),
}
