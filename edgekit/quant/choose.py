"""Quantize with one calibrator, or with each and keep the one whose output is nearest to float."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.context import Progress, Silent
from edgekit.quant.build import build_spec
from edgekit.quant.calibrate import Batches, Calibrator, calibrate, find_extremes
from edgekit.quant.plan import Plan
from edgekit.quant.qdq import emit
from edgekit.quant.session import open_session
from edgekit.quant.spec import QuantSpec

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Calibration = Literal["auto", "minmax", "percentile"]
CALIBRATORS: tuple[Calibrator, ...] = ("minmax", "percentile")


@dataclass(frozen=True)
class Choice:
    """The QuantSpec, who calibrated it, and the signal-to-noise ratio in dB of each calibrator that was compared."""

    spec: QuantSpec
    calibrator: Calibrator
    snr_db: Mapping[str, float] = field(default_factory=dict)


def choose(
    proto: onnx.ModelProto,
    plan: Plan,
    batches: Batches,
    held_out: Batches,
    calibration: Calibration = "auto",
    *,
    source: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Calibrate on `batches`; with "auto", compare the calibrators on `held_out` in the affine grid."""
    progress = progress or Silent()
    if not plan.nodes:
        return Choice(build_spec(proto, plan, {}, source), "minmax")
    extremes = find_extremes(proto, plan, batches, progress=progress)
    candidates = CALIBRATORS if calibration == "auto" else (calibration,)
    specs: dict[Calibrator, QuantSpec] = {}
    for name in candidates:
        ranges = calibrate(proto, plan, batches, name, extremes=extremes, progress=progress)
        facts = {**(source or {}), "calibrator": name, "samples": str(extremes.samples)}
        specs[name] = build_spec(proto, plan, ranges, facts)
    if len(specs) == 1:
        return Choice(specs[candidates[0]], candidates[0])
    snr = compare(proto, list(specs.values()), held_out, progress=progress)
    measured: dict[str, float] = dict(zip(specs, snr, strict=True))
    best = max(specs, key=lambda name: measured[name])
    return Choice(specs[best], best, measured)


def compare(
    proto: onnx.ModelProto, specs: Sequence[QuantSpec], batches: Batches, *, progress: Progress | None = None
) -> list[float]:
    """The signal-to-noise ratio in dB of the quantized outputs against the float ones, for each spec."""
    runtime = "onnxruntime" if importlib.util.find_spec("onnxruntime") else "openvino"
    exact = open_session(proto)
    rounded = [open_session(emit(proto, spec, "affine", runtime), runtime=runtime) for spec in specs]
    signal, noise = 0.0, np.zeros(len(specs))
    with (progress or Silent()).task("comparing calibrators") as task:
        for batch in batches():
            wanted = [output.astype(np.float64) for output in exact(batch)]
            signal += sum(float(np.square(output).sum()) for output in wanted)
            for i, session in enumerate(rounded):
                seen = session(batch)
                noise[i] += sum(float(np.square(a - b).sum()) for a, b in zip(seen, wanted, strict=True))
            task.advance(len(batch[0]))
    return [snr_db(signal, float(value)) for value in noise]


def snr_db(signal: float, noise: float) -> float:
    """Energies to decibels; 200 dB stands for no difference at all.

    >>> snr_db(100.0, 1.0)
    20.0
    """
    return float(min(200.0, 10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30))))
