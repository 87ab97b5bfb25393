"""Bundles timed again, side by side, because two sessions' times do not compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgekit.bundle import open_bundle
from edgekit.clauses import LATENCY, Clause, Placed, read_limit
from edgekit.compare import LOOKS, Comparison, at_percentile, compare
from edgekit.context import Progress
from edgekit.devices import Device, is_emulated, open_device, refuse_times
from edgekit.errors import MeasurementInvalidError, UsageError
from edgekit.metrics import CONFIDENCE
from edgekit.observed import Ratio
from edgekit.report.report import Result
from edgekit.rivals import AbsentError, Rival
from edgekit.stored import Stored
from edgekit.target import Target, load_target
from edgekit.validity import judge_pairs


@dataclass
class Again:
    """Times bundles again on a device, side by side. A pair is measured once, and judged by all clauses on it."""

    stored: Stored
    device: Device
    clauses: Sequence[Placed]
    progress: Progress
    seen: dict[tuple[str, str], Comparison | AbsentError] = field(default_factory=dict)

    def __call__(self, shipped: Result, rival: Rival, statistic: str) -> Ratio:
        """`edgekit.observed.Remeasure`."""
        key = (shipped.key, rival.name)
        if key not in self.seen:
            try:
                self.seen[key] = self._measure(shipped, rival)
            except (AbsentError, MeasurementInvalidError) as error:
                invalid = isinstance(error, MeasurementInvalidError) or error.invalid
                self.seen[key] = AbsentError(str(error), invalid=invalid)
        found = self.seen[key]
        if isinstance(found, AbsentError):
            raise found
        percent = float(statistic.removeprefix("p"))
        ratio = found if percent == 50 else at_percentile(found, percent)
        if ratio is None:
            raise AbsentError(f"its blocks of interleaved rounds hold too few samples for {statistic}")
        sure = self._confidence(shipped, rival)
        return Ratio(ratio.ratio, ratio.low, ratio.high, len(ratio.rounds), sure)

    @property
    def spoiled(self) -> bool:
        """Whether anything was measured in a bad state."""
        return any(isinstance(seen, AbsentError) and seen.invalid for seen in self.seen.values())

    def retry(self) -> None:
        """Forget what was measured in a bad state."""
        self.seen = {k: v for k, v in self.seen.items() if not (isinstance(v, AbsentError) and v.invalid)}

    def _measure(self, shipped: Result, rival: Rival) -> Comparison:
        if rival.bundle is None:
            raise AbsentError(f"the bundle of {rival.name} is not at hand, so it cannot be timed again")
        mine, theirs = open_bundle(self.stored.bundle(shipped)), open_bundle(rival.bundle())
        if mine.sha256 == theirs.sha256:
            return Comparison(1.0, 1.0, 1.0, ())  # the very same bytes
        self._check_kind(shipped)
        threads = (shipped.device.threads if shipped.device else None) or 1
        limits, rounds = self._limits(shipped, rival)
        with self.progress.task(f"{shipped.key} against {rival.name} on {self.device.name}"):
            sure = self._confidence(shipped, rival)
            seen = compare(self.device, mine, theirs, threads=threads, limits=limits, rounds=rounds, confidence=sure)
        judge_pairs(seen.info, self._max_temperature(shipped)).require()
        return seen

    def _limits(self, shipped: Result, rival: Rival) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Every ratio that a clause on this pair asks about, and after which rounds to look whether all are answered.

        Looks are at p50. Where another percentile is asked for, all rounds are taken, and there is one look.
        """
        found: list[float] = []
        looks: tuple[int, ...] = LOOKS
        for clause in self._about(shipped, rival):
            bounds = {kind: read_limit(clause, kind) for kind in clause.limits}
            found += [bound if kind == "max_ratio" else 1 + bound for kind, bound in bounds.items()]
            looks = looks if clause.name == "latency.p50" else LOOKS[-1:]
        return tuple(found), looks

    def _confidence(self, shipped: Result, rival: Rival) -> float:
        """The highest that a clause on this pair asks for: rounds are added until it is answered."""
        return max((clause.confidence for clause in self._about(shipped, rival)), default=CONFIDENCE)

    def _about(self, shipped: Result, rival: Rival) -> Iterator[Clause]:
        """The clauses on the latency of this pair."""
        for clause in (placed.clause for placed in self.clauses):
            about = clause.vs == rival.name and LATENCY.fullmatch(clause.name)
            if about and clause.target in (None, shipped.target) and clause.backend in (None, shipped.backend):
                yield clause

    def _check_kind(self, shipped: Result) -> None:
        """What another architecture takes for it says nothing about the target."""
        target, arch = self._target(shipped), self.device.describe().get("arch")
        if target is not None and arch not in (None, target.arch):
            raise AbsentError(f"{target.name} is {target.arch}, the device {self.device.name} is {arch}")

    def _max_temperature(self, shipped: Result) -> float | None:
        target = self._target(shipped)
        return target.max_temperature_c if target else None

    def _target(self, shipped: Result) -> Target | None:
        try:
            return load_target(shipped.target)
        except UsageError:  # a target of the recipe's own file
            return None


def opened(name: str, *, wait: bool, kill_on_interrupt: bool, progress: Progress) -> Device:
    """The device, which must be one that is timed.

    Raises:
        UsageError: nothing is called that.
        MeasurementInvalidError: it is emulated.
    """
    device = open_device(name, wait=wait, kill_on_interrupt=kill_on_interrupt, progress=progress)
    if is_emulated(device):
        refuse_times(name)
    return device
