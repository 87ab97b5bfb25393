"""Interleaved A/B rounds on one device: a ratio with its interval, and whether that is a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from edgekit.agent.stats import least_samples, percentile
from edgekit.bundle import Bundle, open_bundle
from edgekit.context import Progress, Silent
from edgekit.devices import Device, open_device
from edgekit.errors import UsageError
from edgekit.validity import judge_pairs

Round = tuple[float, float, float, float]
"""Block medians in seconds of the turn that stands for a round, in the order in which they were taken: a, b, b, a."""

LOOKS = (6, 12, 24)
"""Rounds after which `compare` looks at the interval and may stop."""

TRIMMED = 5
"""One in so many rounds is left out at either end before the mean is taken."""


@dataclass(frozen=True)
class Comparison:
    """The time of `a` divided by that of `b`, with its 95 % interval `[low, high]`; below 1 `a` is faster."""

    ratio: float
    low: float
    high: float
    rounds: tuple[Round, ...]
    info: tuple[Any, ...] = field(default=(), repr=False)
    confidence: float = 0.95
    """What the interval was computed at, so that it holds with what was asked for (95 %) after every look."""


def paired_ratio(rounds: Sequence[Round], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """The ratio of `a`'s time to `b`'s (below 1: `a` is faster) with a two-sided interval.

    A round a, b, b, a gives one log-ratio, (log a1 + log a2 - log b1 - log b2) / 2, in which any drift that is linear
    over it cancels, and which is symmetric about the truth where what disturbs the machine meets all four blocks
    alike. Rounds have processes of their own, and are close to independent. The ratio is the mean of the log-ratios
    without the highest and the lowest fifth (of 5 and more), the interval is Student's t with the winsorized variance
    (Tukey and McLaughlin 1963, Sankhya A 25:331): a round that was disturbed altogether moves neither by much.

    >>> ratio, low, high = paired_ratio([(1.0, 2.0, 2.0, 1.0), (1.1, 2.0, 2.0, 1.1), (0.9, 2.0, 2.0, 0.9)])
    >>> low < ratio < high and 0.49 < ratio < 0.51
    True
    """
    if len(rounds) < 2:
        raise ValueError(f"an interval needs at least 2 rounds, got {len(rounds)}")
    logs = [(math.log(a1) + math.log(a2) - math.log(b1) - math.log(b2)) / 2 for a1, b1, b2, a2 in rounds]
    out = len(logs) // TRIMMED
    kept = sorted(logs)[out : len(logs) - out]
    middle = fmean(kept)
    spread = stdev([kept[0]] * out + kept + [kept[-1]] * out) * math.sqrt((len(logs) - 1) / (len(kept) - 1))
    reach = t_quantile((1 + confidence) / 2, len(kept) - 1) * spread / math.sqrt(len(kept))
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
    confidence: float = 0.95,
) -> Comparison:
    """`a` against `b` on `device`, in ever more rounds until the interval leaves out every one of `limits`.

    `rounds` are the totals after which to look. Each look shares the error (5 %, or what else `confidence` leaves)
    with the others (Bonferroni's inequality, which holds for looks that share rounds too), so the interval that is
    reported holds with that confidence however often one looked.
    """
    taken: list[Round] = []
    infos: list[Any] = []
    each = 1 - (1 - confidence) / len(rounds)
    for total in rounds:
        pairs = device.pairs(a, b, rounds=total - len(taken), threads=threads, inputs=inputs)
        taken += pairs.rounds
        infos += pairs.info
        ratio, low, high = paired_ratio(taken, confidence=each)
        if all(high < limit or low > limit for limit in limits):
            break
    return Comparison(ratio, low, high, tuple(taken), tuple(infos), each)


Verdict = Literal["no difference", "a is faster", "b is faster", "inconclusive"]


@dataclass(frozen=True)
class Judged:
    """Two bundles on a device: the ratio of `a`'s time to `b`'s, and what it says about a tolerance."""

    a: Bundle
    b: Bundle
    device: str
    tolerance: float
    seen: Comparison

    @property
    def verdict(self) -> Verdict:
        """`judge` of the interval."""
        return judge(self.seen.low, self.seen.high, self.tolerance)


def judge(low: float, high: float, tolerance: float) -> Verdict:
    """What the interval of a ratio says: none where it lies within the tolerance, one where it lies wholly outside.

    The tolerance is one of the time's ratio, the same in both directions: 5 % reaches from 1 / 1.05 to 1.05, so that
    `b` against `a` is judged as `a` against `b` is.

    >>> judge(0.99, 1.03, 0.05), judge(1.06, 1.2, 0.05), judge(0.7, 0.9, 0.05), judge(1.01, 1.08, 0.05)
    ('no difference', 'b is faster', 'a is faster', 'inconclusive')
    """
    least, most = band(tolerance)
    if least <= low and high <= most:
        return "no difference"
    if low > most:
        return "b is faster"
    return "a is faster" if high < least else "inconclusive"


def band(tolerance: float) -> tuple[float, float]:
    """The ratios that a tolerance takes for equal.

    >>> band(0.25)
    (0.8, 1.25)
    """
    return 1 / (1 + tolerance), 1 + tolerance


def compare_bundles(
    a: Path,
    b: Path,
    *,
    device: str = "local",
    tolerance: float = 0.05,
    threads: int = 1,
    inputs: Path | None = None,
    wait: bool = False,
    kill_on_interrupt: bool = False,
    progress: Progress | None = None,
) -> Judged:
    """`a` against `b` in interleaved rounds on `device`, in 6, 12 or 24 of them: until the answer is clear.

    `inputs` are samples, .npy or .npz, raw or preprocessed; without them the bundles' golden samples are.

    Raises:
        UsageError: an unknown device, a tolerance outside of 0 to 1 or below the device's own noise, or bundles whose
            inputs differ.
        IntegrityError: a file is no intact bundle.
        DeviceError: the device cannot be reached.
        MeasurementInvalidError: the device was throttled, short of power, or another one in the end.
    """
    from edgekit.devices.inventory import check_tolerance

    if not 0 < tolerance < 1:
        raise UsageError(f"The tolerance is a share of the time between 0 and 1 (0.05, or 5%), not {tolerance:g}.")
    one, other = open_bundle(a), open_bundle(b)
    if inputs is not None and one.manifest.inputs != other.manifest.inputs:
        raise UsageError(f"{a.name} and {b.name} take other inputs: the same samples will not do for both.")
    there = open_device(device, wait=wait, kill_on_interrupt=kill_on_interrupt)
    check_tolerance(device, tolerance)
    with (progress or Silent()).task(f"{one.path.stem} against {other.path.stem} on {device}"):
        seen = compare(there, one, other, threads=threads, limits=band(tolerance), inputs=inputs)
    judge_pairs(seen.info).require()
    return Judged(one, other, device, tolerance, seen)


def at_percentile(seen: Comparison, percent: float) -> Comparison | None:
    """The same rounds compared at another percentile, such as 90: of all that a round took first, second, and so on.

    None where that is fewer samples than the percentile needs, or the device kept no samples (`samples_s` in the info
    of a round: one entry a turn, with the latencies of its four blocks).
    """
    taken: list[Round] = []
    for info in seen.info:
        a1, b1, b2, a2 = (list(chain(*blocks)) for blocks in zip(*info.get("samples_s", [[[]] * 4]), strict=True))
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
