"""The memory's trend, spikes and leak verdict, and the heap that is measured."""

import gc
from collections.abc import Iterable

import pytest
from server.heap import Heap
from server.memory import KEPT, STEP, Memory, Snapshot, slope

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


def test_spikes() -> None:
    """A spike is more than half above the least before it, with its time and how much it is."""
    heap = memory([10 * MB, 15 * MB, 15.1 * MB, 8 * MB, 12.1 * MB]).status()["heap"]
    assert heap["spike_count"] == 2
    first, second = heap["spikes"]
    assert (first["time"], first["over_min_bytes"]) == (1000 + 2 * STEP, round(5.1 * MB))
    assert (second["time"], second["bytes"]) == (1000 + 4 * STEP, round(12.1 * MB))


def test_spikes_are_bounded() -> None:
    """Of many spikes all are counted, and the last ten told."""
    heap = memory([MB] + [2 * MB] * 60).status()["heap"]
    assert heap["spike_count"] == 60
    assert [each["time"] for each in heap["spikes"]] == [1000 + n * STEP for n in range(51, 61)]


def test_a_leak_is_judged_by_ten() -> None:
    """Nine snapshots are not enough for a verdict; ten are."""
    nine = memory(growing(1, 9)).leak()
    assert (nine["verdict"], nine["rate_mb_per_second"]) == ("insufficient data", None)
    ten = memory(growing(1, 10)).leak()
    assert (ten["verdict"], ten["rate_mb_per_second"]) == ("leak", 1.0)
    assert ten["recommendation"]


@pytest.mark.parametrize(("rate", "leaking"), [(0.099, False), (0.101, True), (-1, False)])
def test_the_limit_of_a_leak(rate: float, leaking: bool) -> None:
    """Growth is a leak just above 0.1 MB/s, and none just below."""
    leak = memory(growing(rate, 10)).leak()
    assert leak["leaking"] is leaking
    assert leak["rate_mb_per_second"] == pytest.approx(rate, abs=1e-4)
    assert memory(growing(rate, 10), limit=2).leak()["leaking"] is False


def test_a_leak_is_of_the_last() -> None:
    """What has stopped growing leaks no more."""
    assert memory(growing(1, 30)).leak()["leaking"]
    assert not memory([*growing(1, 30), *[140 * MB] * 10]).leak()["leaking"]


@pytest.mark.parametrize(("connections", "verdict"), [(1.04, "leak"), (1.06, "more connections")])
def test_growth_with_the_connections(connections: float, verdict: str) -> None:
    """Memory that grows while connections are added is no leak; it is while they are the same."""
    found = Memory(0.1)
    for index, heap in enumerate(growing(1, 10)):
        open_now = 1000 * (connections if index == 9 else 1)
        found.add(Snapshot(index * STEP, 0, MB, heap, open_now))
    leak = found.leak()
    assert (leak["verdict"], leak["leaking"]) == (verdict, verdict == "leak")
    assert leak["rate_mb_per_second"] == 1.0


def test_without_heap() -> None:
    """Where no heap is told it says why, and the leak is judged by the resident memory."""
    found = Memory(0.1, "not here")
    for index, size in enumerate(growing(1, 10)):
        found.add(Snapshot(index * STEP, 0, size, None))
    status = found.status()
    assert status["heap"] == {"bytes": None, "why": "not here"}
    assert (status["leak"]["of"], status["leak"]["leaking"]) == ("rss", True)


def test_without_rss() -> None:
    """Where no resident memory is told it says what to install."""
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


def test_the_heap_is_read_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings take no more than their share of the time: until then the last one is told."""
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
