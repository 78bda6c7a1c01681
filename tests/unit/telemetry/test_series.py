"""The histograms' sampler: exact up to 100 a second, an even sample above."""

import itertools

import pytest

from otel_sse.telemetry.series import MetricSeries


def run(times: list[float]) -> list[int]:
    """The numbers of the messages that a series records, by the rule that connections follow."""
    series, recorded = MetricSeries({}), []
    for number, now in enumerate(times):
        if series.skip(now):
            pass
        else:
            series.record_sample(now)
            recorded.append(number)
    return recorded


@pytest.mark.parametrize("rate", [0.1, 1, 50, 100])
def test_every_message_is_recorded_up_to_a_hundred_a_second(rate: float) -> None:
    """At 100 messages a second and below, the histograms are exact."""
    times = [1000 + number / rate for number in range(1000)]
    assert run(times) == list(range(1000))


@pytest.mark.parametrize("rate", [250, 1_000, 20_000, 100_000])
def test_above_that_about_a_hundred_a_second_are_taken_evenly(rate: int) -> None:
    """A busy series takes 50 to 110 records in every later second, evenly over its messages."""
    recorded = run([1000 + number / rate for number in range(rate * 5)])
    for second in range(1, 5):
        inside = [n for n in recorded if second * rate <= n < (second + 1) * rate]
        assert 50 <= len(inside) <= 110
        steps = sorted(b - a for a, b in itertools.pairwise(inside))
        # But for the one where a window of the sampler ends, all steps are alike.
        assert steps[-1] - steps[1] <= 1


def test_a_series_that_calms_down_is_exact_again_within_two_seconds() -> None:
    """A burst leaves no stride behind: a message a second later is recorded each time."""
    burst = [1000 + number / 50_000 for number in range(100_000)]
    calm = [1004.0 + number for number in range(50)]
    recorded = run(burst + calm)
    assert [n for n in recorded if n >= 100_000] == list(range(100_000, 100_050))


def test_a_full_second_now_and_then_stays_exact() -> None:
    """A burst of a hundred once every few seconds is recorded whole."""
    times = [1000 + 5 * burst + n / 10_000 for burst in range(10) for n in range(100)]
    assert run(times) == list(range(1000))
