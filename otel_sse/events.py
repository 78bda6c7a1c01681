"""The events of a span, by its API; at less cost where it is the SDK's own.

An SDK cleans and copies each attribute of each event, which is most of what a message costs where
every one is told. Ours are clean, so they are put where the SDK would put them. What is private to
the SDK is looked at here alone, and done without where it is not as it was.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.trace import Span

from otel_sse.semconv import MAX_SPAN_EVENTS

# An event's attributes, and its time (Unix, ns).
Event = tuple[dict[str, Any], int]
# No event of ours has more attributes.
_ATTRIBUTES: Final = 8


def room(span: Span, *, held: bool = False) -> int:
    """How many events of ours ``span`` can take, with ``held`` less those that it has."""
    limit = getattr(getattr(span, "_limits", None), "max_events", None)
    if not isinstance(limit, int):
        return MAX_SPAN_EVENTS
    taken = len(getattr(span, "events", ())) if held else 0
    return max(0, min(MAX_SPAN_EVENTS, limit - taken))


def add(span: Span, name: str, events: Sequence[Event]) -> None:
    """Adds events of one name, whose attributes are strings and numbers as they are told."""
    sdk: Any = sys.modules.get("opentelemetry.sdk.trace")
    if sdk is not None and _is_plain(span, sdk):
        held: Any = span
        held._events.extend([sdk.Event(name, attributes, at) for attributes, at in events])
    else:
        for attributes, at in events:
            span.add_event(name, attributes, at)


def _is_plain(span: Any, sdk: Any) -> bool:
    """Whether ``span`` is the SDK's own, open, and would not cut anything of ours."""
    if type(span) is not getattr(sdk, "_Span", None) or not span.is_recording():
        return False
    limits = getattr(span, "_limits", None)
    most = getattr(limits, "max_event_attributes", 0)
    return (
        type(getattr(span, "_events", None)) is getattr(sdk, "BoundedList", None)
        and getattr(limits, "max_attribute_length", 0) is None
        and (most is None or most >= _ATTRIBUTES)
    )
