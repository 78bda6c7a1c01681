"""What an ASGI server lets one see behind its ``send`` and ``receive``.

Servers bind them to the object that holds what is wanted, directly or some objects deep;
middleware wraps them in objects and closures.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

_DEPTH: Final = 8


def transport_of(channel: Any) -> Any:
    """The asyncio transport behind ``channel``, or None."""
    return _behind(channel, _transport)


def stopping(channel: Any) -> bool:
    """Whether the server behind ``channel`` says that it stops; hypercorn alone says so there."""
    return "hypercorn" in sys.modules and _behind(channel, _terminated) is not None


def _transport(item: Any) -> Any:
    for name in ("transport", "_transport"):
        transport = getattr(item, name, None)
        if callable(getattr(transport, "get_write_buffer_size", None)):
            return transport
    return None


def _terminated(item: Any) -> Any:
    terminated = getattr(getattr(item, "context", None), "terminated", None)
    return terminated if terminated is not None and terminated.is_set() else None


def _behind(channel: Any, wanted: Callable[[Any], Any]) -> Any:
    layer = [channel]
    # By identity, and kept, so that none is reused meanwhile: the objects lead back to each other.
    seen = {id(channel): channel}
    for _ in range(_DEPTH):
        inner: list[Any] = []
        for item in layer:
            # What reading a stranger's attributes raises ends the search there alone.
            with suppress(Exception):
                found = wanted(item)
                if found is not None:
                    return found
                inner += [each for each in _inside(item) if id(each) not in seen]
            seen.update((id(each), each) for each in inner)
        layer = inner
    return None


def _inside(item: Any) -> list[Any]:
    names = ("__self__", "__wrapped__", "func", "send", "_send", "_receive", "writer")
    found = [getattr(item, name, None) for name in names]
    free = getattr(getattr(item, "__code__", None), "co_freevars", ())
    for name, cell in zip(free, getattr(item, "__closure__", None) or (), strict=False):
        if name.endswith(("send", "receive")):
            found.append(cell.cell_contents)
    return [each for each in found if each is not None]
