"""Waits for what another task, thread or process does."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# How long anything may take on a machine that is busy, in seconds: less than pytest's time-out.
PATIENCE = 60.0


async def until(condition: Callable[[], T], seconds: float = PATIENCE) -> T:
    """Waits for a condition of another task or thread, and gives what it gave."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        await asyncio.sleep(0.005)
    return result


def wait_until(condition: Callable[[], T], seconds: float = PATIENCE, what: str = "") -> T:
    """The same for one who has no event loop."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        time.sleep(0.05)
    return result
