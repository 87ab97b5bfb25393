"""Interleaved A/B rounds on one device: a ratio with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from edgekit.agent.stats import least_samples, percentile
from edgekit.bundle import Bundle
from edgekit.devices import Device

Round = tuple[float, float, float, float]
"""Block medians in seconds, in the order in which they were taken: a, b, b, a."""

LOOKS = (10, 20, 40)
"""Rounds after which `compare` looks at the interval and may stop."""


@dataclass(frozen=True)
class Comparison:
    """The time of `a` divided by that of `b`, with its 95 % interval `[low, high]`; below 1 `a` is faster."""

    ratio: float
    low: float
    high: float
    rounds: tuple[Round, ...]
    info: tuple[Any, ...] = field(default=(), repr=False)
    confidence: float = 0.95
    """What the interval was computed at, so that it holds with 95 % after every look."""


def paired_ratio(rounds: Sequence[Round], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """The ratio of `a`'s time to `b`'s (below 1: `a` is faster) with a two-sided interval.

    A round a, b, b, a gives one log-ratio, (log a1 + log a2 - log b1 - log b2) / 2, in which any drift that is
    linear over the round cancels. Medians of blocks leave stray interruptions out, and a round stands between
    itself and the next, so that the log-ratios are close to independent and to normal: the interval is Student's t on
    their mean. At 10 rounds it is wider, and covers better, than percentiles of a bootstrap, which know no more than
    the ten values that were drawn.

    >>> ratio, low, high = paired_ratio([(1.0, 2.0, 2.0, 1.0), (1.1, 2.0, 2.0, 1.1), (0.9, 2.0, 2.0, 0.9)])
    >>> low < ratio < high and 0.49 < ratio < 0.51
    True
    """
    if len(rounds) < 2:
        raise ValueError(f"an interval needs at least 2 rounds, got {len(rounds)}")
    logs = [(math.log(a1) + math.log(a2) - math.log(b1) - math.log(b2)) / 2 for a1, b1, b2, a2 in rounds]
    middle = fmean(logs)
    reach = t_quantile((1 + confidence) / 2, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)


def compare(
    device: Device,
    a: Bundle,
    b: Bundle,
    *,
    threads: int = 1,
    rounds: Sequence[int] = LOOKS,
    limits: Sequence[float] = (1.0,),
    inputs: Path | None = None,
) -> Comparison:
    """`a` against `b` on `device`, in ever more rounds until the interval leaves out every one of `limits`.

    `rounds` are the totals after which to look. Each look shares the 5 % of error with the others (Bonferroni), so
    the interval that is reported holds with 95 % however often one looked. Every look adds fresh processes: where
    memory happened to be laid out is part of what varies.
    """
    taken: list[Round] = []
    infos: list[Any] = []
    confidence = 1 - 0.05 / len(rounds)
    for total in rounds:
        pairs = device.pairs(a, b, rounds=total - len(taken), threads=threads, inputs=inputs)
        taken += pairs.rounds
        infos.append(pairs.info)
        ratio, low, high = paired_ratio(taken, confidence=confidence)
        if all(high < limit or low > limit for limit in limits):
            break
    return Comparison(ratio, low, high, tuple(taken), tuple(infos), confidence)


def at_percentile(seen: Comparison, percent: float) -> Comparison | None:
    """The same rounds compared at another percentile of their blocks, such as 90.

    None where a block holds fewer samples than the percentile needs, or the device kept no samples (`samples_s` in
    the info of its pairs: one entry a round, with the latencies of its four blocks).
    """
    taken: list[Round] = []
    for info in seen.info:
        for a1, b1, b2, a2 in info.get("samples_s", ()):
            if min(map(len, (a1, b1, b2, a2))) < least_samples(percent):
                return None
            taken.append((percentile(a1, percent), percentile(b1, percent), percentile(b2, percent),
                          percentile(a2, percent)))  # fmt: skip
    if len(taken) < 2:
        return None
    ratio, low, high = paired_ratio(taken, confidence=seen.confidence)
    return Comparison(ratio, low, high, tuple(taken), confidence=seen.confidence)


def t_quantile(level: float, freedom: int) -> float:
    """The quantile of Student's t distribution, by bisection on its exact distribution function.

    >>> round(t_quantile(0.975, 9), 3)
    2.262
    """
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < level else (low, middle)
    return high


def _t_cdf(t: float, freedom: int) -> float:
    """P[T <= t] for t >= 0, by the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3-4)."""
    angle = math.atan(t / math.sqrt(freedom))
    if freedom == 1:
        return 0.5 + angle / math.pi
    first = 3 if freedom % 2 else 2
    term = total = math.cos(angle) if freedom % 2 else 1.0
    for k in range(first, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    share = math.sin(angle) * total
    return 0.5 + ((angle + share) / math.pi if freedom % 2 else share / 2)
