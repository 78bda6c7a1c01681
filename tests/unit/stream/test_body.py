"""Bodies that are read like files, where they are freed."""

import gc
from typing import Any, ClassVar

import pytest

from otel_sse.stream.body import BodyReader


class _Stream:
    """Notes what its reader reports."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def close(self, *_: Any, **__: Any) -> None:
        self.calls.append("close")

    def on_owner_freed(self) -> None:
        self.calls.append("freed")


class _Reader(BodyReader):
    __slots__ = ()

    methods: ClassVar = {"close": "close"}

    def is_complete(self, body: Any) -> bool:
        return False


class _Body:
    """As urllib3-future's: it closes itself where it is freed."""

    closed = 0

    def close(self) -> None:
        type(self).closed += 1

    def __del__(self) -> None:
        self.close()


class _PlainBody:
    def close(self) -> None:
        pass


@pytest.mark.parametrize("circle", [False, True])
def test_a_body_that_is_freed_only_queues(circle: bool) -> None:
    """Its own finalizer closes it, wherever that may be, so that is no close of the reader's; the
    finalizer runs once, as without.
    """
    stream: Any = _Stream()
    body: Any = _Body()
    _Reader(stream).observe(body)
    if circle:
        body.itself = body
    _Body.closed = 0
    del body
    gc.collect()
    assert stream.calls == ["freed"]
    assert _Body.closed == 1


def test_a_body_that_was_closed_is_freed_as_it_would_be() -> None:
    """It has its class back."""
    stream: Any = _Stream()
    body: Any = _Body()
    _Reader(stream).observe(body)
    body.close()
    assert type(body) is _Body
    del body
    assert stream.calls == ["close"]


def test_a_body_without_a_finalizer_gets_none() -> None:
    """Such an object is freed faster."""
    body: Any = _PlainBody()
    _Reader(_Stream()).observe(body)  # type: ignore[arg-type]
    assert type(body) is not _PlainBody
    assert not hasattr(body, "__del__")
