"""Clauses and a report to verdicts. Pure: nothing is run, nothing is written.

A verdict is a value and may be unsure: the interval of what was measured lies inside the limit (pass), outside (fail)
or across it (inconclusive); what was not measured is missing, what was measured in a bad state is invalid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgekit.clauses import UNITS, Clause, Placed, check, read_limit
from edgekit.errors import DeviceError, ExitCode, UsageError, worst
from edgekit.observed import Evidence, gap_unit
from edgekit.report.quantities import show, show_interval, show_worse
from edgekit.report.report import Report, Result
from edgekit.report.values import Interval, Observed
from edgekit.report.verdicts import Judgement, Kind, Verdict
from edgekit.rivals import AbsentError, Loader

_EXIT: dict[Verdict, ExitCode] = {
    "pass": ExitCode.PASS,
    "warn": ExitCode.PASS,
    "fail": ExitCode.GATE_FAILED,
    "missing": ExitCode.GATE_FAILED,
    "inconclusive": ExitCode.INCONCLUSIVE,
    "invalid": ExitCode.MEASUREMENT_INVALID,
}

MOST_SAMPLES = 10**9
"""A number of samples beyond this is not worth saying."""


@dataclass(frozen=True)
class _Limit:
    """`min` or `max` of what is observed, in its unit; `text` says it to the user."""

    side: str
    bound: float
    text: str

    def verdict(self, seen: Interval) -> Verdict:
        """Both ends of the interval inside: pass; both beyond: fail."""
        if self.side == "max":
            return "pass" if seen.high <= self.bound else "fail" if seen.low > self.bound else "inconclusive"
        return "pass" if seen.low >= self.bound else "fail" if seen.high < self.bound else "inconclusive"


def judge(
    report: Report,
    clauses: Sequence[Clause | Placed],
    *,
    predictions: Loader | None = None,
    evidence: Evidence | None = None,
) -> tuple[Judgement, ...]:
    """Every clause on every (target, backend) it covers, once each limit, on the bundle that ships.

    `evidence` is where else to look, and what to compare with; by default the report and its `predictions` alone.

    Raises:
        UsageError: a clause names no known metric, has no limit, or has one that cannot be read.
    """
    found = evidence or Evidence(report, predictions)
    judged: list[Judgement] = []
    for entry in clauses:
        placed = entry if isinstance(entry, Placed) else Placed(entry)
        clause = placed.clause
        check(clause)
        pairs = _covered(report, clause)
        for kind in clause.limits:
            one = _One(found, placed, kind)  # type: ignore[arg-type]
            judged += [one.judge(*pair) for pair in pairs]
            if not pairs:
                judged.append(one.outcome(None, None, "missing", _nothing_covered(report, clause)))
    return tuple(judged)


def exit_code(judgements: Iterable[Judgement], others: Iterable[int] = ()) -> ExitCode:
    """The code that a run ends with: that of the gate and of everything else that happened, by priority."""
    return worst([*(j.exit_code for j in judgements), *others])


def describe(clause: Clause, kind: str) -> str:
    """A clause's limit in one line.

    >>> describe(Clause(metric="accuracy", vs="reference", max_regression="1.0pp"), "max_regression")
    'accuracy vs reference: max_regression 1.0pp'
    """
    against = f" vs {clause.vs}" if clause.vs else ""
    return f"{clause.name}{against}: {kind} {getattr(clause, kind)}"


@dataclass(frozen=True)
class _One:
    """One limit of one clause."""

    evidence: Evidence
    placed: Placed
    kind: Kind

    @property
    def clause(self) -> Clause:
        return self.placed.clause

    def judge(self, target: str, backend: str) -> Judgement:
        """The verdict on what ships for a target and backend. Nothing that is raised here counts as a verdict on it."""
        shipped = self.evidence.report.shipped(target, backend)
        try:
            if shipped is None:
                raise AbsentError(_why_nothing_ships(self.evidence.report, target, backend))
            seen = self._seen(shipped)
        except AbsentError as absent:
            verdict: Verdict = "invalid" if absent.invalid else "missing"
            judged = self.outcome(target, backend, verdict, absent.reason, shipped=shipped)
            waived = absent.damaged and self.clause.severity == "fail" and not judged.exit_code
            return judged.model_copy(update={"exit_code": int(ExitCode.GATE_FAILED)}) if waived else judged
        except DeviceError as error:
            judged = self.outcome(target, backend, "missing", str(error), shipped=shipped)
            return judged.model_copy(update={"exit_code": int(error.exit_code)})
        except UsageError as error:
            return self.outcome(target, backend, "missing", str(error), shipped=shipped)
        limit = self._limit(seen.unit)
        verdict, needed = limit.verdict(seen), None
        if verdict == "inconclusive":
            needed = samples_needed(seen, limit.bound)
        reason = self._reason(shipped, seen, limit, verdict, needed)
        return self.outcome(target, backend, verdict, reason, seen, limit, shipped, needed)

    def _seen(self, shipped: Result) -> Observed:
        if self.clause.vs:
            return self.evidence.against(self.clause, self.kind, shipped)
        return self.evidence.absolute(self.clause, shipped)

    def _limit(self, unit: str) -> _Limit:
        """The limit, in the unit of what was observed: that of a user's metric is known only now."""
        clause, kind = self.clause, self.kind
        if kind in ("min", "max"):
            bound = self._read(clause.unit or unit)
            return _Limit(kind, bound, f"at {'most' if kind == 'max' else 'least'} {show(bound, clause.unit or unit)}")
        bound = self._read(clause.unit)
        if kind == "max_regression" and clause.unit not in ("s", "bytes"):
            return _Limit("max", bound, f"at most {show(bound, gap_unit(clause.unit))} worse than {clause.vs}")
        ratio = bound if kind == "max_ratio" else 1 + bound
        return _Limit("max", ratio, f"at most {ratio:g}x of {clause.vs}")

    def _read(self, unit: str) -> float:
        try:
            return read_limit(self.clause, self.kind, unit)
        except UsageError as error:
            where = f"{self.placed.file}:{self.placed.line}: " if self.placed.file else ""
            raise UsageError(f"{where}{self.clause.name}: {self.kind}: {error}") from None

    def _reason(self, shipped: Result, seen: Observed, limit: _Limit, verdict: Verdict, needed: int | None) -> str:
        compared = self.clause.vs and seen.unit != "ratio"
        said = show_worse(seen, seen.unit) if compared else show_interval(seen, seen.unit)
        worst_of = f" ({seen.of})" if seen.of else ""
        reason = f"{shipped.role} {shipped.precision}: {said}{worst_of}{self._elsewhere(shipped)}; {limit.text}"
        if seen.left_out:
            reason += f"; not judged, for want of samples: {seen.left_out}"
        if verdict != "inconclusive":
            return reason
        what = "rounds" if seen.unit == "ratio" else "samples"
        tell = f": about {needed:,} {what} would tell" if needed else ": it lies on the limit, and more may never tell"
        return f"{reason}; the interval reaches across the limit{tell}"

    def _elsewhere(self, shipped: Result) -> str:
        """Where a bundle without a device of its target was scored."""
        if shipped.status == "measured" or not shipped.measured_on or self.clause.unit == "bytes":
            return ""
        return f" (on {shipped.measured_on}, not on a device of the target)"

    def outcome(
        self,
        target: str | None,
        backend: str | None,
        verdict: Verdict,
        reason: str,
        seen: Observed | None = None,
        limit: _Limit | None = None,
        shipped: Result | None = None,
        needed: int | None = None,
    ) -> Judgement:
        """The judgement after the clause's own wishes: severity, on_missing and on_inconclusive."""
        clause, code = self.clause, _EXIT[verdict]
        wish = {"missing": clause.on_missing, "inconclusive": clause.on_inconclusive}.get(verdict)
        if wish == "fail":
            code = ExitCode.GATE_FAILED
        elif wish in ("warn", "pass"):
            code = ExitCode.PASS
        if clause.severity == "warn":
            code = ExitCode.PASS
            verdict = "warn" if verdict == "fail" else verdict
        return Judgement(
            clause=describe(clause, self.kind),
            target=target,
            backend=backend,
            verdict=verdict,
            observed=seen,
            limit=limit.bound if limit else self._known_limit(),
            reason=reason,
            exit_code=int(code),
            metric=clause.name,
            kind=self.kind,
            vs=clause.vs,
            severity=clause.severity,
            confidence=clause.confidence,
            samples_needed=needed,
            bundle=shipped.bundle if shipped else None,
            file=self.placed.file,
            line=self.placed.line,
        )

    def _known_limit(self) -> float | None:
        known = self.clause.unit or self.clause.name in UNITS or self.kind == "max_ratio"
        return self._limit("").bound if known else None


def samples_needed(seen: Observed, bound: float) -> int | None:
    """How many samples would bring the interval to one side of the limit, were the value the truth; None if none would.

    The interval narrows as the square root of their number.

    >>> samples_needed(Observed(value=0.01, low=0.0, high=0.02, n=100), 0.02)
    100
    """
    gap = abs(bound - seen.value)
    reach = seen.high - seen.value if bound > seen.value else seen.value - seen.low
    if gap == 0 or reach <= 0 or seen.n < 2:
        return None
    needed = seen.n * (reach / gap) ** 2
    return math.ceil(needed) if needed <= MOST_SAMPLES else None


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


def _nothing_covered(report: Report, clause: Clause) -> str:
    backend = f" with backend {clause.backend!r}" if clause.backend else ""
    if clause.target:
        has = ", ".join(dict.fromkeys(entry.target for entry in report.targets)) or "none"
        return f"the run has no target {clause.target!r}{backend}; it has: {has}"
    return f"no target of the run has a device{backend}; name a target in the clause"


def _why_nothing_ships(report: Report, target: str, backend: str) -> str:
    same = [r for r in report.results if (r.target, r.backend) == (target, backend)]
    failed = [f"{r.role} {r.precision}: {r.reason or r.status}" for r in same if r.status == "failed"]
    return f"no bundle ships for {target} with {backend} ({'; '.join(failed) or 'none was built'})"
