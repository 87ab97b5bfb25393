"""Intervals of percentiles: repeatable, and as wide as they promise."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from edgekit.percentiles import binomial, interval


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


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (7, 0.9), (400, 0.99)])
def test_the_binomial_distribution_is_exact(n: int, p: float) -> None:
    exact = np.cumsum([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
    assert binomial(n, p) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("percent", [50, 90, 99])
@pytest.mark.parametrize("n", [5, 130, 1001])
def test_the_bootstrap_is_that_of_resamples_put_together(n: int, percent: int) -> None:
    samples = correlated(np.random.default_rng(n), n)
    block, rank = max(1, round(math.sqrt(n))), max(1, math.ceil(n * percent / 100))
    starts = np.random.default_rng(0).integers(0, n, (500, math.ceil(n / block)))
    drawn = samples[(starts[:, :, None] + np.arange(block)).reshape(500, -1)[:, :n] % n]
    wanted = np.quantile(np.sort(drawn)[:, rank - 1], [0.025, 0.975], method="inverted_cdf")
    low, high = interval(samples, percent, draws=500)
    ranks = np.searchsorted(binomial(n, percent / 100), [0.025, 0.975])
    exact = np.sort(samples)[np.clip([ranks[0] - 1, ranks[1]], 0, n - 1)]
    assert (low, high) == (min(exact[0], wanted[0]), max(exact[1], wanted[1]))


def test_a_third_of_a_million_samples_take_little_memory() -> None:
    """A model of a few microseconds gives so many within seconds; their resamples would fill gigabytes."""
    samples = np.random.default_rng(0).lognormal(size=350_000)
    tracemalloc.start()
    low, high = interval(samples, 99)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low < np.quantile(samples, 0.99) < high and peak < 100e6
