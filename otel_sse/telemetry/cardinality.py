"""Limits the values of attributes, so that no application or client can make series without end."""

from __future__ import annotations

from collections.abc import Iterable
from threading import RLock
from typing import overload

from otel_sse import semconv


class CardinalityLimit:
    """Keeps the first ``limit`` values that a process sees; any later one is ``_OTHER``."""

    __slots__ = ("_limit", "_seen")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: dict[str, str] = {}

    def __call__(self, value: str) -> str:
        known = self._seen.get(value)
        if known is not None:
            return known
        if len(self._seen) >= self._limit:
            return semconv.OTHER
        # setdefault: two threads at once may exceed the limit by one, but never split a value.
        return self._seen.setdefault(value, value)


class EventTypes:
    """The event types that are exported by their name, each with an index.

    Counts and buffered messages hold the index, so ``names`` only grows.

    Attributes:
        names: by index; 0 is ``_OTHER``.
        indexes: the index of each name that is exported; a new dictionary at each ``configure``.

    """

    __slots__ = ("_free", "_lock", "indexes", "names")

    def __init__(self) -> None:
        # Reentrant: a clean-up that a collection runs in here may send an event of another type.
        self._lock = RLock()
        self.names: list[str] = []
        self.configure(())

    def configure(self, names: Iterable[str]) -> None:
        """Exports ``names`` alone, or, where there are none, the first ones that are seen."""
        configured = sorted(names)
        self.indexes: dict[str, int] = {}
        self._free = 0 if configured else semconv.MAX_EVENT_TYPES
        for name in (semconv.OTHER, semconv.DEFAULT_EVENT_TYPE, *configured):
            self._add(name)

    def index_of(self, name: str) -> int:
        """The index of the event type ``name``, which is added where there is room for it."""
        if self._free and len(name.encode()) <= semconv.MAX_EVENT_TYPE_BYTES:
            with self._lock:
                if name not in self.indexes and self._free:
                    self._free -= 1
                    self._add(name)
                return self.indexes.get(name, 0)
        return self.indexes.get(name, 0)

    def after_fork(self) -> None:
        self._lock = RLock()

    def _add(self, name: str) -> None:
        if name not in self.names:
            self.names.append(name)
        self.indexes[name] = self.names.index(name)


class ErrorTypes:
    """The values of ``error.type``: qualified class names, a limited number of them."""

    __slots__ = ("_limit",)

    def __init__(self) -> None:
        self._limit = CardinalityLimit(semconv.MAX_ERROR_TYPES)

    def name_of(self, error: BaseException) -> str:
        kind = type(error)
        if kind.__module__ == "builtins":
            return self._limit(kind.__qualname__)
        return self._limit(f"{kind.__module__}.{kind.__qualname__}")


def known_method(method: str) -> str:
    return method if method in semconv.METHODS else semconv.OTHER


@overload
def clip_text(value: str) -> str: ...
@overload
def clip_text(value: str | bytes | None) -> str | None: ...
def clip_text(value: str | bytes | None) -> str | None:
    """``value``, or a header's bytes, as text of at most 512 bytes that UTF-8 can hold."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if value is None or (value.isascii() and len(value) <= semconv.MAX_TEXT_BYTES):
        return value
    clipped = value.encode("utf-8", "replace")[: semconv.MAX_TEXT_BYTES]
    return clipped.decode("utf-8", "ignore")
