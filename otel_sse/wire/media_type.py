"""Detects an event stream by its response, never by a class, a method or an ``Accept`` header."""

from otel_sse.semconv import MEDIA_TYPE


def is_event_stream(method: str, status: int, content_type: str) -> bool:
    """Whether a response is an event stream: its media type is one, and it may have a body."""
    return (
        "stream" in content_type.lower()  # rejects nearly every other response at once
        and content_type.partition(";")[0].strip().lower() == MEDIA_TYPE
        and method != "HEAD"
        and status not in (204, 304)
    )
