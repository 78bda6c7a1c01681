"""Every private part of the OpenTelemetry SDK that is looked at, each with a fallback.

- ``span._limits``, ``span._events``: an SDK cleans and copies each attribute of each event, which
  is most of what a message costs where every one is recorded. Ours are clean already, so they are
  put where the SDK would put them. Fallback: ``add_event``, and 40 events assumed to fit.
- ``MeterProvider._measurement_consumer``: a forked child keeps what its parent recorded.
  Fallback: the child's first export holds the parent's histograms too.
- ``MeterProvider._shutdown``: a provider that was shut down logs an error at a flush. Fallback:
  it is flushed.

Tests: tests/unit/telemetry/test_span_events.py, tests/e2e/test_workers.py.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.trace import Span

from otel_sse.semconv import MAX_SPAN_EVENTS, SCOPE

# An event's attributes, and its time (Unix, ns).
SpanEvent = tuple[dict[str, Any], int]
# No event of ours has more attributes.
_MAX_ATTRIBUTES: Final = 8


def remaining_event_capacity(span: Span, *, less_present: bool = False) -> int:
    """How many events of ours ``span`` can hold; ``less_present``: less those that it has."""
    limit = getattr(getattr(span, "_limits", None), "max_events", None)
    if not isinstance(limit, int):
        return MAX_SPAN_EVENTS
    present = len(getattr(span, "events", ())) if less_present else 0
    return max(0, min(MAX_SPAN_EVENTS, limit - present))


def add_span_events(span: Span, name: str, events: Sequence[SpanEvent]) -> None:
    """Adds events of one name, whose attributes are strings and numbers that need no cleaning."""
    sdk: Any = sys.modules.get("opentelemetry.sdk.trace")
    if sdk is not None and _is_plain_sdk_span(span, sdk):
        inner: Any = span
        inner._events.extend([sdk.Event(name, attributes, at) for attributes, at in events])
    else:
        for attributes, at in events:
            span.add_event(name, attributes, at)


def forget_parent_metrics(provider: Any) -> None:
    """Has a forked child's SDK forget what the parent has recorded with our instruments.

    It keeps that, and its locks as the fork found them: the child would export the parent's
    histograms as its own, and wait for ever where a collection was under way. See
    https://github.com/open-telemetry/opentelemetry-python/issues/4345.
    """
    consumer = getattr(provider, "_measurement_consumer", None)
    if consumer is None:
        return
    consumer._lock = threading.Lock()
    for storage in consumer._reader_storages.values():
        storage._lock = threading.RLock()
        matches = storage._instrument_view_instrument_matches
        for instrument in list(matches):
            if instrument.instrumentation_scope.name == SCOPE:
                del matches[instrument]


def is_shut_down(provider: object) -> bool:
    """Whether the application has shut a meter provider down."""
    return bool(getattr(provider, "_shutdown", False))


def _is_plain_sdk_span(span: Any, sdk: Any) -> bool:
    """Whether ``span`` is the SDK's own, open, and would cut nothing of ours."""
    if type(span) is not getattr(sdk, "_Span", None) or not span.is_recording():
        return False
    limits = getattr(span, "_limits", None)
    maximum = getattr(limits, "max_event_attributes", 0)
    return (
        type(getattr(span, "_events", None)) is getattr(sdk, "BoundedList", None)
        and getattr(limits, "max_attribute_length", 0) is None
        and (maximum is None or maximum >= _MAX_ATTRIBUTES)
    )
