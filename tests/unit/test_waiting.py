"""The helper by which tests wait: it fails as soon as it can know, and shows what it saw."""

import asyncio
import signal
import subprocess
import sys
import time

import pytest
from helpers.waiting import PATIENCE, until, wait_until


async def test_a_task_that_has_ended_is_not_waited_for() -> None:
    """The condition cannot come true any more: the wait fails long before its time is over."""
    found: list[str] = ["only this"]

    async def work() -> None:
        raise LookupError("broken")

    task = asyncio.ensure_future(work())
    began = time.monotonic()
    with pytest.raises(AssertionError, match="has ended without it") as failure:
        await until(lambda: len(found) == 2, running=task)
    assert time.monotonic() - began < PATIENCE / 2
    assert "LookupError('broken')" in str(failure.value)
    assert "len(found) == 2" in str(failure.value)
    assert "found: ['only this']" in str(failure.value)
    # Else asyncio logs it when the task is collected, in whatever test then runs.
    assert isinstance(task.exception(), LookupError)


async def test_what_the_last_step_of_a_task_makes_true_has_come() -> None:
    """A task that ends with the condition true has done its work."""
    found: list[int] = []

    async def work() -> None:
        found.append(1)

    task = asyncio.ensure_future(work())
    assert await until(lambda: found, running=task) == [1]
    await task


def test_a_time_out_shows_what_was_waited_for() -> None:
    """Its name, the condition and the last value."""
    with pytest.raises(AssertionError, match=r"the answer did not come in 0\.01 s") as failure:
        wait_until(lambda: [], 0.01, "the answer")
    assert "last value: []" in str(failure.value)


def test_processes_that_tests_start_do_not_ignore_an_interrupt() -> None:
    """Also where the tests themselves were started so, as a shell starts what it runs in its
    background.
    """
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "True\n"
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
