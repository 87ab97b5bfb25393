"""Which bundle ships for a target and backend: the quantized one only if it is shown faster and near enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.metrics import paired_difference
from edgekit.report.predictions import Predictions
from edgekit.report.quantities import show, show_interval, turned
from edgekit.report.report import Result
from edgekit.report.values import Bounds
from edgekit.tasks import LEAST

SMALLER = frozenset({"fp16", "int8_weights", "int4_weights"})
"""Precisions that a recipe asks for by name to get a smaller file: these ship unless they are shown slower."""

Loader = Callable[[str], Predictions]

MIN_SNR = 20.0
"""Outputs without labels that are nearer to noise than this many dB don't ship, unless the recipe says otherwise."""


@dataclass(frozen=True)
class Choice:
    """The result that ships, or None where none can, with the reason in one line.

    `verified` says that speed and accuracy were both measured. `helped` is False where quantizing did not pay.
    """

    result: Result | None
    reason: str
    verified: bool = True
    helped: bool = True


@dataclass(frozen=True)
class _Finding:
    """One half of the decision: whether it lets the quantized bundle ship, and what was seen."""

    allows: bool
    text: str
    verified: bool = True


def choose_ships(
    results: Sequence[Result],
    max_drop: float,
    *,
    min_snr: float = MIN_SNR,
    refused: str | None = None,
    predictions: Loader | None = None,
) -> Choice:
    """Choose among the results of one (target, backend).

    The quantized bundle ships if it is not shown slower or worse: where a device measured it, the upper bound of its
    paired p50 ratio against float lies below 1 (the lower bound, for a precision that is wanted for its size); and it
    loses at most `max_drop` (a fraction: 0.005 = 0.5 pp) of accuracy, or of the first share that its task has (mAP,
    mIoU, AUC, recall), against float. Without labels, or where the task is told by no share, its outputs must be
    `min_snr` dB from float's. What could not be measured, for want of a device or of its runtime, lets it ship
    unverified, and the reason says so; unless `quantize` saw on the host that it is too far from float (`refused`).
    """
    usable = [r for r in results if r.status != "failed"]
    by_role = {role: next((r for r in usable if r.role == role), None) for role in ("quantized", "float", "reference")}
    quantized, base = by_role["quantized"], by_role["float"] or by_role["reference"]
    if quantized is None:
        return _unquantized(results, base)
    label = quantized.precision
    if base is None:
        return Choice(quantized, f"{label} ships: nothing was built to compare it with (unverified)", verified=False)
    findings = (_speed(quantized, base), _near(quantized, base, max_drop, min_snr, refused, predictions))
    against = [finding.text for finding in findings if not finding.allows]
    if against:
        return Choice(base, f"{base.role} {base.precision} ships: {label} {' and '.join(against)}", helped=False)
    verified = all(finding.verified for finding in findings)
    said = ", ".join(finding.text for finding in findings)
    return Choice(quantized, f"{label} ships: {said}{'' if verified else ' (unverified)'}", verified=verified)


def mark_ships(
    results: Iterable[Result],
    max_drop: float,
    *,
    min_snr: float = MIN_SNR,
    refused: Mapping[str, str] | None = None,
    predictions: Loader | None = None,
) -> tuple[tuple[Result, ...], tuple[str, ...]]:
    """All results with `ships` and `ships_reason` set, and a warning for every pair where quantizing did not help."""
    results = tuple(results)
    pairs = dict.fromkeys((r.target, r.backend) for r in results)
    choices = {}
    for pair in pairs:
        same = [r for r in results if (r.target, r.backend) == pair]
        why = (refused or {}).get(pair[1])
        choices[pair] = choose_ships(same, max_drop, min_snr=min_snr, refused=why, predictions=predictions)
    marked = []
    for result in results:
        choice = choices[result.target, result.backend]
        ships = choice.result is result
        marked.append(result.model_copy(update={"ships": ships, "ships_reason": choice.reason if ships else ""}))
    warnings = [f"{target}, {backend}: {c.reason}." for (target, backend), c in choices.items() if not c.helped]
    return tuple(marked), tuple(warnings)


def _unquantized(results: Sequence[Result], base: Result | None) -> Choice:
    tried = next((r for r in results if r.role == "quantized"), None)
    why = f": the {tried.precision} build failed ({tried.reason})" if tried else ""
    if base is None:
        return Choice(None, "nothing ships: no bundle was built", helped=False)
    return Choice(base, f"{base.role} {base.precision} ships{why}", helped=tried is None)


def _speed(quantized: Result, base: Result) -> _Finding:
    invalid = quantized.invalid or base.invalid
    if invalid:
        return _Finding(False, f"is not shown faster than {base.role} (the timing does not count: {invalid})")
    if quantized.status != "measured":
        return _Finding(True, "its speed was not measured", verified=False)
    pair = quantized.paired_with(base.role)
    if pair is None:
        return _Finding(False, f"is not shown faster than {base.role} (they were not compared)")
    seen = show_interval(Bounds(value=pair.ratio, low=pair.low, high=pair.high), "ratio")
    if pair.high < 1:
        return _Finding(True, f"takes {seen} the time of {base.role}")
    if quantized.precision in SMALLER and pair.low <= 1 and (quantized.size_bytes or 0) < (base.size_bytes or 0):
        share = show((quantized.size_bytes or 0) / (base.size_bytes or 1), "ratio")
        return _Finding(True, f"has {share} the bytes of {base.role} and is not shown slower ({seen} the time)")
    return _Finding(False, f"is not shown faster than {base.role} ({seen} the time, the interval must lie below 1)")


def _near(
    quantized: Result, base: Result, max_drop: float, min_snr: float, refused: str | None, load: Loader | None
) -> _Finding:
    """How near it is to float: in accuracy or the task's own share where that was measured, else in its outputs."""
    if (metric := _told_by(quantized, base)) is not None:
        return _drop(metric, quantized, base, max_drop, load)
    snr = _snr_against(quantized, base)
    if snr is None and refused:
        return _Finding(False, refused)
    if snr is None:
        return _Finding(True, "neither its accuracy nor its outputs were measured", verified=False)
    seen = f"{snr:.1f} dB from {base.role}'s (min_snr is {min_snr:.1f} dB), and its accuracy was not measured"
    if snr >= min_snr:
        return _Finding(True, f"its outputs are {seen}", verified=False)
    return _Finding(False, f"gives outputs only {seen}")


def _snr_against(quantized: Result, base: Result) -> float | None:
    """The signal-to-noise ratio against `base`, in dB: both are known against the reference, and noises add up."""
    if quantized.snr_db is None or base.role == "reference" or base.snr_db is None:
        return quantized.snr_db
    before, after = (10 ** (-seen / 10) for seen in (base.snr_db, quantized.snr_db))
    return float(-10 * math.log10(max(after - before, before / 100)))  # a hundredth is what a difference can tell


def _told_by(quantized: Result, base: Result) -> str | None:
    """The metric by which the task is told, where it is a share that can be lost and both have it."""
    if quantized.accuracy is not None and base.accuracy is not None:
        return "accuracy"
    mine, theirs = (r.metrics.scores if r.metrics else {} for r in (quantized, base))
    shares = (name for name, seen in mine.items() if seen.unit == "share" and name in theirs and seen.n >= LEAST)
    return next(shares, None)


def _value(metric: str, result: Result) -> float:
    seen = result.accuracy if metric == "accuracy" else result.metrics.scores[metric] if result.metrics else None
    assert seen is not None
    return seen.value


def _drop(metric: str, quantized: Result, base: Result, max_drop: float, load: Loader | None) -> _Finding:
    drop = _value(metric, base) - _value(metric, quantized)
    paired = _paired_drop(metric, quantized, base, load)
    change = "gains" if drop < 0 else "loses"
    seen = show_interval(turned(paired) if drop < 0 else paired, "points") if paired else show(abs(drop), "points")
    allowed = f"max_drop is {show(max_drop, 'points')}"
    if drop <= max_drop + 1e-12:
        return _Finding(True, f"{change} {seen} of {metric} against {base.role} ({allowed})")
    return _Finding(False, f"{change} {seen} of {metric} against {base.role} ({allowed})")


def _paired_drop(metric: str, quantized: Result, base: Result, load: Loader | None) -> Bounds | None:
    if load is None or quantized.predictions_file is None or base.predictions_file is None:
        return None
    mine, theirs = load(quantized.predictions_file), load(base.predictions_file)
    if not mine.same_samples(theirs) or (metric == "accuracy" and mine.labels is None):
        return None
    gap = paired_difference(metric, theirs, mine)
    return Bounds(value=gap.value, low=gap.low, high=gap.high)
