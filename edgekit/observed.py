"""What a clause sees: one metric of one bundle with its interval, alone or against another bundle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.agent.stats import CONFIDENCE as LEVEL
from edgekit.agent.stats import least_samples, percentile
from edgekit.clauses import LATENCY, LOWER_IS_BETTER, Clause
from edgekit.metrics import CONFIDENCE, paired_accuracy, paired_difference, wilson_share, z
from edgekit.percentiles import interval, rate
from edgekit.report.predictions import Predictions
from edgekit.report.report import Latency, Report, Result
from edgekit.report.robust import Robustness
from edgekit.report.values import Interval, Observed
from edgekit.rivals import AbsentError, Loader, Rival, Rivals
from edgekit.robust.statistics import paired_mean
from edgekit.slices import Worst, worst_class, worst_class_drop, worst_slice, worst_slice_drop
from edgekit.tasks import LEAST, METRICS

T = TypeVar("T")
Samples = Callable[[str], npt.NDArray[np.float64] | None]
"""Reads raw latencies in seconds by their path in the report; None where the file did not come along."""

TIMES = ("load", "first_inference", "cold_start", "throughput", "energy")
"""Metrics besides the latencies that a bad state of the device makes worthless."""

NAMED = 5
"""Classes or slices of too few samples that are named."""

_MACRO = ("precision", "recall", "f1", "loss", "calibration_error")


@dataclass(frozen=True)
class Ratio:
    """The time of a bundle over that of its rival, from interleaved rounds, with the interval at `confidence`."""

    value: float
    low: float
    high: float
    rounds: int
    confidence: float = CONFIDENCE


Remeasure = Callable[[Result, Rival, str], Ratio]
"""Times a bundle and its rival again, in interleaved rounds, at a statistic such as `p50`.

Raises:
    AbsentError: it cannot be (there is no file of one of them), or the device was in no state to.
"""


@dataclass(frozen=True)
class Evidence:
    """Where what a report points to is read, and what it can be held against.

    Without `samples` a latency's interval is the stored one; without `rivals` nothing is known of a baseline. `bundle`
    gives the file of a result. Without `remeasure` the rounds of the report's own session are judged.
    """

    report: Report
    predictions: Loader | None = None
    samples: Samples | None = None
    rivals: Rivals | None = None
    bundle: Callable[[Result], Path] | None = None
    remeasure: Remeasure | None = None

    def absolute(self, clause: Clause, result: Result) -> Observed:
        """The metric of one result with its interval at the clause's confidence.

        Raises:
            AbsentError: it was not measured, or does not count.
        """
        if is_time(clause.name) and result.invalid:
            raise AbsentError(f"the measurement does not count: {result.invalid}", invalid=True)
        if is_time(clause.name) and result.absolute_invalid:
            raise AbsentError(f"an absolute time does not count: {result.absolute_invalid}", invalid=True)
        return self._alone(clause, result, self.predictions)

    def _alone(self, clause: Clause, result: Result, load: Loader | None) -> Observed:
        name, unit = clause.name, clause.unit
        if name.startswith("user."):
            return _present(result.user.get(name.removeprefix("user.")), name, result)
        if LATENCY.fullmatch(name):
            return self._latency(result, float(name.removeprefix("latency.p")), clause.confidence)
        if name == "throughput":
            return self._throughput(result, clause.confidence)
        if name in ("accuracy", "agreement") or name.startswith("robustness."):
            share = _present(_share(result, name), name, result)
            if name == "robustness.mean":
                low, high = _widened(share.value, (share.low, share.high), clause.confidence)
                return Observed(value=share.value, low=low, high=high, n=share.n, unit=unit)
            again = wilson_share(share.value, share.n, clause.confidence)
            return Observed(value=share.value, low=again.low, high=again.high, n=share.n, unit=unit)
        if name in _MACRO:
            return _averaged(clause, result)
        if name in METRICS:
            return _scored(clause, result)
        if name in ("worst_class", "worst_slice"):
            seen = _loaded(result, load)
            if name == "worst_class":
                return _of_worst(worst_class(seen, self._classes(), confidence=clause.confidence), unit)
            return _of_worst(worst_slice(seen, confidence=clause.confidence), unit)
        return exact(_present(_single(result, name), name, result), unit)

    def _classes(self) -> Sequence[str]:
        return self.report.data.classes if self.report.data else ()

    def _latency(self, result: Result, percent: float, confidence: float) -> Observed:
        """A percentile at the clause's confidence: from the samples where they are there, else from what is stored."""
        stored = _present(result.latency_s, "latency", result)
        # With fewer, the interval of a high confidence would end at the largest sample, and promise too much.
        if stored.n < (least := least_samples(percent, confidence=max(LEVEL, confidence))):
            raise AbsentError(f"{stored.n} samples are too few for p{percent:g} of {result.key}: it needs {least}")
        taken = self._taken(stored)
        if taken is not None:
            low, high = interval(taken, percent, confidence)
            return Observed(value=percentile(taken, percent), low=low, high=high, n=stored.n, unit="s")
        seen = getattr(stored, f"p{percent:g}", None)
        if seen is None:
            raise AbsentError(f"p{percent:g} of {result.key} is not in the report, and its samples are not there")
        low, high = _rescaled(seen.value, seen.low, seen.high, confidence)
        return Observed(value=seen.value, low=low, high=high, n=stored.n, unit="s")

    def _taken(self, stored: Latency) -> npt.NDArray[np.float64] | None:
        taken = self.samples(stored.samples_file) if self.samples and stored.samples_file else None
        if taken is not None and len(taken) != stored.n:
            has = f"{stored.samples_file} has {len(taken)} samples, the report says {stored.n}"
            raise AbsentError(has, damaged=True)
        return taken

    def _throughput(self, result: Result, confidence: float) -> Observed:
        stored = _present(result.latency_s, "latency", result)
        taken = self._taken(stored)
        if taken is None:
            raise AbsentError(f"the throughput of {result.key} comes from its samples, and they are not there")
        if stored.n < (least := least_samples(50, confidence=max(LEVEL, confidence))):
            raise AbsentError(f"{stored.n} samples are too few for the throughput of {result.key}: it needs {least}")
        value, low, high = rate(taken, confidence)
        return Observed(value=value, low=low, high=high, n=stored.n, unit="/s")

    def against(self, clause: Clause, kind: str, shipped: Result) -> Observed:
        """How the shipped bundle compares with the one that the clause names: a ratio, or points lost.

        Raises:
            AbsentError: there is nothing to compare with, or it does not count.
        """
        rival = self.rival(str(clause.vs), shipped)
        if kind == "max_ratio" or clause.unit in ("s", "bytes"):
            return self._ratio(clause, shipped, rival)
        if shipped is rival.result:
            return exact(0.0, gap_unit(clause.unit))
        return self._lost(clause, shipped, rival)

    def rival(self, vs: str, shipped: Result) -> Rival:
        """The bundle that `vs` names."""
        if vs in ("baseline", "previous"):
            if self.rivals is None:
                option = "--baselines" if vs == "baseline" else "--previous"
                raise AbsentError(f"no comparable {vs}: none was given ({option} of `edgekit gate` names it)")
            return self.rivals(vs, shipped)
        other = shipped if shipped.role == vs else self.report.result(shipped.target, shipped.backend, vs)
        if other is None or other.status == "failed":
            raise AbsentError(f"there is no {vs} bundle of {shipped.target} with {shipped.backend} to compare with")
        return Rival(vs, other, self.predictions, partial(self.bundle, other) if self.bundle else None)

    def _ratio(self, clause: Clause, shipped: Result, rival: Rival) -> Observed:
        other = rival.result
        if shipped is other:
            return exact(1.0, "ratio")
        if LATENCY.fullmatch(clause.name):
            return self._faster(clause, shipped, rival)
        if clause.name == "memory" and (rival.stale or shipped.invalid or other.invalid):
            why = rival.stale or shipped.invalid or other.invalid
            raise AbsentError(f"no comparable {rival.name}: {why}", invalid=not rival.stale)
        if rival.stale and clause.name.startswith("user."):
            raise AbsentError(f"no comparable {rival.name}: {rival.stale}")
        mine, theirs = self._alone(clause, shipped, None), self._alone(clause, other, None)
        if min(mine.low, theirs.low) <= 0:
            raise AbsentError(f"{clause.name} has no ratio: one of the two is not above 0")
        if mine.unit != theirs.unit:
            raise AbsentError(f"{clause.name} is in {mine.unit!r} now and was in {theirs.unit!r}")
        ends = mine.low / theirs.high, mine.high / theirs.low
        return Observed(value=mine.value / theirs.value, low=ends[0], high=ends[1], n=1, unit="ratio")

    def _faster(self, clause: Clause, shipped: Result, rival: Rival) -> Observed:
        """A ratio of latencies is one of interleaved rounds, of one session on one device, or it is none."""
        statistic, other = clause.name.partition(".")[2], rival.result
        if _same_file(shipped, other) or _same_model(shipped, rival):
            return exact(1.0, "ratio")  # the same compiled model: there is nothing to compare
        if self.remeasure is not None:
            seen = self.remeasure(shipped, rival, statistic)
            ends = seen.low, seen.high
            low, high = _of_rounds(seen.value, ends, seen.rounds, clause.confidence, seen.confidence)
            return Observed(value=seen.value, low=low, high=high, n=seen.rounds, unit="ratio")
        if shipped.invalid:
            raise AbsentError(f"the measurement does not count: {shipped.invalid}", invalid=True)
        if clause.vs in ("baseline", "previous"):
            raise AbsentError(
                f"{clause.name} was not compared with the {rival.name} in interleaved rounds; two sessions' times do "
                "not compare. Give --device"
            )
        pair = shipped.paired_with(other.role, statistic)
        if pair is None:
            raise AbsentError(
                f"{clause.name} of {shipped.role} and {other.role} was not compared in interleaved rounds"
            )
        if other.invalid:
            raise AbsentError(f"the measurement of {other.role} does not count: {other.invalid}", invalid=True)
        if pair.rounds < 2:
            raise AbsentError(f"{pair.rounds} interleaved rounds have no interval")
        low, high = _of_rounds(pair.ratio, (pair.low, pair.high), pair.rounds, clause.confidence)
        return Observed(value=pair.ratio, low=low, high=high, n=pair.rounds, unit="ratio")

    def _lost(self, clause: Clause, shipped: Result, rival: Rival) -> Observed:
        """How much worse the shipped bundle is on the same samples, positive is worse, from the predictions files."""
        name, unit = clause.name, gap_unit(clause.unit)
        if name == "int8_share":
            now, was = (_present(_single(r, name), name, r) for r in (shipped, rival.result))
            return exact(was - now, unit)
        if rival.stale:
            raise AbsentError(f"no comparable {rival.name}: {rival.stale}")
        if name.startswith("robustness."):
            return self._less_robust(clause, shipped, rival)
        mine, theirs = _loaded(shipped, self.predictions), _loaded(rival.result, rival.load)
        if name in METRICS and name != "top5":
            self._check_kept(mine, theirs, shipped.role, rival)
        else:
            self._check_same(mine, theirs, shipped.role, rival)
        if name in ("worst_class", "worst_slice"):
            if name == "worst_class":
                found = worst_class_drop(theirs, mine, self._classes(), confidence=clause.confidence)
            else:
                found = worst_slice_drop(theirs, mine, confidence=clause.confidence)
            return _of_worst(found, unit)
        worse, better = (mine, theirs) if name in LOWER_IS_BETTER else (theirs, mine)
        gap = paired_difference(name, worse, better, confidence=clause.confidence)
        if not math.isfinite(gap.value):
            raise AbsentError(f"{name}: that of some samples is not finite", damaged=True)
        if name in METRICS:
            _enough(name, gap.n)
        return Observed(value=gap.value, low=gap.low, high=gap.high, n=gap.n, unit=unit)

    def _check_same(self, mine: Predictions, theirs: Predictions, role: str, rival: Rival) -> None:
        if mine.labels is None:
            raise AbsentError("the samples have no labels")
        self._check_kept(mine, theirs, role, rival)

    def _check_kept(self, mine: Predictions, theirs: Predictions, role: str, rival: Rival) -> None:
        if not mine.same_samples(theirs):
            raise AbsentError(f"{role} and {rival.name} were not scored on the same samples")

    def _less_robust(self, clause: Clause, shipped: Result, rival: Rival) -> Observed:
        """Accuracy lost on the same changed samples."""
        name = clause.name.removeprefix("robustness.")
        mine, theirs = (_present(r.robustness, clause.name, r) for r in (shipped, rival.result))
        names = [c.name for c in mine.corruptions] if name == "mean" else [name]
        both = [
            (self._changed(theirs, one, rival.result, rival.load), self._changed(mine, one, shipped, self.predictions))
            for one in names
        ]
        for was, now in both:
            self._check_same(now, was, shipped.role, rival)
        if name == "mean":
            gap = paired_mean([was for was, _ in both], [now for _, now in both], clause.confidence)
        else:
            gap = paired_accuracy(both[0][0].correct(), both[0][1].correct(), clause.confidence)
        return Observed(value=gap.value, low=gap.low, high=gap.high, n=gap.n, unit=gap_unit(clause.unit))

    def _changed(self, seen: Robustness, name: str, result: Result, load: Loader | None) -> Predictions:
        condition = _present(seen.condition(name), f"robustness.{name}", result)
        if condition.predictions_file is None or load is None:
            raise AbsentError(f"{result.key} has no predictions of {name}")
        return load(condition.predictions_file)


def is_time(name: str) -> bool:
    """Whether a metric is worthless where the device was in a bad state."""
    return name in TIMES or LATENCY.fullmatch(name) is not None


def exact(value: float, unit: str) -> Observed:
    """What has no spread."""
    return Observed(value=value, low=value, high=value, n=1, unit=unit)


def gap_unit(unit: str) -> str:
    """The unit of a difference."""
    return "points" if unit == "share" else unit


def _share(result: Result, name: str) -> Interval | None:
    if name == "accuracy":
        return result.accuracy
    if name == "agreement":
        if result.agreement is None or not result.agreement_n:
            return None
        return wilson_share(result.agreement, result.agreement_n)
    if result.robustness is None:
        return None
    if name == "robustness.mean":
        return result.robustness.mean
    condition = result.robustness.condition(name.removeprefix("robustness."))
    return condition.accuracy if condition else None


def _single(result: Result, name: str) -> float | None:
    """Metrics that are one number."""
    if name == "int8_share":
        if result.int8_nodes is None or result.float_nodes is None:
            return None
        return result.int8_nodes / max(1, result.int8_nodes + result.float_nodes)
    if name == "cold_start":
        if result.load_s is None or result.first_inference_s is None:
            return None
        return result.load_s + result.first_inference_s
    if name == "energy" and result.energy_j is None and result.energy_reason:
        raise AbsentError(f"the energy of {result.key} was not measured: {result.energy_reason}")
    return {
        "size": result.size_bytes,
        "bundle_size": result.bundle_bytes,
        "memory": result.peak_rss_bytes,
        "load": result.load_s,
        "first_inference": result.first_inference_s,
        "energy": result.energy_j,
        "snr": result.snr_db,
    }[name]


def _averaged(clause: Clause, result: Result) -> Observed:
    name = clause.name
    metrics = _present(result.metrics, name, result)
    value = _present(getattr(metrics, name), name, result)
    ends = metrics.intervals.get(name, (value, value))
    low, high = _widened(value, (min(ends[0], value), max(ends[1], value)), clause.confidence)
    n = metrics.accuracy.n if metrics.accuracy else 0
    return Observed(value=value, low=low, high=high, n=n, unit=clause.unit)


def _enough(metric: str, n: int) -> None:
    """Raise where the interval of a task's metric says nothing for want of samples."""
    if n < LEAST and not METRICS[metric].hits:
        raise AbsentError(f"{metric} of {n} samples has no interval to judge by: it needs {LEAST}")


def _scored(clause: Clause, result: Result) -> Observed:
    """A metric of a task, from what is stored, at the clause's confidence."""
    kept = result.metrics.scores.get(clause.name) if result.metrics else None
    if kept is None and result.status != "failed" and result.notes:
        raise AbsentError(f"{clause.name} of {result.key} was not measured ({'; '.join(result.notes)})")
    seen = _present(kept, clause.name, result)
    _enough(clause.name, seen.n)
    low, high = _widened(seen.value, (seen.low, seen.high), clause.confidence)
    if clause.unit == "share":
        low, high = max(low, 0.0), min(high, 1.0)
    return Observed(value=seen.value, low=low, high=high, n=seen.n, unit=clause.unit)


def _of_worst(found: Worst, unit: str) -> Observed:
    more = len(found.skipped) - NAMED
    left_out = ", ".join(found.skipped[:NAMED]) + (f" and {more:,} more" if more > 0 else "")
    return Observed(
        value=found.value, low=min(found.low, found.value), high=max(found.high, found.value), n=found.n, unit=unit,
        of=found.name, left_out=left_out,
    )  # fmt: skip


def _loaded(result: Result, load: Loader | None) -> Predictions:
    if result.predictions_file is None or load is None:
        raise AbsentError(f"{result.key} has no predictions file")
    return load(result.predictions_file)


def _same_file(shipped: Result, other: Result) -> bool:
    return shipped.bundle_sha256 is not None and shipped.bundle_sha256 == other.bundle_sha256


def _same_model(shipped: Result, rival: Rival) -> bool:
    """Whether the run found both to hold the same compiled model."""
    return any(p.vs == rival.result.role and p.rounds == 0 for p in shipped.paired) and rival.name == rival.result.role


def _present(value: T | None, metric: str, result: Result) -> T:
    if value is None:
        why = result.reason or f"the bundle is {result.status}, not measured"
        raise AbsentError(f"{metric} of {result.key} was not measured ({why})")
    return value


def _rescaled(value: float, low: float, high: float, wanted: float, stored: float = CONFIDENCE) -> tuple[float, float]:
    """Ends of a stored interval of a positive quantity at another confidence, on the log scale."""
    scale = z(wanted) / z(stored)
    if scale == 1.0 or min(value, low) <= 0:
        return low, high
    return value * math.exp(scale * math.log(low / value)), value * math.exp(scale * math.log(high / value))


def _of_rounds(
    value: float, ends: tuple[float, float], rounds: int, wanted: float, stored: float = CONFIDENCE
) -> tuple[float, float]:
    """`_rescaled` for `paired_ratio`, whose few rounds ask for Student's t where the interval becomes wider."""
    if wanted <= stored or rounds < 2:
        return _rescaled(value, *ends, wanted, stored)
    from edgekit.compare import TRIMMED, t_quantile

    freedom = rounds - 2 * (rounds // TRIMMED) - 1
    scale = t_quantile((1 + wanted) / 2, freedom) / t_quantile((1 + stored) / 2, freedom)
    low, high = (value * math.exp(scale * math.log(end / value)) for end in ends)
    return low, high


def _widened(value: float, ends: tuple[float, float], wanted: float) -> tuple[float, float]:
    """Ends of a stored 95 % interval at another confidence."""
    scale = z(wanted) / z(CONFIDENCE)
    return value - (value - ends[0]) * scale, value + (ends[1] - value) * scale
