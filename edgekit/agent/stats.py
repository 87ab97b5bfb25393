"""How many samples a percentile needs, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CONFIDENCE = 0.99

STEADY_SPREAD, STEADY_TREND = 0.05, 0.03
"""The most by which the medians of the four blocks of a steady run differ, and by which its halves do."""

BLOCKS, LEAST_A_BLOCK = 4, 2


def least_samples(percentile: float, above: int = 1, confidence: float = CONFIDENCE) -> int:
    """The least number of samples for a percentile, by MLPerf Inference's early-stopping rule.

    With `above` samples over the percentile's estimate, n = h + above where h is the smallest number with
    P[Binomial(h + above, 1 - p) <= above] <= 1 - confidence.

    >>> [least_samples(p) for p in (50, 90, 95, 99)]
    [11, 64, 130, 662]
    """
    tail = 1 - percentile / 100
    if not 0 < tail < 1:
        raise ValueError(f"percentile must be between 0 and 100, got {percentile}")
    low, high = above, above + 1
    while at_most(above, high, tail) > 1 - confidence:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at_most(above, middle, tail) <= 1 - confidence else (middle, high)
    return high


def highest_percentile(count: int) -> float | None:
    """The highest percentile, rounded down to a tenth, that `count` samples are enough for; None for no more than one.

    >>> [highest_percentile(n) for n in (1, 11, 64, 662)]
    [None, 53.0, 90.0, 99.0]
    """
    if count < 2:
        return None
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        enough = at_most(1, count, 1 - middle / 100) <= 1 - CONFIDENCE
        low, high = (middle, high) if enough else (low, middle)
    return math.floor(low * 10) / 10 or None


def steadiness(samples: Sequence[float]) -> dict[str, Any]:
    """Whether the device kept its pace: the medians of four consecutive blocks of the samples, held against each other.

    `spread` is the largest less the smallest of the four medians, `trend` the mean of the last two less that of the
    first two (above 0: it became slower), both as shares of the median of all. Medians of blocks leave single
    interruptions out: what is left is another clock, another load, or a warm-up that was too short. `steady` is None
    where there are too few samples for blocks.
    """
    values = np.asarray(samples, np.float64)
    result: dict[str, Any] = {"bounds": {"spread": STEADY_SPREAD, "trend": STEADY_TREND}}
    if len(values) < BLOCKS * LEAST_A_BLOCK:
        reason = f"{len(values)} samples, four blocks need {BLOCKS * LEAST_A_BLOCK}"
        return {"steady": None, "reason": reason, "block_medians_s": None, "spread": None, "trend": None, **result}
    medians = [float(np.median(block)) for block in np.array_split(values, BLOCKS)]
    whole = float(np.median(values))
    spread = (max(medians) - min(medians)) / whole
    trend = (medians[2] + medians[3] - medians[0] - medians[1]) / 2 / whole
    steady = spread <= STEADY_SPREAD and abs(trend) <= STEADY_TREND
    return {"steady": steady, "block_medians_s": medians, "spread": spread, "trend": trend, **result}


def at_most(k: int, n: int, p: float) -> float:
    """P[Binomial(n, p) <= k]."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(min(k, n) + 1)
    ]
    return math.fsum(math.exp(value) for value in logs)


def percentile(samples: Sequence[float] | np.ndarray[Any, Any], percent: float) -> float:
    """The nearest-rank percentile: a value that was really measured."""
    ordered = np.sort(np.asarray(samples, np.float64))
    return float(ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)])
