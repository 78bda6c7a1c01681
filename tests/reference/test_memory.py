"""The memory's trend and spikes, whether it leaks, and the heap that is measured."""

import csv
import gc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from server.heap import Heap
from server.memory import (
    CONNECTION_BYTES,
    KEPT,
    LEAST_MINUTES,
    MINUTE,
    MOST_MINUTES,
    STEP,
    Memory,
    Snapshot,
    slope,
)

MB = 1_048_576


def memory(heaps: Iterable[float | None], rss: float | None = MB, limit: float = 0.1) -> Memory:
    """A memory that has seen these heaps, in bytes, a step apart."""
    found = Memory(limit, "not here")
    for index, heap in enumerate(heaps):
        found.add(Snapshot(index * STEP, 1000 + index * STEP, rss, heap))
    return found


def growing(rate: float, count: int) -> list[float | None]:
    """Sizes that grow so many MB a second."""
    return [50 * MB + index * STEP * rate * MB for index in range(count)]


def test_trend() -> None:
    """Now, average, least, most and growth are those of the snapshots."""
    heap = memory([10 * MB, 12 * MB, 14 * MB]).status()["heap"]
    assert heap == {
        "bytes": 14 * MB,
        "average_bytes": 12 * MB,
        "min_bytes": 10 * MB,
        "max_bytes": 14 * MB,
        "growth_percent": 40.0,
        "spike_count": 0,
        "spikes": [],
    }


def test_growth_is_since_the_start() -> None:
    """The first snapshot is the base for good, also when it is not kept any more."""
    status = memory([10 * MB] + [20 * MB] * (KEPT + 50)).status()
    assert status["snapshots"] == KEPT
    assert status["heap"]["min_bytes"] == 20 * MB
    assert status["heap"]["growth_percent"] == 100.0


def test_a_spike_is_what_comes_and_goes() -> None:
    """It is more than half above the minute before, and one however many snapshots it lasts; what
    has grown and stays is none, and neither is what fills slowly.
    """
    usual: list[float | None] = [10 * MB] * 10
    heap = memory([*usual, 14.9 * MB, 10 * MB, 16 * MB, 20 * MB, 18 * MB, 10 * MB]).status()["heap"]
    assert heap["spike_count"] == 1
    (spike,) = heap["spikes"]
    assert spike == {
        "time": 1000 + 13 * STEP,
        "bytes": 20 * MB,
        "over_usual_bytes": 10 * MB,
    }
    assert memory([*usual, *[20 * MB] * 80]).status()["heap"]["spike_count"] == 1
    assert memory(growing(0.3, KEPT)).status()["heap"]["spike_count"] == 0


def test_spikes_are_bounded() -> None:
    """Of many spikes all are counted, and the last ten listed."""
    heap = memory([*[MB] * 20, *[2 * MB, MB, MB] * 20]).status()["heap"]
    assert heap["spike_count"] == 20
    assert [each["time"] for each in heap["spikes"]] == [1000 + n * STEP for n in range(50, 80, 3)]


# Snapshots in a minute.
PER_MINUTE = int(MINUTE / STEP)


def minutes(count: float) -> int:
    """The snapshots by which so many minutes are over, beside the first, which is not judged."""
    return int((1 + count) * PER_MINUTE) + 1


def test_a_leak_is_judged_by_six_minutes() -> None:
    """Before them there is no judgement; after them there is."""
    early = memory(growing(1, minutes(LEAST_MINUTES - 0.1))).leak()
    assert (early["state"], early["rate_mb_per_second"]) == ("insufficient data", None)
    assert (early["minutes"], early["minutes_needed"]) == (LEAST_MINUTES - 1, LEAST_MINUTES)
    leak = memory(growing(1, minutes(LEAST_MINUTES))).leak()
    assert (leak["state"], leak["rate_mb_per_second"]) == ("leak", 1.0)
    assert leak["recommendation"]


@pytest.mark.parametrize(("rate", "leaking"), [(0.099, False), (0.101, True), (-1, False)])
def test_the_limit_of_a_leak(rate: float, leaking: bool) -> None:
    """Growth is a leak just above 0.1 MB/s, and none just below."""
    leak = memory(growing(rate, minutes(8))).leak()
    assert leak["leaking"] is leaking
    assert leak["rate_mb_per_second"] == pytest.approx(rate, abs=1e-3)
    assert memory(growing(rate, minutes(8)), limit=2).leak()["leaking"] is False


def test_a_leak_is_of_the_last_minutes() -> None:
    """What has stopped growing leaks no more, soon after; what fills up was no leak."""
    grown = growing(1, minutes(8))
    assert memory(grown).leak()["leaking"]
    assert not memory([*grown, *[grown[-1]] * (5 * PER_MINUTE)]).leak()["leaking"]


def test_bursts_are_no_leak() -> None:
    """What is given back within a minute does not count, however often it comes and however much
    more it is each time.
    """
    sizes = [
        50 * MB + (index % PER_MINUTE > 3) * index * MB for index in range(minutes(MOST_MINUTES))
    ]
    leak = memory(sizes).leak()
    assert (leak["state"], leak["rate_mb_per_second"]) == ("no leak", 0.0)


@pytest.mark.parametrize("of", ["heap", "rss"])
def test_what_is_known_to_hold_memory_is_no_leak(of: str) -> None:
    """A history that fills, a backlog, and more connections explain as much as they take, and no
    more than that.
    """
    for leaked, state in ((0.0, "no leak"), (0.2, "leak")):
        found = Memory(0.1)
        for index in range(minutes(8)):
            held, connections = index * STEP * 0.3 * MB, 40 * index
            size = 50 * MB + held + connections * CONNECTION_BYTES + index * STEP * leaked * MB
            sizes = (size, None) if of == "rss" else (MB, size)
            found.add(Snapshot(index * STEP, 0, *sizes, connections, held))
        leak = found.leak()
        assert (leak["state"], leak["of"]) == (state, of)
        assert leak["rate_mb_per_second"] == pytest.approx(leaked, abs=1e-3)


def test_resident_memory_that_stays_after_a_crowd_is_no_leak() -> None:
    """Freed memory may stay resident: when the connections close, nothing has leaked."""
    found = Memory(0.1)
    for index in range(minutes(10)):
        crowd = 5000 if index < 5 * PER_MINUTE else 10
        found.add(Snapshot(index * STEP, 0, 300 * MB, None, crowd))
    assert found.leak()["leaking"] is False


# --- an hour of the real server ------------------------------------------------------------------

# 30 connections a second, a history that fills, and a burst each five minutes, recorded by
# benchmarks/churn.py on two shared cores.
CHURN = Path(__file__).parent / "data" / "churn.csv"


def replayed(of: str, leak: float = 0.0, since: float = 0.0) -> Iterator[tuple[float, Memory]]:
    """The memory after each snapshot of the recording, and when that was, in seconds. So many MB/s
    are added from a time on.
    """
    found = Memory(0.1)
    with CHURN.open(newline="") as file:
        for row in csv.DictReader(file):
            at, rss, heap, connections = (
                float(row[name]) for name in ("at", "rss", "heap", "connections")
            )
            held = sum(float(row[name]) for name in ("history", "queued", "transport"))
            added = max(0.0, at - since) * leak * MB
            sizes = (rss + added, None if of == "rss" else heap + added)
            found.add(Snapshot(at, at, *sizes, connections, held))
            yield at, found


@pytest.mark.parametrize("of", ["heap", "rss"])
def test_an_hour_of_churn_is_no_leak(of: str) -> None:
    """There is no false alarm, from the first minute on: by the heap, and by resident memory where
    there is nothing else.
    """
    last = 0.0
    judged = 0
    for at, found in replayed(of):
        leak = found.leak()
        assert not leak["leaking"], (at, leak)
        judged += leak["state"] == "no leak"
        last = at
    assert last > 3500
    assert judged > 900


@pytest.mark.parametrize("of", ["heap", "rss"])
@pytest.mark.parametrize("since", [0.0, 1500.0])
def test_a_leak_in_the_churn_is_found(of: str, since: float) -> None:
    """0.2 MB/s more, from the start or later, is found within a quarter of an hour, and is not lost
    again.
    """
    found_at = 0.0
    for at, found in replayed(of, 0.2, since):
        if found.leak()["leaking"]:
            found_at = found_at or at
        elif at > since + 15 * MINUTE:
            raise AssertionError((at, found.leak()))
    assert since < found_at <= since + 15 * MINUTE


def test_bursts_in_the_churn_are_few_spikes() -> None:
    """A busy server's memory has no spike for each snapshot."""
    worst = max(found.status()["heap"]["spike_count"] for _, found in replayed("heap"))
    assert worst <= 2


def test_without_rss() -> None:
    """Where no resident memory is recorded it names what to install."""
    rss = memory([MB], rss=None).status()["rss"]
    assert rss["bytes"] is None
    assert "opentelemetry-instrumentation-system-metrics" in rss["why"]


def test_a_snapshot_too_soon_is_not_kept() -> None:
    """Readings come each second: what is kept is a step apart, what is shown is the newest."""
    found = Memory()
    kept = [found.add(Snapshot(at, at, MB, (at + 1) * MB)) for at in range(7)]
    assert kept == [True, False, False, True, False, False, True]
    assert found.status()["heap"]["bytes"] == 7 * MB


def test_slope() -> None:
    """It is that of the line of least squares."""
    assert slope([(0, 0), (1, 2), (2, 4)]) == 2
    assert slope([(0, 1), (1, 0), (2, 5)]) == 2
    assert slope([(1, 1), (1, 2)]) == 0


@pytest.mark.parametrize("piece", [100, 100_000], ids=["small", "large"])
def test_the_heap_is_what_is_in_use(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of both allocators are in it, and out of it when they are freed."""
    monkeypatch.setattr("server.heap._SHARE", 1e9)
    heap = Heap()
    if not heap.readable:
        pytest.skip("the allocators keep no books here")
    gc.collect()
    before = heap.used()
    held = [bytearray(piece) for _ in range(20 * MB // piece)]
    during = heap.used()
    del held
    gc.collect()
    after = heap.used()
    assert 19 * MB < during - before < 60 * MB
    assert after - before < 5 * MB


def test_the_heap_is_part_of_what_the_allocators_hold() -> None:
    """What they have of the system is no less than what is in use, and no more than all memory."""
    heap = Heap()
    if not heap.readable:
        pytest.skip("the allocators keep no books here")
    assert heap.used() <= heap.total() < 50 * heap.used()


def test_the_heap_is_read_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings take no more than their share of the time: until then the last one holds."""
    monkeypatch.setattr("server.heap._SHARE", 1e-6)
    heap = Heap()
    if not heap.readable:
        pytest.skip("the allocators keep no books here")
    before = heap.used()
    held = bytearray(50 * MB)
    assert heap.used() == before
    monkeypatch.setattr("server.heap._SHARE", 1e9)
    fresh = Heap()
    assert fresh.used() > before + 49 * MB
    del held
