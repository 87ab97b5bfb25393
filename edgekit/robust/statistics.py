"""The mean accuracy over several changed forms of the same samples, and its paired difference. numpy only.

A sample stands in every form, so its answers hang together. Each sample counts once, by the share of its forms that
are right: these shares are independent, whatever the forms have in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError
from edgekit.metrics import CONFIDENCE, Difference, z
from edgekit.report.predictions import Predictions
from edgekit.report.values import Interval

Floats = npt.NDArray[np.float64]


def mean_accuracy(conditions: Sequence[Predictions], confidence: float = CONFIDENCE) -> Interval:
    """The average accuracy over changed forms of the same samples, with its interval; `n` counts samples.

    The interval is Agresti and Coull's (Am. Stat. 52, 1998) with the variance of the samples' shares: `z^2 / 2` right
    and as many wrong pseudo-samples keep it from zero width where every answer is right.

    Raises:
        UsageError: there is no condition, or they are not of the same samples.
    """
    shares = _shares(conditions)
    q, n = z(confidence) ** 2, len(shares)
    wide = n + q
    centre = (float(shares.sum()) + q / 2) / wide
    variance = (float(np.sum(shares**2)) + q / 2) / wide - centre**2
    half = z(confidence) * math.sqrt(max(0.0, variance) / wide)
    value = float(shares.mean())
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(value=value, low=min(value, low), high=max(value, high), n=n)


def paired_mean(a: Sequence[Predictions], b: Sequence[Predictions], confidence: float = CONFIDENCE) -> Difference:
    """Mean accuracy of `a` minus that of `b`, form by form on the same samples; `n` counts samples.

    The interval is Agresti and Min's adjusted one for matched pairs (Stat. Med. 24, 2005: half an observation more in
    each cell) with the variance of the samples' mean differences.

    Raises:
        UsageError: the two were not given the same forms of the same samples.
    """
    if len(a) != len(b) or not all(mine.same_samples(theirs) for mine, theirs in zip(a, b, strict=True)):
        raise UsageError("A paired difference needs two predictions of the same labelled samples in every condition.")
    gaps = _shares(a) - _shares(b)
    wide = len(gaps) + 2
    centre = float(gaps.sum()) / wide
    variance = (float(np.sum(gaps**2)) + 1) / wide - centre**2
    half = z(confidence) * math.sqrt(max(0.0, variance) / wide)
    value = float(gaps.mean())
    return Difference(value, min(value, max(-1.0, centre - half)), max(value, min(1.0, centre + half)), len(gaps))


def _shares(conditions: Sequence[Predictions]) -> Floats:
    """The share of the conditions in which each sample is right, `[N]`."""
    if not conditions:
        raise UsageError("A mean over conditions needs at least one.")
    if any(c.ids != conditions[0].ids for c in conditions):
        raise UsageError("A mean over conditions needs the same samples in each.")
    shares: Floats = np.mean([c.correct() for c in conditions], axis=0, dtype=np.float64)
    return shares
