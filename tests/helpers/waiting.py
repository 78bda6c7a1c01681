"""Waits for what another task, thread or process does."""

import asyncio
import inspect
import textwrap
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
# How long anything may take on a machine that is busy, in seconds: less than pytest's time-out.
PATIENCE = 60.0
# How much of a value a message shows.
WIDTH = 2000


async def until(
    condition: Callable[[], T],
    seconds: float = PATIENCE,
    *,
    running: "asyncio.Future[Any] | None" = None,
) -> T:
    """Waits for a condition of another task or thread, and returns its value.

    ``running`` is the task that makes it true, where there is one: if that has ended in vain, the
    wait fails at once. The message of a failure has the condition and the variables that it reads.
    """
    deadline = time.monotonic() + seconds
    while True:
        # In this order: the task's last step may be what makes the condition true.
        over = running is not None and running.done()
        if result := condition():
            return result
        if over:
            raise AssertionError(f"{running} has ended without it.{_seen(condition, result)}")
        if time.monotonic() > deadline:
            raise AssertionError(f"It did not come in {seconds} s.{_seen(condition, result)}")
        await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], T], seconds: float = PATIENCE, what: str = "") -> T:
    """The same where there is no event loop; ``what`` is waited for."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(
                f"{what or 'It'} did not come in {seconds} s.{_seen(condition, result)}"
            )
        time.sleep(0.05)
    return result


def _seen(condition: Callable[[], object], result: object) -> str:
    """A condition's source, its last value, and the variables that it reads."""
    lines = [f"last value: {result!r}"]
    try:
        lines.insert(0, textwrap.dedent(inspect.getsource(condition)).strip())
        variables = inspect.getclosurevars(condition).nonlocals
    except (OSError, TypeError, ValueError):
        lines.insert(0, repr(condition))
        variables = {}
    lines += [f"{name}: {str(value)[:WIDTH]}" for name, value in variables.items()]
    return "\n" + "\n".join(lines)
