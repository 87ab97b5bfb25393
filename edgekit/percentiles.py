"""Intervals of percentiles of latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def interval(
    samples: Sequence[float] | Floats, percent: float, confidence: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """A two-sided interval for a percentile that needs no assumption about the distribution.

    The wider, at each end, of two: order statistics (exact for independent samples, by the binomial
    distribution) and a circular block bootstrap with blocks of about sqrt(n) samples (latencies that follow each
    other are alike, and independence would promise too much). The same samples give the same interval.
    """
    values = np.asarray(samples, np.float64)
    ordered, n, levels = np.sort(values), len(values), ((1 - confidence) / 2, (1 + confidence) / 2)
    ranks = np.searchsorted(binomial(n, percent / 100), levels)
    low, high = ordered[np.clip([ranks[0] - 1, ranks[1]], 0, n - 1)]
    least, most = _bootstrapped(values, ordered, max(1, math.ceil(n * percent / 100)), levels, draws, seed)
    return float(min(low, least)), float(max(high, most))


def rate(
    samples: Sequence[float] | Floats, confidence: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Inferences a second where one follows the other, with a circular block bootstrap's two-sided interval."""
    values = np.asarray(samples, np.float64)
    n = len(values)
    starts, ends = _blocks(n, draws, seed)
    running = np.concatenate([[0.0], np.cumsum(np.resize(values, 2 * n))])
    rates = n / (running[ends] - running[starts]).sum(axis=1)
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = n / float(values.sum())
    return value, min(value, float(low)), max(value, float(high))


def binomial(n: int, p: float) -> Floats:
    """P[Binomial(n, p) <= k] for k from 0 to n; `0 < p < 1`."""
    k = np.arange(1, n + 1)
    ratios = np.log(n - k + 1) - np.log(k) + math.log(p) - math.log1p(-p)  # of one probability to the one before
    logs = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(ratios)])
    return np.cumsum(np.exp(logs))


def _bootstrapped(
    values: Floats, ordered: Floats, rank: int, levels: Sequence[float], draws: int, seed: int
) -> list[float]:
    """The quantiles at `levels` of the `rank`th smallest value over resamples of whole blocks.

    No resample is put together: a share of them at least is at most `t` there where as many hold `rank` values or
    more that are at most `t`, and those are counted block by block from one running sum.
    """
    n = len(values)
    starts, ends = _blocks(n, draws, seed)

    def share(t: float) -> float:
        running = np.concatenate([[0], np.cumsum(np.resize(values <= t, 2 * n))])
        return float(np.mean((running[ends] - running[starts]).sum(axis=1) >= rank))

    found = []
    for level in levels:
        low, high = -1, n - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if share(ordered[middle]) >= level else (middle, high)
        found.append(float(ordered[high]))
    return found


def _blocks(n: int, draws: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the blocks of about sqrt(n) samples of every resample start and end, on a circle; all hold n samples."""
    block = max(1, round(math.sqrt(n)))
    starts = np.random.default_rng(seed).integers(0, n, (draws, math.ceil(n / block)))
    ends = starts + block
    ends[:, -1] -= starts.shape[1] * block - n
    return starts, ends
