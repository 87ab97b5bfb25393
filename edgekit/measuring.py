"""All bundles of a run on their devices: what one device refuses stays with the result that it concerns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgekit.agent import state
from edgekit.assess import Oracle
from edgekit.backends import BACKENDS
from edgekit.building import Outcome
from edgekit.context import Progress
from edgekit.devices import Device, Devices, is_emulated
from edgekit.devices.local import StandIn
from edgekit.errors import DeviceError, MeasurementInvalidError, MissingDependencyError, UsageError
from edgekit.model import Role
from edgekit.profile import Profiler
from edgekit.recipe import PlannedTarget
from edgekit.registry import resolve
from edgekit.report.report import Result
from edgekit.stressing import Stress
from edgekit.target import lacking, overflows, overflows_here
from edgekit.workspace import Workspace

RIVALS: dict[Role, tuple[Role, ...]] = {"reference": (), "float": ("reference",), "quantized": ("reference", "float")}
"""Role -> the roles that it is compared with in interleaved rounds."""

SATURATING = ("onnxruntime", "openvino")
"""Backends that overflow sums of 8-bit products on x86 without VNNI."""

INEXACT = {"int8": ("openvino",), "int8_dynamic": ("onnxruntime", "openvino")}
"""Those of them that cannot be told to add up a precision's products in float."""


@dataclass
class Measuring:
    """Measures the outcomes of one run. Exit codes of what went wrong are added to `codes`."""

    space: Workspace
    oracle: Oracle
    progress: Progress
    rounds: int
    percentile: float
    codes: list[int]
    answers: dict[tuple[Device, str], dict[str, Any]] = field(default_factory=dict)
    profilers: dict[tuple[Device, int], Profiler] = field(default_factory=dict)
    devices: Devices = field(default_factory=Devices)
    stand_in: Device = field(default_factory=StandIn)
    stress: Stress | None = None

    def all(self, outcomes: Sequence[tuple[PlannedTarget, Outcome]]) -> list[Result]:
        """Answers first, times after: nothing else runs while a latency is taken."""
        answered = [(planned, self._answered(planned, outcome)) for planned, outcome in outcomes]
        if self.stress is not None:
            answered = self.stress.all(answered, self._profiler, self._guarded)
        return [self.timed(planned, outcome, [o for p, o in answered if p is planned]) for planned, outcome in answered]

    def timed(self, planned: PlannedTarget, outcome: Outcome, others: Sequence[Outcome] = ()) -> Result:
        """The result with its latency, and with its interleaved comparisons against other roles of its backend.

        An emulated device is never timed: its result says so, and no clause on a time finds a number.
        """
        bundle, result = outcome.bundle, outcome.result
        if planned.device is None or bundle is None or result.status == "failed":
            return result
        profiler = self._profiler(planned)
        if is_emulated(profiler.device):
            return self._guarded(outcome, lambda: profiler.untimed(result)).result
        done = self._guarded(outcome, lambda: profiler.timing(bundle, result, planned.target.max_temperature_c))
        for other in others:
            if done.result.status != "measured" or done.result.invalid:
                break
            if _are_rivals(result, other.result):
                done = self._against(profiler, done, other, planned.target.max_temperature_c)
        return done.result

    def _against(self, profiler: Profiler, done: Outcome, other: Outcome, limit: float | None) -> Outcome:
        bundle, rival = done.bundle, other.bundle
        assert bundle is not None and rival is not None
        return self._guarded(done, lambda: profiler.against(bundle, rival, other.result.role, done.result, limit))

    def _answered(self, planned: PlannedTarget, outcome: Outcome) -> Outcome:
        """The outcome with its answers, where its runtime is on the device (or, without a device, here)."""
        bundle, result = outcome.bundle, outcome.result
        runs = planned.device or (result.status == "built" and _runs_here(result.backend))
        if bundle is None or result.status == "failed" or not runs:
            return outcome
        return self._guarded(outcome, lambda: self._profiler(planned).answers(bundle, result))

    def _guarded(self, outcome: Outcome, measure: Callable[[], Result]) -> Outcome:
        try:
            return replace(outcome, result=measure())
        except MeasurementInvalidError as error:
            self.codes.append(int(error.exit_code))
            return replace(outcome, result=outcome.result.model_copy(update={**error.found, "invalid": str(error)}))
        except (DeviceError, MissingDependencyError) as error:
            self.codes.append(int(error.exit_code))
            failed = {"status": "failed", "reason": str(error)}
            return replace(outcome, result=outcome.result.model_copy(update=failed))

    def _profiler(self, planned: PlannedTarget) -> Profiler:
        key = self._device(planned), planned.threads
        if key not in self.profilers:
            looks = tuple(look for look in (self.rounds // 4, self.rounds // 2, self.rounds) if look >= 4)
            self.profilers[key] = Profiler(
                key[0], self.space, self.oracle, self.progress, planned.threads, looks, self.percentile, self.answers
            )
        return self.profilers[key]

    def _device(self, planned: PlannedTarget) -> Device:
        """The target's device; where it has none, this machine in its place."""
        if planned.device or not overflows_here(planned.target):
            return self.devices.open(planned.device or "local")
        return self.stand_in


def fitted(planned: PlannedTarget, devices: Devices | None = None) -> tuple[PlannedTarget, str | None]:
    """The target as its device can have it, and a line where that is not quite what the target says.

    Where sums of 8-bit products overflow on the device and not on the target, weights keep to 7 bits.

    Raises:
        UsageError: the device has another architecture, so that what it measures says nothing about the target.
    """
    if planned.device is None:
        return planned, None
    target, described = planned.target, (devices or Devices()).open(planned.device).describe()
    arch, has = described.get("arch", target.arch), described.get("features", ())
    if arch != target.arch:
        raise UsageError(
            f"Target {target.name!r} is {target.arch}, its device {planned.device!r} is {arch}: what is measured there "
            "says nothing about the target. Leave `device` out to build without timing."
        )
    missing = [feature for feature in lacking(target, has) if set(state.WANTED_FEATURES) & {*feature.split("|")}]
    said = f"{target.name}: its device {planned.device!r} lacks {', '.join(missing) or 'VNNI'}, which the target has: "
    if overflows(target, arch, has):
        backends = {
            name: facts.model_copy(update={"grid": "reduced_range"})
            if name in SATURATING and facts.grid == "affine"
            else facts
            for name, facts in target.backends.items()
        }
        return (
            replace(planned, target=target.model_copy(update={"backends": backends})),
            said + "8-bit sums would overflow there, so weights keep to 7 bits on "
            f"{' and '.join(SATURATING)}. int8 may be slower there than on the target.",
        )
    return planned, (said + "int8 may be slower or less accurate there than on the target.") if missing else None


def fit(targets: Sequence[PlannedTarget], devices: Devices) -> tuple[tuple[PlannedTarget, ...], list[str]]:
    """All targets as `fitted` has them, and its lines."""
    pairs = [fitted(planned, devices) for planned in targets]
    return tuple(planned for planned, _ in pairs), [line for _, line in pairs if line]


def saturated_here(results: Sequence[tuple[PlannedTarget, Result]]) -> list[str]:
    """A line for every target whose int8 was scored in its stead on this machine, where sums overflow and there not."""
    found: dict[str, dict[str, None]] = {}
    for planned, result in results:
        facts = planned.target.backends[result.backend]
        scored = planned.device is None and result.measured_on == "local" and facts.grid != "reduced_range"
        if scored and result.backend in INEXACT.get(result.precision, ()) and overflows_here(planned.target):
            found.setdefault(planned.target.name, {})[result.backend] = None
    return [
        f"{target}: its int8 for {' and '.join(backends)} was scored on this machine, whose sums of 8-bit products "
        "saturate (no VNNI): on the target it may be more accurate than is said here."
        for target, backends in found.items()
    ]


def _are_rivals(result: Result, other: Result) -> bool:
    """Whether `other` was built, for the same runtime, in a role that `result` is compared with."""
    return other.role in RIVALS[result.role] and other.backend == result.backend and other.status != "failed"


def _runs_here(backend: str) -> bool:
    return bool(resolve("backend", backend, BACKENDS, "edgekit.backends")().availability().runs)
