"""The metrics of `edgekit.tasks` from what was kept of every sample, with intervals and paired differences. numpy only.

A metric is a function of how often each sample counts. All ones give its value; the counts of a bootstrap resample
(Efron 1979) give its interval, and the same counts for two networks that of their difference. So a gate needs no model,
no data and none of the libraries that scored the samples.

What is kept of `N` samples, by name of the array (`Evidence`):

| array | shape | |
|---|---|---|
| the metric's own name | `[N]` | its value of each sample; NaN where it has none |
| `squares` | `[N]` | mean squared error |
| `overlap` | `[N, 2, classes]` | pixels of intersection and of union |
| `pixels` | `[N, 2]` | right pixels, all pixels |
| `anomaly` | `[N, 2]` | score, and 1 for an anomaly |
| `found` | `[D, 3 + 10]` | a detection: sample, class, score, and whether it matches at IoU 0.50, 0.55, ... 0.95 |
| `wanted` | `[G, 2]` | a labelled box: sample, class |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError
from edgekit.tasks import METRICS

Array = npt.NDArray[np.floating]
Evidence = Mapping[str, Array]
Rows = npt.NDArray[np.int64]
Counts = npt.NDArray[np.float64]
"""How often each sample counts, `[B, N]`."""
Statistic = Callable[[Counts], npt.NDArray[np.float64]]
"""Counts `[B, N]` to values `[B]`; NaN where the metric is undefined for the samples that count."""

RESAMPLES = 200
RECALLS = np.linspace(0, 1, 101)
"""Where COCO reads precision."""
CHUNK = 250_000
"""So many counts of samples or detections are held at once."""


def statistic(metric: str, evidence: Evidence) -> Statistic:
    """The metric as a function of how often each sample counts.

    Raises:
        UsageError: nothing was kept that it could be computed from.
    """
    makers: dict[str, tuple[tuple[str, ...], Callable[..., Statistic]]] = {
        "rmse": (("squares",), lambda squares: _after(_mean(squares), np.sqrt)),
        "miou": (("overlap",), _miou),
        "pixel_accuracy": (("pixels",), lambda pixels: lambda counts: _over(counts @ pixels)),
        "auc": (("anomaly",), _auc),
        "map": (("found", "wanted"), _average_precision),
        "map50": (("found", "wanted"), lambda found, wanted: _average_precision(found[:, :4], wanted)),
    }
    names, make = makers.get(metric, ((metric,), _mean))
    if missing := [name for name in names if name not in evidence]:
        raise UsageError(f"{metric} cannot be computed: {', '.join(missing)} of the samples was not kept.")
    return make(*(np.asarray(evidence[name], np.float64) for name in names))


def value_of(metric: str, evidence: Evidence, n: int) -> float:
    """The metric over all `n` samples; NaN where it is undefined."""
    return float(statistic(metric, evidence)(np.ones((1, n)))[0])


def interval_of(
    metric: str, evidence: Evidence, n: int, confidence: float = 0.95, *, seed: int = 0
) -> tuple[float, float, float]:
    """The metric over all `n` samples with its percentile bootstrap interval: value, low, high."""
    return _bootstrap(statistic(metric, evidence), n, confidence, seed)


def paired_of(
    metric: str, a: Evidence, b: Evidence, n: int, confidence: float = 0.95, *, seed: int = 0
) -> tuple[float, float, float]:
    """The metric of `a` minus that of `b` on the same `n` samples, with the interval of a paired bootstrap."""
    first, second = statistic(metric, a), statistic(metric, b)
    return _bootstrap(lambda counts: first(counts) - second(counts), n, confidence, seed)


def _bootstrap(of: Statistic, n: int, confidence: float, seed: int) -> tuple[float, float, float]:
    value = float(of(np.ones((1, n)))[0])
    rng, drawn = np.random.default_rng(seed), []
    step = max(1, min(RESAMPLES, CHUNK // n))
    for start in range(0, RESAMPLES, step):
        rows = rng.integers(0, n, (min(step, RESAMPLES - start), n))
        drawn.append(of(np.stack([np.bincount(row, minlength=n) for row in rows]).astype(np.float64)))
    defined = np.concatenate(drawn)
    defined = defined[np.isfinite(defined)]
    if not len(defined) or not np.isfinite(value):
        return value, value, value
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return value, min(value, float(low)), max(value, float(high))


def _over(sums: Counts) -> npt.NDArray[np.float64]:
    """`[..., 2]` numerators and denominators to ratios; NaN for nothing of nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: npt.NDArray[np.float64] = sums[..., 0] / sums[..., 1]
    return ratio


def _after(of: Statistic, act: Callable[..., npt.NDArray[np.float64]]) -> Statistic:
    return lambda counts: act(of(counts))


def _mean(values: Array) -> Statistic:
    known = np.isfinite(values)
    both = np.stack([np.where(known, values, 0.0), known.astype(np.float64)], axis=1)
    return lambda counts: _over(counts @ both)


def _miou(overlap: Array) -> Statistic:
    """Mean over the classes that occur as label or answer (Jaccard 1912), of the pixels of all samples together."""
    flat = overlap.reshape(len(overlap), -1)

    def value(counts: Counts) -> npt.NDArray[np.float64]:
        sums = (counts @ flat).reshape(len(counts), 2, -1)
        each = _over(np.moveaxis(sums, 1, -1))
        there = sums[:, 1] > 0
        return _over(np.stack([np.where(there, each, 0).sum(axis=1), there.sum(axis=1)], axis=-1).astype(np.float64))

    return value


def _auc(anomaly: Array) -> Statistic:
    """The area under the ROC curve as a share of pairs (Mann and Whitney 1947); ties count half."""
    scores, positive = anomaly[:, 0], anomaly[:, 1] > 0
    different, group = np.unique(scores, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(different)))

    def value(counts: Counts) -> npt.NDArray[np.float64]:
        up, down = (np.add.reduceat((counts * of)[:, order], starts, axis=1) for of in (positive, ~positive))
        below = np.cumsum(down, axis=1) - down / 2
        return _over(np.stack([(up * below).sum(axis=1), up.sum(axis=1) * down.sum(axis=1)], axis=-1))

    return value


def _average_precision(found: Array, wanted: Array) -> Statistic:
    """COCO's average precision (Lin et al. 2014): 101 points, mean over IoU thresholds and the classes with labels."""
    parts = []
    for kind in np.unique(wanted[:, 1]):
        mine = found[found[:, 1] == kind]
        mine = mine[np.argsort(-mine[:, 2], kind="stable")]
        hits = [np.flatnonzero(column) for column in (mine[:, 3:] > 0).T]
        parts.append((mine[:, 0].astype(np.int64), hits, wanted[wanted[:, 1] == kind, 0].astype(np.int64)))
    step = max(1, CHUNK // max(1, *(len(rows) for rows, _, _ in parts)))

    def value(counts: Counts) -> npt.NDArray[np.float64]:
        drawn = [counts[start : start + step] for start in range(0, len(counts), step)]
        seen = [
            np.concatenate([_class_precision(some[:, rows], hits, some[:, truth].sum(axis=1)) for some in drawn])
            for rows, hits, truth in parts
        ]
        known = np.isfinite(seen)
        return _over(np.stack([np.where(known, seen, 0).sum(axis=0), known.sum(axis=0)], axis=-1).astype(np.float64))

    return value


def _class_precision(weights: Counts, hits: Sequence[Rows], wanted: Counts) -> npt.NDArray[np.float64]:
    """Average precision `[B]` of one class: detections `[B, D]` best first, labels `[B]`.

    `hits` are the columns that match, one array a threshold: recall grows there alone, and precision is highest there.
    """
    every = np.cumsum(weights, axis=1)
    total, labelled = np.zeros(len(weights)), np.maximum(wanted, 1)
    for columns in hits:
        if not len(columns):
            continue
        right = np.cumsum(weights[:, columns], axis=1)
        precision = right / np.maximum(every[:, columns], 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = right / labelled[:, None]
        for row in range(len(weights)):
            at = np.searchsorted(recall[row], RECALLS, side="left")
            total[row] += precision[row, at[at < len(columns)]].sum()
    return np.where(wanted > 0, total / len(RECALLS) / len(hits), np.nan)


def check_evidence(name: str, values: Array, n: int) -> None:
    """Refuse what no run keeps of `n` samples.

    Raises:
        ValueError: an array of the wrong type or shape, or one that names samples that are not there.
    """
    shapes: dict[str, tuple[int | None, ...]] = {
        "squares": (n,), "overlap": (n, 2, None), "pixels": (n, 2), "anomaly": (n, 2), "found": (None, 13),
        "wanted": (None, 2), **{metric: (n,) for metric, facts in METRICS.items() if facts.each},
    }  # fmt: skip
    wants = shapes.get(name)
    fits = wants is not None and len(wants) == values.ndim
    if wants is None or not fits or values.dtype.kind != "f":
        raise ValueError(f"`evidence.{name}` is {values.dtype} {list(values.shape)} for {n} samples")
    if any(want not in (None, has) for want, has in zip(wants, values.shape, strict=True)) or np.isinf(values).any():
        raise ValueError(f"`evidence.{name}` is {values.dtype} {list(values.shape)} for {n} samples")
    if name in ("found", "wanted") and not ((values[:, 0] >= 0) & (values[:, 0] < n)).all():
        raise ValueError(f"`evidence.{name}` names samples that are not there")
