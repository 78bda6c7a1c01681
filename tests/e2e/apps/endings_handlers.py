"""What a handler does that sends its stream itself, once that has begun, for each ending."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE = 1.0

Send = Callable[[bytes], Awaitable[object]]


async def go_on(ending: str, send: Send, *disconnects: type[Exception]) -> None:
    """``disconnects``: what ``send`` raises once the client has disconnected."""
    if ending == "raises-midway":
        json.loads("{")
    elif ending == "cancelled":
        task: asyncio.Task[Any] | None = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()
    elif ending == "silent":
        await asyncio.Event().wait()
    elif ending == "stops-reading":
        await asyncio.wait_for(_flood(send), PATIENCE)
    elif ending.startswith("stalled-"):
        await _flood(send)
    elif ending in ("closes", "resets"):
        for _ in range(20):
            await _send_later(send)
    elif ending in ("stopped", "endless"):
        while True:
            await _send_later(send)
    elif ending.startswith("cleanup-"):
        await _send_and_clean_up(ending, send, disconnects)


async def _send_later(send: Send) -> None:
    await asyncio.sleep(0.1)
    await send(b"data: more\n\n")


async def _send_and_clean_up(
    ending: str, send: Send, disconnects: tuple[type[Exception], ...]
) -> None:
    try:
        while True:
            await _send_later(send)
    except (asyncio.CancelledError, *disconnects):
        if ending == "cleanup-awaits":
            await asyncio.sleep(0.3)
        elif ending == "cleanup-raises":
            raise LookupError("on purpose, in the clean-up") from None
        elif ending == "cleanup-swallows":
            return
        raise


async def _flood(send: Send) -> None:
    while True:
        await send(b"data: %s\n\n" % (b"x" * 2**18))
        await asyncio.sleep(0.01)
