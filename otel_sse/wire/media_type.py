"""Detects an event stream by its response, never by a class, a method or an ``Accept`` header."""

import re
from typing import Final

from otel_sse.semconv import MEDIA_TYPE

# The members of a list: a comma in a quoted string is none between two.
_VALUES: Final = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*")+')


def is_event_stream(method: str, status: int, content_type: str) -> bool:
    """Whether a response is an event stream: its media type is one, and it may have a body.

    Args:
        method: of the request.
        status: of the response.
        content_type: the value of its header; of several headers the values joined by commas. The
            last media type counts (https://fetch.spec.whatwg.org/#content-type-header).

    """
    return (
        "stream" in content_type.lower()  # rejects nearly every other response at once
        and _last_media_type(content_type) == MEDIA_TYPE
        and method != "HEAD"
        and status not in (204, 304)
    )


def is_redirect(status: int, location: str | None) -> bool:
    """Whether a response only refers to another one. It is no stream, whatever its media type."""
    return status in (301, 302, 303, 307, 308) and location is not None


def _last_media_type(content_type: str) -> str:
    last = ""
    for value in _VALUES.findall(content_type):
        media_type = value.partition(";")[0].strip().lower()
        # What is none is passed over.
        if "/" in media_type and media_type != "*/*" and " " not in media_type:
            last = media_type
    return last
