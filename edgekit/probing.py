"""How long a network takes on a target before it is done: what `RunContext.measure` answers.

A bundle is built as for shipping, and run by the agent on the target's device. Nothing of it stays behind.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.building import Builder, parts
from edgekit.bundle import Bundle
from edgekit.compare import Round, paired_ratio
from edgekit.context import Silent
from edgekit.devices import Device, Devices, is_emulated
from edgekit.errors import BuildError, UsageError
from edgekit.model import Model, TorchModel
from edgekit.recipe import PlannedTarget
from edgekit.workspace import FOLDERS, Context, Workspace

if TYPE_CHECKING:
    from edgekit.pipeline import Run
    from edgekit.stages import Stage
    from edgekit.target import Target

ROUNDS, CLOSE = (3, 6, 9), 1.05
"""After so many rounds an interval may do whose ends differ by no more than this factor."""
AGAINST = "probe-against"
"""Inside the work folder: bundles of networks that others are held against, until `cleared`."""
CALIBRATING = 32
"""Samples for a network that is only timed: ranges do not change what runs."""


@dataclass
class Probing:
    """Times networks in the middle of a run; `later` are the stages still to come."""

    job: Run
    later: Sequence[Stage]
    devices: Devices
    known: dict[tuple[str, str], tuple[Model, Bundle]] = field(default_factory=dict)
    """By target and backend: the model last held against, and its bundle."""

    def measure(
        self, model: Model, target: Target, *, backend: str = "", against: Model | None = None
    ) -> dict[str, Any]:
        """See `RunContext.measure`.

        Raises:
            BuildError: the backend cannot build it.
            UsageError: the target has no such backend, or is emulated.
            DeviceError: the device failed.
        """
        planned = next(p for p in self.job.recipe.targets if p.target is target)
        backend = backend or planned.backends[0]
        if backend not in planned.backends:
            raise UsageError(
                f"{target.name} is not built for {backend!r} in this recipe, but for {', '.join(planned.backends)}."
            )
        if planned.device is None:
            return {"latency_s": None, "precision": "fp32", "where": ""}
        device = self.devices.open(planned.device)
        if is_emulated(device):
            raise UsageError(f"{planned.device} is emulated: it is never timed. Name a device that is real.")
        with Scratch(self.job.space.work / "probe") as space:
            bundle = self._bundle(model, planned, backend, space)
            threads = planned.threads
            if against is None:
                bench = device.bench(bundle, threads=threads, percentile=50.0)
                return {"latency_s": statistics.median(bench.samples_s), **_about(bundle, planned, device)}
            other = self._against(against, planned, backend)
            rounds: list[Round] = []
            for total in ROUNDS:
                rounds += device.pairs(bundle, other, rounds=total - len(rounds), threads=threads).rounds
                ratio, low, high = paired_ratio(rounds)
                if high <= low * CLOSE:
                    break
        return {
            "latency_s": statistics.median(t for a, _, _, b in rounds for t in (a, b)),
            **_about(bundle, planned, device),
            "ratio": ratio,
            "low": low,
            "high": high,
        }

    def _against(self, model: Model, planned: PlannedTarget, backend: str) -> Bundle:
        key = planned.target.name, backend
        kept, bundle = self.known.get(key, (None, None))
        if bundle is None or kept is not model:
            folder = self.job.space.work / AGAINST / f"{planned.target.name}-{backend}"
            shutil.rmtree(folder, ignore_errors=True)
            bundle = self._bundle(model, planned, backend, opened(folder))
            self.known[key] = model, bundle
        return bundle

    def _bundle(self, model: Model, planned: PlannedTarget, backend: str, space: Workspace) -> Bundle:
        part = parts(self._as_shipped(model, planned, space))[-1]
        outcome = Builder(space, self.job.oracle).build(part, planned.target, backend)
        if outcome.bundle is None:
            raise BuildError(f"{backend} cannot build what is to be timed: {outcome.result.reason}")
        return outcome.bundle

    def _as_shipped(self, model: Model, planned: PlannedTarget, space: Workspace) -> Model:
        """Quantized, where a later stage does that: quickly, since only its time is asked for."""
        from edgekit.graph.crossing import to_onnx
        from edgekit.stages.quantize import FAST, Quantize

        found = next((stage for stage in self.later if isinstance(stage, Quantize)), None)
        if found is None:
            return model
        quick = found.model_copy(update={**FAST, "effort": "fast", "samples": CALIBRATING, "cache": False})
        job = self.job
        context = Context(
            job.data, (planned.target,), job.recipe.seed, space.work, None, Silent(), self.measure, job.recipe.base
        )
        return quick.apply(to_onnx(model) if isinstance(model, TorchModel) else model, context)


def _about(bundle: Bundle, planned: PlannedTarget, device: Device) -> dict[str, Any]:
    """The precision, and where it was timed."""
    manifest, machine = bundle.manifest, device.describe()
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    where = f"{device.name} {machine.get('fingerprint')}, {planned.threads} threads, {manifest.backend}, {versions}"
    return {"precision": manifest.precision, "where": where}


def cleared(space: Workspace) -> None:
    """Nothing is left of what was timed."""
    shutil.rmtree(space.work / AGAINST, ignore_errors=True)


def opened(root: Path) -> Workspace:
    """A workspace of its own."""
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    return Workspace(root)


class Scratch:
    """A workspace that is gone afterwards."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> Workspace:
        shutil.rmtree(self.root, ignore_errors=True)
        return opened(self.root)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
