"""Bodies that are read like files: their classes, and where they are freed."""

import gc
from http.client import HTTPResponse
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


class _Registry(type):
    """A metaclass that registers classes, and wants an argument."""

    known: ClassVar[list[str]] = []

    def __new__(cls, name: str, *args: Any, key: str) -> Any:
        cls.known.append(key)
        return super().__new__(cls, name, *args)

    def __init__(cls, *args: Any, key: str) -> None:
        super().__init__(*args)
        cls.key = key


class _Registered(_PlainBody, metaclass=_Registry, key="body"):
    pass


class _Final(_PlainBody):
    def __init_subclass__(cls) -> None:
        raise TypeError("final")


class _FinalResponse(HTTPResponse):
    def __init_subclass__(cls) -> None:
        raise TypeError("final")

    def __init__(self) -> None:
        self.fp = None


@pytest.mark.parametrize("kind", [_Registered, _Final, _FinalResponse])
def test_an_applications_class_does_not_notice_ours(kind: Any) -> None:
    """Neither its ``__init_subclass__`` nor its metaclass, which may refuse a subclass."""
    stream: Any = _Stream()
    body = kind()
    _Reader(stream).observe(body)
    assert type(body) is not kind
    assert isinstance(body, kind)
    assert (type(body).__name__, type(body).__module__) == (kind.__name__, kind.__module__)
    body.close()
    assert type(body) is kind
    assert stream.calls == ["close"]
    assert _Registry.known == ["body"]
