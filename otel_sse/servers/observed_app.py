"""A WSGI application as its server gets it, observed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wrapt import CallableObjectProxy


class ObservedApp(CallableObjectProxy):  # type: ignore[type-arg]
    """The application in all but its call: a server's own hooks may read its attributes.

    Args:
        app: the application.
        call: is called in its place, with it as the first argument.

    """

    def __init__(self, app: Any, call: Callable[..., Any]) -> None:
        super().__init__(app)
        self._self_call = call

    def __call__(self, *args: Any) -> Any:
        return self._self_call(self.__wrapped__, *args)
