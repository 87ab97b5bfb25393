"""Classification metrics with intervals, and how far two outputs are apart. numpy only.

Metrics of other tasks come from `edgekit.scoring` and `edgekit.scores`, and are compared here too. Outputs are
`[N, classes]` logits; a model that ends in a softmax gives probabilities, and the caller says so
(`probabilities=True`): nothing here guesses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from edgekit.confidence import calibration_error, calibration_interval, first_confidence, paired_calibration
from edgekit.errors import UsageError
from edgekit.report.predictions import Predictions
from edgekit.report.report import ClassMetrics
from edgekit.report.values import IDENTICAL_DB, Interval, Metrics, Observed, Score, finite
from edgekit.scores import Evidence, interval_of, paired_of
from edgekit.tasks import METRICS

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Counts = npt.NDArray[np.number]

CONFIDENCE = 0.95
RESAMPLES = 200
TOP_K = 5


@dataclass(frozen=True)
class Evaluation:
    """Outputs scored against labels: `top` `[N, k]`, `loss` and `confidence` `[N]` go to the predictions file.

    So does `evidence`, see `edgekit.scores`. `user` holds the user's own metrics; `notes` say what could not be scored.
    """

    metrics: Metrics
    per_class: tuple[ClassMetrics, ...]
    top: npt.NDArray[np.int32]
    loss: npt.NDArray[np.float32] | None
    confidence: npt.NDArray[np.float32] | None
    evidence: Evidence = field(default_factory=dict)
    user: Mapping[str, Observed] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def predictions(
        self,
        ids: Sequence[str],
        labels: Ints | None,
        *,
        data_sha256: str,
        split: str,
        slices: Mapping[str, npt.NDArray[np.str_]] | None = None,
    ) -> Predictions:
        """What the predictions file holds."""
        kept = None if labels is None else np.asarray(labels, np.int64)
        return Predictions(
            tuple(ids), kept, self.top, self.loss, data_sha256, split, self.confidence, dict(slices or {}),
            self.evidence,
        )  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """`a - b` on the same `n` samples with its interval."""

    value: float
    low: float
    high: float
    n: int


def evaluate(
    outputs: Floats,
    labels: Ints | None,
    *,
    probabilities: bool = False,
    classes: Sequence[str] = (),
    seed: int = 0,
) -> Evaluation:
    """Every metric of one classifier on one split; without labels only `top` is filled.

    Raises:
        UsageError: the outputs are not `[N, classes]`, or a label is out of range.
    """
    scores = _scores(outputs)
    top, sure = top_k(scores, TOP_K), first_confidence(scores, probabilities=probabilities)
    if labels is None:
        return Evaluation(Metrics(), (), top, None, sure)
    labels = _checked_labels(labels, scores)
    loss = cross_entropy(scores, labels, probabilities=probabilities)
    counts = confusion(top[:, 0], labels, scores.shape[1])
    precision, recall, f1 = macro(counts)
    mean_loss = float(np.mean(loss, dtype=np.float64))
    right = top[:, 0] == labels
    intervals = bootstrap_macro(counts, seed=seed)
    intervals["calibration_error"] = calibration_interval(sure, right, seed=seed)
    if math.isfinite(mean_loss):
        intervals["loss"] = mean_interval(loss)
    five = {"top5": in_top(top, labels)} if scores.shape[1] > TOP_K else {}
    top5 = score("top5", five, len(labels)) if five else None
    metrics = Metrics(
        accuracy=wilson(int(right.sum()), len(labels)),
        precision=precision,
        recall=recall,
        f1=f1,
        loss=finite(mean_loss),
        calibration_error=calibration_error(sure, right),
        intervals=intervals,
        scores={"top5": top5} if top5 is not None else {},
    )
    return Evaluation(metrics, per_class(counts, classes), top, loss, sure)


def score(metric: str, evidence: Evidence, n: int, value: float | None = None) -> Score | None:
    """A metric of `edgekit.tasks` with its 95 % interval; None where it is undefined.

    `value` is what a library found; it holds, and the interval is that of the resampled evidence.
    """
    facts = METRICS[metric]
    if facts.each and metric in evidence:
        n = int(np.isfinite(evidence[metric]).sum())
        seen, low, high = _mean_of_samples(metric, np.asarray(evidence[metric], np.float64))
    else:
        seen, low, high = interval_of(metric, evidence, n)
    seen = seen if value is None else value
    if not all(map(math.isfinite, (seen, low, high))):
        return None
    return Score(value=seen, low=min(low, seen), high=max(high, seen), n=n, unit=facts.unit, lower=facts.lower)


def _mean_of_samples(metric: str, values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Of a share of samples that are hits Wilson's interval, of any other mean the normal one; NaN has no value."""
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    if METRICS[metric].hits:
        seen = wilson(int(values.sum()), len(values))
        return seen.value, seen.low, seen.high
    return float(values.mean()), *mean_interval(values)


def in_top(top: Ints, labels: Ints, k: int = TOP_K) -> npt.NDArray[np.float64]:
    """1 where the label is among the first `k` choices, else 0, `[N]`."""
    return np.asarray((top[:, :k] == labels[:, None]).any(axis=1), np.float64)


def top_k(scores: Floats, k: int) -> npt.NDArray[np.int32]:
    """The `k` highest classes of each row, best first, lower index first on ties; -1 for a row that is not finite."""
    k = min(k, scores.shape[1])
    if scores.shape[1] > 4 * k:
        near = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        floor = np.min(np.take_along_axis(scores, near, 1), axis=1)
        tied = np.sum(scores >= floor[:, None], axis=1) > k
        near.sort(axis=1)
        order = np.argsort(-np.take_along_axis(scores, near, 1), axis=1, kind="stable")
        best = np.take_along_axis(near, order, 1)
        if tied.any():
            best[tied] = np.argsort(-scores[tied], axis=1, kind="stable")[:, :k]
    else:
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best[~np.isfinite(scores).all(axis=1)] = -1
    return best.astype(np.int32)


def cross_entropy(outputs: Floats, labels: Ints, *, probabilities: bool = False) -> npt.NDArray[np.float32]:
    """Minus the log-likelihood of the label, `[N]`, in nats; probabilities are clipped at the smallest float32."""
    rows = np.arange(len(labels))
    wide = np.asarray(outputs, np.float64)
    with np.errstate(invalid="ignore"):
        if probabilities:
            chosen = wide[rows, labels] / wide.sum(axis=1)
            loss = -np.log(np.maximum(chosen, np.finfo(np.float32).tiny))
        else:
            shifted = wide - wide.max(axis=1, keepdims=True)
            loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]
    return np.asarray(loss, np.float32)


def confusion(predicted: Ints, labels: Ints, classes: int) -> npt.NDArray[np.int64]:
    """Counts `[classes, classes + 1]`, rows are labels; the last column counts outputs that are no class at all."""
    columns = np.where(predicted < 0, classes, predicted)
    flat = np.bincount(labels * (classes + 1) + columns, minlength=classes * (classes + 1))
    return flat.reshape(classes, classes + 1)


def macro(counts: npt.NDArray[np.integer]) -> tuple[float, float, float]:
    """Precision, recall and F1, averaged over the classes that occur as label or prediction; 0/0 counts as 0."""
    hits, labelled, predicted = _marginals(counts)
    averages = _macro(hits[None], labelled[None], predicted[None])
    return float(averages[0, 0]), float(averages[0, 1]), float(averages[0, 2])


def per_class(counts: npt.NDArray[np.integer], names: Sequence[str] = ()) -> tuple[ClassMetrics, ...]:
    """Each class against the rest; classes without a name are called by their number."""
    hits, labelled, predicted = _marginals(counts)
    total = int(counts.sum())
    found = []
    for i in range(len(counts)):
        hit, label, guess = int(hits[i]), int(labelled[i]), int(predicted[i])
        found.append(
            ClassMetrics(
                name=str(names[i]) if i < len(names) else str(i),
                accuracy=(total - label - guess + 2 * hit) / total if total else 0.0,
                precision=hit / guess if guess else 0.0,
                recall=hit / label if label else 0.0,
                f1=2 * hit / (label + guess) if label + guess else 0.0,
                support=label,
            )
        )
    return tuple(found)


def wilson(hits: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """A share with Wilson's score interval (1927), which stays inside [0, 1]."""
    if n <= 0:
        raise UsageError("A share needs at least one sample, got none.")
    low, high = _wilson_bounds(hits / n, n, confidence)
    return Interval(value=hits / n, low=low, high=high, n=n)


def wilson_share(share: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """`wilson` for a share that was computed elsewhere."""
    return wilson(round(share * n), n, confidence)


def mean_interval(values: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The normal interval of a mean: fit for the hundreds of samples that a test split has."""
    wide = np.asarray(values, np.float64)
    mean = float(wide.mean())
    if len(wide) < 2:
        return mean, mean
    half = z(confidence) * float(wide.std(ddof=1)) / math.sqrt(len(wide))
    return mean - half, mean + half


def bootstrap_macro(
    counts: npt.NDArray[np.integer], *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of macro precision, recall and F1; samples are redrawn by confusion cell."""
    cells = np.nonzero(counts)
    weights = counts[cells].astype(np.float64)
    n = int(weights.sum())
    draws = np.random.default_rng(seed).multinomial(n, weights / n, size=resamples)
    rows, columns = cells
    size = len(counts)
    labelled = np.stack([np.bincount(rows, drawn, size) for drawn in draws])
    predicted = np.stack([np.bincount(columns, drawn, size + 1)[:size] for drawn in draws])
    hits = np.stack([np.bincount(rows, drawn * (rows == columns), size) for drawn in draws])
    tail = (1 - confidence) / 2
    low, high = np.quantile(_macro(hits, labelled, predicted), [tail, 1 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(("precision", "recall", "f1"))}


def agreement(a: Floats, b: Floats) -> Interval:
    """The share of samples on which two outputs `[N, classes]` choose the same class."""
    first, second = top_k(_scores(a), 1)[:, 0], top_k(_scores(b), 1)[:, 0]
    if len(first) != len(second):
        raise UsageError(f"Agreement needs outputs of the same samples, got {len(first)} and {len(second)}.")
    return wilson(int(np.sum((first == second) & (first >= 0))), len(first))


def snr_db(reference: Sequence[Floats] | Floats, other: Sequence[Floats] | Floats) -> float | None:
    """10 log10(sum r^2 / sum (r - o)^2) over all outputs; `IDENTICAL_DB` where they are equal.

    None where it is undefined: a reference of zeros, or values that are not finite.
    """
    pairs = [(reference, other)] if isinstance(reference, np.ndarray) else list(zip(reference, other, strict=True))
    signal = noise = 0.0
    for r, o in pairs:
        wide, near = np.asarray(r, np.float64), np.asarray(o, np.float64)
        if wide.shape != near.shape:
            raise UsageError(f"Outputs of unlike shape cannot be compared: {wide.shape} and {near.shape}.")
        signal += float(np.sum(wide**2))
        noise += float(np.sum((wide - near) ** 2))
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return None
    if noise == 0.0:
        return IDENTICAL_DB
    return min(10 * math.log10(signal / noise), IDENTICAL_DB) if signal > 0 else None


def paired_accuracy(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], confidence: float = CONFIDENCE) -> Difference:
    """Accuracy of `a` minus that of `b` on the same samples, by Newcombe's method 10 (Stat. Med. 17, 1998)."""
    if len(a) != len(b) or not len(a):
        raise UsageError(f"A paired difference needs the same samples, got {len(a)} and {len(b)}.")
    n = len(a)
    both, only_a, only_b = int(np.sum(a & b)), int(np.sum(a & ~b)), int(np.sum(~a & b))
    neither = n - both - only_a - only_b
    p, q = (both + only_a) / n, (both + only_b) / n
    p_low, p_high = _wilson_bounds(p, n, confidence)
    q_low, q_high = _wilson_bounds(q, n, confidence)
    phi = _phi(both, only_a, only_b, neither)
    value = p - q
    return Difference(
        value=value,
        low=value - _combined(p - p_low, q_high - q, phi),
        high=value + _combined(p_high - p, q - q_low, phi),
        n=n,
    )


def paired_difference(
    metric: str, a: Predictions, b: Predictions, *, confidence: float = CONFIDENCE, seed: int = 0
) -> Difference:
    """Metric of `a` minus metric of `b` on the same samples.

    Metrics are `accuracy`, `loss`, `precision`, `recall`, `f1`, `calibration_error` and those of `edgekit.tasks`.

    Raises:
        UsageError: they are not predictions of the same labelled samples.
    """
    if metric in METRICS and a.same_samples(b):
        return _paired_score(metric, a, b, confidence, seed)
    if a.labels is None or not a.same_samples(b):
        raise UsageError("A paired difference needs two predictions of the same labelled samples.")
    if metric == "accuracy":
        return paired_accuracy(a.correct(), b.correct(), confidence)
    if metric == "loss":
        if a.loss is None or b.loss is None:
            raise UsageError("A paired difference of the loss needs the loss of every sample.")
        gap = a.loss.astype(np.float64) - b.loss
        return Difference(float(gap.mean()), *mean_interval(gap, confidence), n=len(gap))
    if metric == "calibration_error":
        if a.confidence is None or b.confidence is None:
            raise UsageError("A calibration error needs the confidence of every sample: run the recipe again.")
        first, second = (a.confidence, a.correct()), (b.confidence, b.correct())
        return Difference(*paired_calibration(first, second, confidence, seed=seed), n=len(a))
    return _bootstrap_difference(_MACRO.index(metric), a, b, confidence, seed)


def _paired_score(metric: str, a: Predictions, b: Predictions, confidence: float, seed: int) -> Difference:
    """Newcombe's interval for shares of hits, the normal one for other means of samples, else a paired bootstrap."""
    first, second = _evidence(metric, a), _evidence(metric, b)
    if not METRICS[metric].each:
        return Difference(*paired_of(metric, first, second, len(a), confidence, seed=seed), n=len(a))
    if missing := [metric for seen in (first, second) if metric not in seen]:
        raise UsageError(f"{missing[0]} was not kept of the samples: run the recipe again.")
    one, two = (np.asarray(seen[metric], np.float64) for seen in (first, second))
    known = np.isfinite(one) & np.isfinite(two)
    one, two = one[known], two[known]
    if not len(one):
        raise UsageError(f"{metric} is undefined for every sample.")
    if METRICS[metric].hits:
        return paired_accuracy(one > 0, two > 0, confidence)
    gap = one - two
    return Difference(float(gap.mean()), *mean_interval(gap, confidence), n=len(gap))


def _evidence(metric: str, seen: Predictions) -> Evidence:
    if metric != "top5":
        return seen.evidence
    if seen.labels is None or seen.top.shape[1] < TOP_K:
        raise UsageError("A top-5 accuracy needs labels, and five classes or more.")
    return {"top5": in_top(seen.top, seen.labels)}


_MACRO = ("precision", "recall", "f1")
"""In the order in which `_macro` gives them."""


def _bootstrap_difference(column: int, a: Predictions, b: Predictions, confidence: float, seed: int) -> Difference:
    """A paired bootstrap, whose interval holds the value and is no narrower than the one of the accuracies' difference.

    Where few samples happen to agree, so do all of their resamples, and those alone would promise certainty.
    """
    assert a.labels is not None
    known, codes = np.unique(np.stack([a.top[:, 0], b.top[:, 0], a.labels]), return_inverse=True)
    nothing = int(known[0] < 0)  # an output that is no class is counted behind the last one
    first, second, labels = codes.reshape(3, -1) - nothing
    size, n = len(known) - nothing, len(labels)
    rng = np.random.default_rng(seed)

    def score(chosen: Ints, label: Ints) -> float:
        hits, labelled = np.bincount(label[chosen == label], minlength=size), np.bincount(label, minlength=size)
        predicted = np.bincount(chosen[chosen >= 0], minlength=size)
        return float(_macro(hits[None], labelled[None], predicted[None])[0, column])

    def gap(rows: Ints | slice) -> float:
        return score(first[rows], labels[rows]) - score(second[rows], labels[rows])

    drawn = [gap(rng.integers(0, n, n)) for _ in range(RESAMPLES)]
    tail = (1 - confidence) / 2
    value, least = gap(slice(None)), paired_accuracy(first == labels, second == labels, confidence)
    low, high = map(float, np.quantile(drawn, [tail, 1 - tail]))
    below, above = least.value - least.low, least.high - least.value
    return Difference(value, min(low, value - below), max(high, value + above), n)


def _scores(outputs: Floats) -> Floats:
    scores = np.asarray(outputs)
    if scores.ndim > 2 and all(extent == 1 for extent in scores.shape[2:]):
        scores = scores.reshape(scores.shape[:2])
    if scores.ndim != 2 or scores.shape[1] < 2 or not len(scores):
        raise UsageError(
            f"Classification metrics need outputs [N, classes] with two classes or more, got {list(scores.shape)}."
        )
    return scores.astype(np.float32) if scores.dtype == np.float16 else scores


def _checked_labels(labels: Ints, scores: Floats) -> npt.NDArray[np.int64]:
    checked = np.asarray(labels)
    if checked.shape != scores.shape[:1]:
        raise UsageError(f"{len(scores)} outputs need labels [{len(scores)}], got {list(checked.shape)}.")
    if not np.issubdtype(checked.dtype, np.integer):
        raise UsageError(f"Labels must be integers (class numbers), got {checked.dtype}.")
    low, high = int(checked.min()), int(checked.max())
    if low < 0 or high >= scores.shape[1]:
        raise UsageError(f"Labels must be in 0..{scores.shape[1] - 1} (the model's outputs), got {low}..{high}.")
    return checked.astype(np.int64)


def _marginals(counts: npt.NDArray[np.integer]) -> tuple[Floats, Floats, Floats]:
    size = len(counts)
    hits = np.diagonal(counts).astype(np.float64)
    return hits, counts.sum(axis=1).astype(np.float64), counts[:, :size].sum(axis=0).astype(np.float64)


def _macro(hits: Counts, labelled: Counts, predicted: Counts) -> npt.NDArray[np.float64]:
    """`[B, classes]` counts to `[B, 3]` macro precision, recall and F1."""
    present = (labelled + predicted) > 0
    classes = np.maximum(present.sum(axis=1), 1)
    parts = [(hits, predicted), (hits, labelled), (2 * hits, labelled + predicted)]
    averages = [np.divide(top, np.maximum(bottom, 1)).sum(axis=1) / classes for top, bottom in parts]
    return np.stack(averages, axis=1)


def z(confidence: float) -> float:
    """How many standard deviations a two-sided normal interval of that confidence reaches."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _wilson_bounds(p: float, n: int, confidence: float) -> tuple[float, float]:
    z2 = z(confidence) ** 2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if p == 0 else max(0.0, centre - half)
    return low, 1.0 if p == 1 else min(1.0, centre + half)


def _phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Newcombe's continuity-corrected correlation of the two answers."""
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if product == 0:
        return 0.0
    n = both + only_a + only_b + neither
    cross = float(both * neither - only_a * only_b)
    if cross > 0:
        cross = max(cross - n / 2, 0)
    return cross / math.sqrt(product)


def _combined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))
