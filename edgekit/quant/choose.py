"""One pass over the calibration samples, and the QuantSpec that follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.context import Progress
from edgekit.quant.build import build_spec
from edgekit.quant.calibrate import Calibration, calibrate, calibrated, summary
from edgekit.quant.observe import Batches, Observed, observe
from edgekit.quant.plan import Plan
from edgekit.quant.spec import QuantSpec

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.layers import Layer


@dataclass(frozen=True)
class Choice:
    """The QuantSpec, what it was made from, and who chose how many of its ranges."""

    spec: QuantSpec
    observed: Observed
    calibrators: str = ""


def choose(
    proto: onnx.ModelProto,
    plan: Plan,
    batches: Batches,
    calibration: Calibration = "auto",
    *,
    layers: Sequence[Layer] = (),
    total: int | None = None,
    source: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Observe `batches`, `total` samples of them, once; choose every range; `layers` get means and moments besides.

    Raises:
        UsageError: there are no samples, or something in the network is not finite.
    """
    observed = Observed({})
    if plan.nodes:
        observed = observe(proto, calibrated(plan), batches, layers, total=total, progress=progress)
    return from_observed(proto, plan, observed, calibration, source=source)


def from_observed(
    proto: onnx.ModelProto,
    plan: Plan,
    observed: Observed,
    calibration: Calibration = "auto",
    *,
    source: Mapping[str, str] | None = None,
) -> Choice:
    """The QuantSpec of a calibrator, without another pass."""
    if not plan.nodes:
        return Choice(build_spec(proto, plan, {}, source), observed)
    ranges = calibrate(proto, plan, observed.histograms, calibration)
    facts = {**(source or {}), "calibrator": calibration, "samples": str(observed.samples)}
    return Choice(build_spec(proto, plan, ranges, facts), observed, summary(ranges))
