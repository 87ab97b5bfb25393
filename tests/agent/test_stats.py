from __future__ import annotations

import numpy as np
import pytest

from edgekit.agent.stats import highest_percentile, least_samples, percentile, steadiness


def test_least_samples_reproduce_mlperfs_table() -> None:
    assert [least_samples(p) for p in (50, 90, 95, 99, 99.9)] == [11, 64, 130, 662, 6636]


@pytest.mark.parametrize(
    ("queries", "discarded", "percent"),
    [(2048, 172, 90), (2116, 178, 90), (2145, 181, 90), (7469, 685, 90), (2091550, 20579, 99)],
)
def test_least_samples_discard_what_loadgen_discards(queries: int, discarded: int, percent: float) -> None:
    """From published logs of MLPerf's LoadGen: "Processed at least .. queries (n). Would discard d highest latency
    queries". By the rules (appendix "Early Stopping Criterion"), d + 1 is the largest `above` that n samples allow.
    """
    assert least_samples(percent, discarded + 1) <= queries < least_samples(percent, discarded + 2)


def test_least_samples_without_any_above_are_those_of_loadgens_server_scenario() -> None:
    """Its logs: 21 queries processed, "would need to run at least 438 more"; 300 and 159 more: 459 for p99."""
    assert least_samples(99, above=0) == 21 + 438 == 300 + 159
    assert least_samples(90, above=0) == 44


@pytest.mark.parametrize("percent", [50, 90, 95, 99, 99.9])
def test_highest_percentile_is_the_other_way_round(percent: float) -> None:
    enough = least_samples(percent)
    assert (highest_percentile(enough) or 0) >= percent > (highest_percentile(enough - 1) or 0)


def test_a_single_sample_allows_no_percentile() -> None:
    assert highest_percentile(0) is highest_percentile(1) is None


def noisy(level: np.ndarray) -> list[float]:
    """Latencies about these levels, with an interruption now and then."""
    rng = np.random.default_rng(5)
    spikes = np.where(rng.random(len(level)) < 0.02, 10.0, 1.0)
    return [float(value) for value in level * rng.lognormal(sigma=0.02, size=len(level)) * spikes]


def test_a_device_that_keeps_its_pace_is_steady() -> None:
    seen = steadiness(noisy(np.full(400, 2e-3)))
    assert seen["steady"] is True and seen["spread"] < 0.02 and abs(seen["trend"]) < 0.01
    assert seen["block_medians_s"] == pytest.approx([2e-3] * 4, rel=0.01)


@pytest.mark.parametrize(
    ("level", "trend"),
    [
        (np.linspace(1.0, 1.1, 400), 0.048),  # it becomes hot
        (np.repeat([1.1, 1.0, 1.0, 1.0], 100), -0.05),  # the warm-up was too short
        (np.repeat([1.0, 1.08, 1.0, 1.0], 100), -0.04),  # another load, for a while
        (np.repeat([1.0, 1.08, 1.0, 1.08], 100), 0.0),  # two clocks
    ],
)
def test_a_device_that_changes_is_not(level: np.ndarray, trend: float) -> None:
    seen = steadiness(noisy(level))
    assert seen["steady"] is False and seen["spread"] > 0.05
    assert seen["trend"] == pytest.approx(trend, abs=0.012)


def test_too_few_samples_make_no_blocks() -> None:
    seen = steadiness([1.0] * 7)
    assert seen["steady"] is None and seen["reason"] == "7 samples, four blocks need 8"


@pytest.mark.parametrize(("percent", "above"), [(90, 2), (90, 5), (99, 3)])
def test_least_samples_are_the_least(percent: float, above: int) -> None:
    def chance(n: int) -> float:
        drawn = np.arange(above + 1)
        from math import comb

        p = 1 - percent / 100
        return float(sum(comb(n, int(k)) * p**k * (1 - p) ** (n - k) for k in drawn))

    n = least_samples(percent, above)
    assert chance(n) <= 0.01 < chance(n - 1)


def test_least_samples_refuse_what_is_no_percentile() -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        least_samples(100)


def test_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([5, 1, 4, 2, 3], 50) == 3
    assert percentile(range(1, 101), 90) == 90
    assert percentile([7.0], 99) == 7.0
