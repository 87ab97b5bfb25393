from __future__ import annotations

import numpy as np
import pytest

from edgekit.agent.stats import interval, least_samples, percentile


def test_least_samples_reproduce_mlperfs_table() -> None:
    assert [least_samples(p) for p in (50, 90, 95, 99, 99.9)] == [11, 64, 130, 662, 6636]


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


def test_interval_is_the_same_for_the_same_samples() -> None:
    samples = np.random.default_rng(0).lognormal(size=300)
    assert interval(samples, 90) == interval(samples, 90)


def correlated(rng: np.random.Generator, n: int) -> np.ndarray:
    noise = rng.normal(size=n + 50)
    for i in range(1, n + 50):
        noise[i] += 0.6 * noise[i - 1]
    return np.exp(noise[50:] * np.sqrt(1 - 0.36))


@pytest.mark.parametrize(("percent", "quantile"), [(50, 0.0), (90, 1.2815516)])
@pytest.mark.parametrize("kind", ["independent", "correlated"])
def test_interval_covers_the_true_percentile(kind: str, percent: float, quantile: float) -> None:
    """95 % promised; correlated latencies may cost a little, but not what plain order statistics lose (to 75 %)."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        samples = rng.lognormal(size=400) if kind == "independent" else correlated(rng, 400)
        low, high = interval(samples, percent, draws=300)
        covered += low <= np.exp(quantile) <= high
    assert covered >= (188 if kind == "independent" else 178)
