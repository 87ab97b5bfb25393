"""Intervals of percentiles of latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.agent.stats import at_most


def interval(
    samples: Sequence[float], percent: float, confidence: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """A two-sided interval for a percentile that needs no assumption about the distribution.

    The wider, at each end, of two: order statistics (exact for independent samples, by the binomial
    distribution) and a circular block bootstrap with blocks of about sqrt(n) samples (latencies that follow each
    other are alike, and independence would promise too much). The same samples give the same interval.
    """
    values = np.asarray(samples, np.float64)
    ordered, n, p = np.sort(values), len(values), percent / 100
    ranks = np.array([_rank(n, p, (1 - confidence) / 2), _rank(n, p, (1 + confidence) / 2)])
    low, high = ordered[np.clip([ranks[0] - 1, ranks[1]], 0, n - 1)]
    block = max(1, round(math.sqrt(n)))
    starts = np.random.default_rng(seed).integers(0, n, (draws, math.ceil(n / block)))
    drawn = values[(starts[:, :, None] + np.arange(block)).reshape(draws, -1)[:, :n] % n]
    index = max(0, math.ceil(n * p) - 1)
    spread: Any = np.quantile(
        np.partition(drawn, index, axis=1)[:, index], [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    return float(min(low, spread[0])), float(max(high, spread[1]))


def _rank(n: int, p: float, level: float) -> int:
    """The smallest k with P[Binomial(n, p) <= k] >= level."""
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at_most(middle, n, p) >= level else (middle, high)
    return high
