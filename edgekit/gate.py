"""Clauses and a report to verdicts. Pure: nothing is run, nothing is written.

A verdict is a value and may be unsure: the interval of what was measured lies inside the limit (pass), outside (fail)
or across it (inconclusive); what was not measured is missing, what was measured in a bad state is invalid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

from edgekit.clauses import UNITS, Clause, check, read_limit
from edgekit.errors import ExitCode, UsageError, worst
from edgekit.metrics import CONFIDENCE, paired_difference, wilson_share
from edgekit.report.predictions import Predictions
from edgekit.report.quantities import show, show_interval, show_worse
from edgekit.report.report import Report, Result
from edgekit.report.values import Interval, Metrics, Observed
from edgekit.report.verdicts import Judgement, Verdict

T = TypeVar("T")

Loader = Callable[[str], Predictions]
"""Reads a predictions file by its path in the report."""

LATENCIES = ("latency.p50", "latency.p90", "latency.p95", "latency.p99")
TIMES = (*LATENCIES, "load", "first_inference")

_EXIT: dict[Verdict, ExitCode] = {
    "pass": ExitCode.PASS,
    "warn": ExitCode.PASS,
    "fail": ExitCode.GATE_FAILED,
    "missing": ExitCode.GATE_FAILED,
    "inconclusive": ExitCode.INCONCLUSIVE,
    "invalid": ExitCode.MEASUREMENT_INVALID,
}


class _AbsentError(Exception):
    """Why there is nothing to judge; `invalid` where there is something that must not be judged."""

    def __init__(self, reason: str, *, invalid: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.invalid = invalid


@dataclass(frozen=True)
class _Limit:
    """`min` or `max` of what is observed, in its unit; `text` says it to the user."""

    kind: str
    bound: float
    text: str

    def verdict(self, seen: Interval) -> Verdict:
        """Both ends of the interval inside: pass; both beyond: fail."""
        if self.kind == "max":
            return "pass" if seen.high <= self.bound else "fail" if seen.low > self.bound else "inconclusive"
        return "pass" if seen.low >= self.bound else "fail" if seen.high < self.bound else "inconclusive"


def judge(report: Report, clauses: Sequence[Clause], *, predictions: Loader | None = None) -> tuple[Judgement, ...]:
    """Every clause on every (target, backend) it covers, once each limit, on the bundle that ships.

    Raises:
        UsageError: a clause names no known metric, has no limit, or has one that cannot be read.
    """
    judged: list[Judgement] = []
    for clause in clauses:
        limits = _limits(clause)
        pairs = _covered(report, clause)
        for name, limit in limits:
            judged += [_judge_one(report, clause, name, limit, *pair, predictions) for pair in pairs]
            if not pairs:
                judged.append(_outcome(clause, name, None, None, "missing", _nothing_covered(clause)))
    return tuple(judged)


def exit_code(judgements: Iterable[Judgement], others: Iterable[int] = ()) -> ExitCode:
    """The code that a run ends with: that of the gate and of everything else that happened, by priority."""
    return worst([*(j.exit_code for j in judgements), *others])


def describe(clause: Clause, limit_name: str) -> str:
    """A clause's limit in one line.

    >>> describe(Clause(metric="accuracy", vs="reference", max_regression="1.0pp"), "max_regression")
    'accuracy vs reference: max_regression 1.0pp'
    """
    against = f" vs {clause.vs}" if clause.vs else ""
    return f"{clause.metric}{against}: {limit_name} {getattr(clause, limit_name)}"


def _limits(clause: Clause) -> list[tuple[str, _Limit]]:
    """The limits of a clause with their names, parsed."""
    check(clause)
    names = ("min", "max", "max_regression", "max_ratio")
    return [(name, _limit(clause, name)) for name in names if getattr(clause, name) is not None]


def _limit(clause: Clause, name: str) -> _Limit:
    bound, unit = read_limit(clause, name), UNITS[clause.metric]
    if name == "max_regression" and unit not in ("s", "bytes"):
        return _Limit("max", bound, f"at most {show(bound, _gap_unit(unit))} worse than {clause.vs}")
    if name in ("max_regression", "max_ratio"):
        ratio = bound if name == "max_ratio" else 1 + bound
        return _Limit("max", ratio, f"at most {ratio:g}x of {clause.vs}")
    return _Limit(name, bound, f"at {'most' if name == 'max' else 'least'} {show(bound, unit)}")


def _covered(report: Report, clause: Clause) -> list[tuple[str, str]]:
    """The (target, backend) pairs of a clause: of its target, or of every target that has a device."""
    pairs = [
        (entry.target, backend)
        for entry in report.targets
        if (entry.target == clause.target if clause.target else entry.device is not None)
        for backend in entry.backends
        if clause.backend in (None, backend)
    ]
    return list(dict.fromkeys(pairs))


def _nothing_covered(clause: Clause) -> str:
    backend = f" with backend {clause.backend!r}" if clause.backend else ""
    if clause.target:
        return f"the run has no target {clause.target!r}{backend}"
    return f"no target of the run has a device{backend}; name a target in the clause"


def _judge_one(
    report: Report, clause: Clause, name: str, limit: _Limit, target: str, backend: str, load: Loader | None
) -> Judgement:
    shipped = report.shipped(target, backend)
    try:
        if shipped is None:
            raise _AbsentError(_why_nothing_ships(report, target, backend))
        if clause.metric in TIMES and shipped.invalid:
            raise _AbsentError(f"the measurement does not count: {shipped.invalid}", invalid=True)
        if clause.metric in TIMES and not clause.vs and shipped.absolute_invalid:
            raise _AbsentError(f"an absolute time does not count: {shipped.absolute_invalid}", invalid=True)
        seen = _against(report, clause, name, shipped, load) if clause.vs else _absolute(clause, shipped, load)
    except _AbsentError as absent:
        verdict: Verdict = "invalid" if absent.invalid else "missing"
        return _outcome(clause, name, target, backend, verdict, absent.reason, limit=limit)
    except UsageError as error:
        return _outcome(clause, name, target, backend, "missing", str(error), limit=limit)
    verdict = limit.verdict(seen)
    said = show_worse(seen, seen.unit) if clause.vs and seen.unit != "ratio" else show_interval(seen, seen.unit)
    reason = f"{shipped.role} {shipped.precision}: {said}{_elsewhere(clause, shipped)}; {limit.text}"
    if verdict == "inconclusive":
        reason += "; the interval reaches across the limit: measure more"
    return _outcome(clause, name, target, backend, verdict, reason, seen, limit)


def _elsewhere(clause: Clause, shipped: Result) -> str:
    """Where a bundle without a device of its target was scored."""
    if shipped.status == "measured" or not shipped.measured_on or UNITS[clause.metric] == "bytes":
        return ""
    return f" (on {shipped.measured_on}, not on a device of the target)"


def _outcome(
    clause: Clause,
    name: str,
    target: str | None,
    backend: str | None,
    verdict: Verdict,
    reason: str,
    seen: Observed | None = None,
    limit: _Limit | None = None,
) -> Judgement:
    """The judgement after the clause's own wishes: severity, on_missing and on_inconclusive."""
    code = _EXIT[verdict]
    wish = {"missing": clause.on_missing, "inconclusive": clause.on_inconclusive}.get(verdict)
    if wish == "fail":
        code = ExitCode.GATE_FAILED
    elif wish in ("warn", "pass"):
        code = ExitCode.PASS
    if clause.severity == "warn":
        code = ExitCode.PASS
        verdict = "warn" if verdict == "fail" else verdict
    return Judgement(
        clause=describe(clause, name),
        target=target,
        backend=backend,
        verdict=verdict,
        observed=seen,
        limit=limit.bound if limit else None,
        reason=reason,
        exit_code=int(code),
    )


def _why_nothing_ships(report: Report, target: str, backend: str) -> str:
    same = [r for r in report.results if (r.target, r.backend) == (target, backend)]
    failed = [f"{r.role} {r.precision}: {r.reason or r.status}" for r in same if r.status == "failed"]
    return f"no bundle ships for {target} with {backend} ({'; '.join(failed) or 'none was built'})"


def _absolute(clause: Clause, result: Result, load: Loader | None) -> Observed:
    """The metric of one result with its interval at the clause's confidence."""
    metric, unit = clause.metric, UNITS[clause.metric]
    if metric in LATENCIES:
        return _latency(result, metric.partition(".")[2], clause.confidence)
    if metric in ("accuracy", "agreement"):
        share = _present(result.accuracy if metric == "accuracy" else _agreement(result), metric, result)
        again = wilson_share(share.value, share.n, clause.confidence)
        return Observed(value=share.value, low=again.low, high=again.high, n=share.n, unit=unit)
    if metric in ("precision", "recall", "f1", "loss"):
        return _averaged(_present(result.metrics, metric, result), metric, result, clause.confidence)
    exact = {
        "size": result.size_bytes,
        "bundle_size": result.bundle_bytes,
        "memory": result.peak_rss_bytes,
        "load": result.load_s,
        "first_inference": result.first_inference_s,
        "snr": result.snr_db,
    }
    return _exact(_present(exact[metric], metric, result), unit)


def _agreement(result: Result) -> Interval | None:
    if result.agreement is None or not result.agreement_n:
        return None
    return wilson_share(result.agreement, result.agreement_n)


def _against(report: Report, clause: Clause, name: str, shipped: Result, load: Loader | None) -> Observed:
    """How the shipped bundle compares with the one that the clause names: a ratio, or points lost."""
    metric, vs = clause.metric, clause.vs
    if vs in ("baseline", "previous"):
        raise _AbsentError(f"no comparable {vs} is stored")
    other = shipped if shipped.role == vs else report.result(shipped.target, shipped.backend, str(vs))
    if other is None or other.status == "failed":
        raise _AbsentError(f"there is no {vs} bundle of {shipped.target} with {shipped.backend} to compare with")
    if name == "max_ratio" or UNITS[metric] in ("s", "bytes"):
        return _ratio(clause, shipped, other)
    if shipped is other:
        return _exact(0.0, _gap_unit(UNITS[metric]))
    return _points_lost(clause, shipped, other, load)


def _ratio(clause: Clause, shipped: Result, other: Result) -> Observed:
    metric = clause.metric
    if shipped is other:
        return _exact(1.0, "ratio")
    if metric in LATENCIES:
        pair = shipped.paired_with(other.role, metric.partition(".")[2])
        if pair is None and any(p.vs == other.role and p.rounds == 0 for p in shipped.paired):
            return _exact(1.0, "ratio")  # the same compiled model: there was nothing to compare
        if pair is None:
            raise _AbsentError(f"{metric} of {shipped.role} and {other.role} was not compared in interleaved rounds")
        if other.invalid:
            raise _AbsentError(f"the measurement of {other.role} does not count: {other.invalid}", invalid=True)
        low, high = _rescaled(pair.ratio, pair.low, pair.high, clause.confidence)
        return Observed(value=pair.ratio, low=low, high=high, n=pair.rounds, unit="ratio")
    if metric in ("size", "bundle_size"):
        mine, theirs = _absolute(clause, shipped, None), _absolute(clause, other, None)
        return _exact(mine.value / theirs.value, "ratio")
    raise _AbsentError(f"no ratio of {metric} is measured; give max_ratio on a latency percentile or on size")


def _points_lost(clause: Clause, shipped: Result, other: Result, load: Loader | None) -> Observed:
    """How much worse the shipped bundle is on the same samples, positive is worse, from the predictions files."""
    if clause.metric not in ("accuracy", "precision", "recall", "f1", "loss"):
        raise _AbsentError(f"{clause.metric} has no paired difference; give an absolute limit")
    mine, theirs = _loaded(shipped, load), _loaded(other, load)
    if mine.labels is None:
        raise _AbsentError("the samples have no labels")
    if not mine.same_samples(theirs):
        raise _AbsentError(f"{shipped.role} and {other.role} were not scored on the same samples")
    worse, better = (mine, theirs) if clause.metric == "loss" else (theirs, mine)
    gap = paired_difference(clause.metric, worse, better, confidence=clause.confidence)
    return Observed(value=gap.value, low=gap.low, high=gap.high, n=gap.n, unit=_gap_unit(UNITS[clause.metric]))


def _loaded(result: Result, load: Loader | None) -> Predictions:
    if result.predictions_file is None or load is None:
        raise _AbsentError(f"{result.key} has no predictions file")
    return load(result.predictions_file)


def _latency(result: Result, statistic: str, confidence: float) -> Observed:
    seen = getattr(_present(result.latency_s, "latency", result), statistic)
    if seen is None:
        n = result.latency_s.n if result.latency_s else 0
        raise _AbsentError(f"{n} samples are too few for {statistic} of {result.key}")
    low, high = _rescaled(seen.value, seen.low, seen.high, confidence)
    return Observed(value=seen.value, low=low, high=high, n=result.latency_s.n if result.latency_s else 0, unit="s")


def _averaged(metrics: Metrics, metric: str, result: Result, confidence: float) -> Observed:
    value = _present(getattr(metrics, metric), metric, result)
    low, high = metrics.intervals.get(metric, (value, value))
    scale = _z(confidence) / _z(CONFIDENCE)
    n = metrics.accuracy.n if metrics.accuracy else 0
    return Observed(
        value=value, low=value - (value - low) * scale, high=value + (high - value) * scale, n=n, unit=UNITS[metric]
    )


def _present(value: T | None, metric: str, result: Result) -> T:
    if value is None:
        why = result.reason or f"the bundle is {result.status}, not measured"
        raise _AbsentError(f"{metric} of {result.key} was not measured ({why})")
    return value


def _exact(value: float, unit: str) -> Observed:
    return Observed(value=value, low=value, high=value, n=1, unit=unit)


def _rescaled(value: float, low: float, high: float, confidence: float) -> tuple[float, float]:
    """Ends of a stored 95 % interval of a positive quantity at another confidence, on the log scale."""
    scale = _z(confidence) / _z(CONFIDENCE)
    if scale == 1.0 or min(value, low) <= 0:
        return low, high
    return value * math.exp(scale * math.log(low / value)), value * math.exp(scale * math.log(high / value))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _gap_unit(unit: str) -> str:
    return "points" if unit == "share" else unit
