"""Reads headers for a propagator, from a framework's own mapping or from a plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.propagators.textmap import DefaultGetter


class HeaderGetter(DefaultGetter):
    """An application's own kind of request may have another mapping than its framework's.

    Args:
        method: the method that only the framework's mapping has.
        read: all values of a header of that mapping; None where it has none.

    """

    def __init__(self, method: str, read: Callable[[Any, str], list[str] | None]) -> None:
        self._method = method
        self._read = read

    def get(self, carrier: Any, key: str) -> list[str] | None:
        if not hasattr(carrier, self._method):
            return super().get(carrier, key)
        return self._read(carrier, key)
