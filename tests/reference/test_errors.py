"""Errors: class, pattern, and the recovery that is carried out."""

import asyncio
from typing import Any

import pytest
import redis.exceptions
from helpers.backend import Backend
from reference.served import count
from server.broker import Unavailable
from server.errors import (
    Breaker,
    Errors,
    Grown,
    Patterns,
    backoff,
    classify,
    refused,
    within,
)
from server.limits import MemoryExhausted, Refused
from server.meters import Meters


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _errors(backend: Backend, clock: Clock) -> Errors:
    return Errors(Meters(backend.meter_provider), clock)


def _wrapped() -> Exception:
    """As redis-py raises it."""
    error = redis.exceptions.ConnectionError("Error connecting")
    error.__context__ = OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1)")
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(), "connection_refused"),
        (ConnectionResetError(), "connection_refused"),
        (_wrapped(), "connection_refused"),
        (redis.exceptions.BusyLoadingError(), "connection_refused"),
        (asyncio.TimeoutError(), "timeout"),
        (TimeoutError(), "timeout"),
        (redis.exceptions.TimeoutError(), "timeout"),
        (Refused("connections"), "rate_limit"),
        (redis.exceptions.ConnectionError("max number of clients reached"), "rate_limit"),
        (MemoryError(), "memory_exhausted"),
        (MemoryExhausted("9 of 8 MiB"), "memory_exhausted"),
        (redis.exceptions.OutOfMemoryError("command not allowed"), "memory_exhausted"),
        (redis.exceptions.ResponseError("OOM command not allowed"), "memory_exhausted"),
        (redis.exceptions.ResponseError("WRONGTYPE OOM"), "unknown"),
        (LookupError("?"), "unknown"),
    ],
)
def test_class(error: Exception, kind: str) -> None:
    """Python's errors and redis-py's of the same names are of one class, by their causes too."""
    assert classify(error) == kind


def test_only_what_was_not_accepted_is_refused() -> None:
    """A lost connection may have done its work; a refused one has not."""
    assert refused(_wrapped())
    assert refused(ConnectionRefusedError())
    assert not refused(ConnectionResetError())
    assert not refused(asyncio.TimeoutError())


def test_pattern() -> None:
    """More than 5 within a minute are frequent, more than 10 repeated; the minute slides, and
    classes are counted apart.
    """
    clock = Clock()
    patterns = Patterns(clock)
    found = []
    for _ in range(11):
        found.append(patterns.note("timeout"))
        clock.now += 1
    assert found == ["occasional"] * 5 + ["frequent"] * 5 + ["repeated"]
    assert patterns.note("unknown") == "occasional"
    # 1003 and later are within the minute of 1062.
    clock.now = 1062
    assert patterns.note("timeout") == "frequent"
    clock.now = 1200
    assert patterns.note("timeout") == "occasional"


def test_breaker() -> None:
    """Open it lets nothing through; half-open one, and the next only after another wait; closed
    all.
    """
    clock = Clock()
    breaker = Breaker(clock)
    assert breaker.wait() == 0
    breaker.open()
    assert breaker.wait() == Breaker.SECONDS
    clock.now += Breaker.SECONDS
    assert breaker.wait() == 0
    assert breaker.wait() == Breaker.SECONDS
    assert breaker.close()
    assert breaker.wait() == breaker.wait() == 0
    assert not breaker.close()


def test_what_grows_shrinks_again() -> None:
    """It is multiplied at once, up to a limit, and comes back in steps."""
    clock = Clock()
    grown = Grown(1.0, 1.5, 3.0, clock)
    grown.grow()
    assert grown.seconds == 1.5
    grown.grow()
    grown.grow()
    assert grown.seconds == 3.0
    clock.now += Grown.CALM
    assert grown.seconds == 2.0
    clock.now += 100_000
    assert grown.seconds == 1.0


def test_backoff_grows_and_is_bounded() -> None:
    """Each wait doubles up to the limit, and is by chance up to half less."""
    for number, most in enumerate((0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0)):
        waits = {backoff(number) for _ in range(20)}
        assert len(waits) > 1
        assert all(most / 2 <= wait <= most for wait in waits)
    assert backoff(10_000) <= 2.0


@pytest.mark.parametrize(
    ("error", "kind", "action"),
    [
        (ConnectionRefusedError(), "connection_refused", "given_up"),
        (TimeoutError(), "timeout", "longer_timeout"),
        (Refused("connections"), "rate_limit", "rate_cut"),
        (MemoryError(), "memory_exhausted", "emergency_cleanup"),
        (redis.exceptions.OutOfMemoryError("full"), "memory_exhausted", "history_halved"),
        (LookupError("?"), "unknown", "log_and_go_on"),
    ],
)
def test_each_class_has_its_recovery(
    backend: Backend, error: Exception, kind: str, action: str
) -> None:
    """The recovery is carried out, not only named; error and recovery are counted."""
    cleaned: list[int] = []
    errors = _errors(backend, Clock())
    errors.cleanup = lambda: cleaned.append(1)
    assert errors.handle(error, "test") == action
    assert (errors.time_out.seconds == 3.0) == (kind == "timeout")
    assert (errors.retry_after.seconds == 1.25) == (kind == "rate_limit")
    # Redis's memory is not this process's: nothing here is dropped for it.
    assert bool(cleaned) == (action == "emergency_cleanup")
    labels = {"class": kind, "pattern": "occasional"}
    assert count(backend, "server.errors", **labels) == count(backend, "server.errors") == 1
    assert count(backend, "server.recoveries", action=action) == 1


def test_repeated_refusals_open_the_circuit(backend: Backend) -> None:
    """The eleventh within a minute does, and a success closes it."""
    errors = _errors(backend, Clock())
    actions = [errors.handle(ConnectionRefusedError(), "test") for _ in range(11)]
    assert actions == ["given_up"] * 10 + ["circuit_open"]
    assert errors.breaker.wait() > 0
    errors.succeeded()
    assert errors.breaker.wait() == 0
    assert count(backend, "server.recoveries", action="circuit_closed") == 1


async def _attempt(errors: Errors, *outcomes: Any) -> tuple[Any, int]:
    """What an operation gives that has these outcomes in turn, and how many were used."""
    left = list(outcomes)

    async def operation() -> Any:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    try:
        result = await errors.attempt(operation, "test")
    except Unavailable as error:
        result = error
    return result, len(outcomes) - len(left)


async def test_a_retry_is_reported_where_there_is_one(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three refused tries two are tried again; a lost connection is not, and the log has it."""
    no = ConnectionRefusedError("no")
    await _attempt(_errors(backend, Clock()), no, no, no)
    assert count(backend, "server.recoveries", action="retry") == 2
    assert count(backend, "server.recoveries", action="given_up") == 1
    caplog.clear()
    await _attempt(_errors(backend, Clock()), ConnectionResetError("cut"))
    assert count(backend, "server.recoveries", action="retry") == 2
    assert "retry" not in caplog.text
    assert "given_up" in caplog.text


async def test_a_refused_attempt_is_made_again(backend: Backend) -> None:
    """What was refused is tried three times; then it is unavailable, with the class."""
    no = ConnectionRefusedError("no")
    assert await _attempt(_errors(backend, Clock()), no, no, 7) == (7, 3)
    failed, tries = await _attempt(_errors(backend, Clock()), no, no, no, 7)
    assert (str(failed), tries) == ("test: connection_refused", 3)


@pytest.mark.parametrize("error", [ConnectionResetError(), asyncio.TimeoutError(), LookupError()])
async def test_what_may_have_been_done_is_not_done_again(
    backend: Backend, error: Exception
) -> None:
    """A message whose fate is unknown is not published twice."""
    failed, tries = await _attempt(_errors(backend, Clock()), error, 7)
    assert isinstance(failed, Unavailable)
    assert tries == 1


async def test_an_open_circuit_is_not_tried(backend: Backend) -> None:
    """While it is open nothing is tried, and the error has the time left; one try closes it."""
    clock = Clock()
    errors = _errors(backend, clock)
    errors.breaker.open()
    failed, tries = await _attempt(errors, 7)
    assert (failed.retry_after, tries) == (Breaker.SECONDS, 0)
    clock.now += Breaker.SECONDS
    assert await _attempt(errors, 7) == (7, 1)
    assert await _attempt(errors, 8) == (8, 1)


async def test_a_cancel_is_never_forgotten() -> None:
    """Also where the work ends in the same turn of the loop, well or badly."""
    for ends in (lambda future: future.set_result(1), lambda f: f.set_exception(OSError())):
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def work(future: asyncio.Future[int] = future) -> int:
            return await future

        waiting = asyncio.create_task(within(60, work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ends(future)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()


async def test_an_attempt_that_hangs_is_given_up(backend: Backend) -> None:
    """It ends after the time-out, which is longer the next time."""
    errors = Errors(Meters(backend.meter_provider))
    errors.time_out = Grown(0.01, 1.5, 10.0)
    with pytest.raises(Unavailable):
        await errors.attempt(asyncio.Event().wait, "test")
    assert errors.time_out.seconds == pytest.approx(0.015)


def test_the_log_is_bounded(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """An error of any class that comes again and again is logged ten times a minute at most."""
    clock = Clock()
    errors = _errors(backend, clock)
    for error in (LookupError("?"), TimeoutError("late")):
        caplog.clear()
        for _ in range(500):
            errors.handle(error, "test")
        assert 1 <= len(caplog.records) <= 10
    clock.now += 100
    errors.handle(LookupError("?"), "test")
    assert len(caplog.records) == 11
