"""Which responses are event streams."""

import pytest

from otel_sse.wire.media_type import is_event_stream, is_redirect

SSE = "text/event-stream"


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (SSE, True),
        ("Text/Event-Stream;charset=utf-8", True),
        (f"  {SSE}  ; a=b", True),
        ("text/event-streams", False),
        ("application/x; a=text/event-stream", False),
        ("", False),
        # Of several the last one counts that is a media type.
        (f"text/plain, {SSE}", True),
        (f"{SSE}, text/plain", False),
        (f"{SSE}, */*", True),
        (f"{SSE}, nonsense", True),
        (f"{SSE}, text/no type", True),
        (f'text/plain; a="x, {SSE}"', False),
        (f'text/plain; a="x\\", y", {SSE}', True),
    ],
)
def test_the_last_media_type_counts(content_type: str, expected: bool) -> None:
    """As a browser takes it."""
    assert is_event_stream("GET", 200, content_type) is expected


@pytest.mark.parametrize(
    ("method", "status", "expected"),
    [
        ("POST", 200, True),
        ("GET", 500, True),
        ("HEAD", 200, False),
        ("GET", 204, False),
        ("GET", 304, False),
    ],
)
def test_a_response_without_a_body_is_none(method: str, status: int, expected: bool) -> None:
    """Whatever its type."""
    assert is_event_stream(method, status, SSE) is expected


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_has_a_location(status: int) -> None:
    """Without one, or with another status, the response is what there is."""
    assert is_redirect(status, "/")
    assert not is_redirect(status, None)
    assert not is_redirect(300, "/")
    assert not is_redirect(200, "/")
