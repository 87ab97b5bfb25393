"""How far a classifier's confidence is from how often it is right: the expected calibration error. numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError

BINS = 15
RESAMPLES = 200

Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]


def first_confidence(outputs: Floats, *, probabilities: bool = False) -> npt.NDArray[np.float32]:
    """The probability that outputs `[N, classes]` give their first choice, `[N]`; 0 for a row that is not finite."""
    wide = np.asarray(outputs, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        if probabilities:
            found = wide.max(axis=1) / wide.sum(axis=1)
        else:
            found = 1 / np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)
    return np.where(np.isfinite(wide).all(axis=1) & np.isfinite(found), np.clip(found, 0, 1), 0).astype(np.float32)


def calibration_error(confidence: Floats, correct: Flags) -> float:
    """The expected calibration error of Guo et al. 2017 (arXiv:1706.04599), in 15 bins of equal width.

    Bins are `(m / 15, (m + 1) / 15]`. The mean over samples of how far the share of right answers in a bin is from
    its mean confidence: 0 is perfect. Chance alone makes it positive, the more so the fewer samples there are, so only
    values of as many samples compare.

    Args:
        confidence: of the first choice, `[N]`, 0 to 1.
        correct: whether it is right, `[N]`.
    """
    return float(np.abs(_gaps(confidence, correct).sum(axis=0)).sum() / len(correct))


def calibration_interval(
    confidence: Floats, correct: Flags, level: float = 0.95, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """A bootstrap interval over samples around the value that was seen.

    Resamples err upward of the sample as the sample does of the truth, so their spread is taken around their own mean.
    """
    gaps = _gaps(confidence, correct)
    value = float(np.abs(gaps.sum(axis=0)).sum() / len(gaps))
    drawn = np.abs(_drawn(gaps, seed, resamples)).sum(axis=1)
    low, high = _around(value, drawn, level)
    return max(0.0, low), min(1.0, high)


def paired_calibration(
    first: tuple[Floats, Flags], second: tuple[Floats, Flags], level: float = 0.95, *, seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:  # fmt: skip
    """Error of the first minus that of the second (each `confidence, correct`) on the same samples, and its interval.

    Both are resampled together.
    """
    mine, theirs = _gaps(*first), _gaps(*second)
    if len(mine) != len(theirs):
        raise UsageError(f"A paired difference needs the same samples, got {len(mine)} and {len(theirs)}.")
    value = float((np.abs(mine.sum(axis=0)).sum() - np.abs(theirs.sum(axis=0)).sum()) / len(mine))
    both = _drawn(np.hstack([mine, theirs]), seed, resamples)
    drawn = np.abs(both[:, :BINS]).sum(axis=1) - np.abs(both[:, BINS:]).sum(axis=1)
    return value, *_around(value, drawn, level)


def _gaps(confidence: Floats, correct: Flags) -> npt.NDArray[np.float64]:
    """Right minus confidence of each sample in the column of its bin, `[N, BINS]`."""
    sure = np.asarray(confidence, np.float64)
    if sure.shape != correct.shape or not len(sure):
        raise UsageError(f"A calibration error needs a confidence a sample, got {sure.shape} for {correct.shape}.")
    column = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.zeros((len(sure), BINS))
    gaps[np.arange(len(sure)), column] = correct - sure
    return gaps


def _drawn(gaps: npt.NDArray[np.float64], seed: int, resamples: int) -> npt.NDArray[np.float64]:
    """The columns' sums over `N` samples drawn with replacement, per sample, `[resamples, columns]`."""
    rng, n = np.random.default_rng(seed), len(gaps)
    return np.stack([np.bincount(rng.integers(0, n, n), minlength=n) @ gaps for _ in range(resamples)]) / n


def _around(value: float, drawn: npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(drawn - drawn.mean(), [tail, 1 - tail])
    return value + float(min(low, 0.0)), value + float(max(high, 0.0))
