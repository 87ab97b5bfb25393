"""From what one pass observed to the range of every activation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from edgekit.quant.histogram import CALIBRATORS, Histogram, Interval, choose
from edgekit.quant.observe import refuse
from edgekit.quant.plan import Plan
from edgekit.quant.spec import Range
from edgekit.quant.view import GraphView

if TYPE_CHECKING:
    import onnx

Calibration = Literal["auto", "minmax", "percentile", "entropy", "mse"]


def calibrated(plan: Plan) -> tuple[str, ...]:
    """The activations of `plan` whose range is not known beforehand."""
    return tuple(name for name in plan.ranges if name not in plan.fixed)


def calibrate(
    proto: onnx.ModelProto, plan: Plan, histograms: Mapping[str, Histogram], calibration: Calibration = "auto"
) -> dict[str, Range]:
    """The range of every activation and constant operand in `plan`, ties included.

    With "auto" each tensor gets the calibrator whose range has the least expected squared error on it.
    """
    found: dict[str, tuple[str, Interval]] = {}
    for name in calibrated(plan):
        histogram = histograms[name]
        if histogram.low > histogram.high:  # it never held a value
            found[name] = "minmax", (0.0, 0.0)
            continue
        found[name] = choose(histogram) if calibration == "auto" else (calibration, CALIBRATORS[calibration](histogram))
    return finish(proto, plan, found)


def finish(proto: onnx.ModelProto, plan: Plan, found: Mapping[str, tuple[str, Interval]]) -> dict[str, Range]:
    """Fixed ranges, constants and ties on top of what was calibrated: per tensor the calibrator and its interval."""
    view = GraphView(proto.graph)
    ranges: dict[str, Range] = {}
    for name in plan.ranges:
        if name in plan.fixed:
            a, b = plan.fixed[name]
            ranges[name] = Range(low=a, high=b, calibrator="fixed", fixed=True)
        else:
            who, (a, b) = found[name]
            ranges[name] = Range(low=a, high=b, calibrator=who)
    for name in plan.constants:
        value = view.constant(name)
        if value is not None and value.size:
            refuse(name, not bool((abs(value) < float("inf")).all()))
            ranges[name] = Range(low=float(value.min()), high=float(value.max()), calibrator="constant", fixed=True)
    for group in plan.ties:
        together = [ranges[name] for name in group if name in ranges]
        a, b = min(r.low for r in together), max(r.high for r in together)
        for name in group:
            if name in ranges and (ranges[name].low, ranges[name].high) != (a, b):
                ranges[name] = Range(low=a, high=b, calibrator=f"{ranges[name].calibrator}, tied")
    return ranges


def summary(ranges: Mapping[str, Range]) -> str:
    """Who chose how many ranges, such as `mse 40, minmax 12`; what is fixed or constant does not count."""
    counted = Counter(r.calibrator.removesuffix(", tied") for r in ranges.values() if not r.fixed)
    return ", ".join(f"{name} {count}" for name, count in counted.most_common())
