"""Ranges of activations from calibration samples, in a stream: memory does not grow with the number of samples.

Minimum and maximum are reduced inside the runtime. The percentile calibrator then makes a second pass that reads a
strided sample of every tensor back into a histogram over the range that is known by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.context import Progress, Silent
from edgekit.errors import UsageError
from edgekit.quant.plan import Plan
from edgekit.quant.session import open_session
from edgekit.quant.spec import Range
from edgekit.quant.view import GraphView, typed

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Batches = Callable[[], Iterable[Sequence[Array]]]
"""Makes a fresh stream of batches: one array for each input of the graph."""

Calibrator = Literal["minmax", "percentile"]

PERCENTILE = 99.99
BINS = 4096
SAMPLED = 32768
"""Values of a tensor that the percentile calibrator reads from one batch, at most about twice that."""

_SAFE = frozenset(
    {
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gather",
    "Gemm", "GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MatMul", "MaxPool",
    "Mul", "Pad", "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze",
    "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators that make NaN only out of NaN or infinity."""


@dataclass
class Extremes:
    """What one pass found: per tensor the smallest and largest value, and its largest element count in a batch."""

    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    batch_sizes: list[int] = field(default_factory=list)


def calibrate(
    proto: onnx.ModelProto,
    plan: Plan,
    batches: Batches,
    calibrator: Calibrator = "minmax",
    *,
    extremes: Extremes | None = None,
    progress: Progress | None = None,
) -> dict[str, Range]:
    """The range of every activation in `plan`. `extremes` of an earlier pass over the same batches saves one.

    Raises:
        UsageError: there are no batches, or an activation is not finite.
    """
    extremes = extremes or find_extremes(proto, plan, batches, progress=progress)
    low, high = dict(extremes.low), dict(extremes.high)
    if calibrator == "percentile":
        low, high = _percentiles(proto, plan, batches, extremes, progress or Silent())
    return finish(proto, plan, low, high, calibrator)


def find_extremes(
    proto: onnx.ModelProto, plan: Plan, batches: Batches, *, progress: Progress | None = None
) -> Extremes:
    """One pass: smallest and largest value of every activation that needs a range."""
    names = [name for name in plan.ranges if name not in plan.fixed]
    view = GraphView(typed(proto).graph)
    doubtful = _doubtful(view)
    session = open_session(_with_extremes(proto, names, doubtful))
    found = Extremes()
    with (progress or Silent()).task("calibrating: ranges") as task:
        for batch in batches():
            for name, array in zip(view.inputs, batch, strict=True):
                _refuse(name, not np.isfinite(array).all())
            values = session(batch)
            for name, (least, most, count) in zip(names, zip(*[iter(values)] * 3, strict=False), strict=False):
                low, high = float(least.min()), float(most.max())
                _refuse(name, not (np.isfinite(low) and np.isfinite(high)))
                found.low[name] = min(found.low.get(name, low), low)
                found.high[name] = max(found.high.get(name, high), high)
                found.count[name] = max(found.count.get(name, 0), int(count.reshape(-1)[0]))
            for name, total in zip(doubtful, values[3 * len(names) :], strict=True):
                _refuse(name, not np.isfinite(total).all())
            found.samples += len(batch[0])
            task.advance(len(batch[0]))
    if not found.samples:
        raise UsageError("Calibration got no samples. Give it some, a few hundred that look like real input.")
    return found


def finish(
    proto: onnx.ModelProto, plan: Plan, low: Mapping[str, float], high: Mapping[str, float], calibrator: str
) -> dict[str, Range]:
    """Fixed ranges, constants and ties on top of what was calibrated."""
    view = GraphView(proto.graph)
    ranges: dict[str, Range] = {}
    for name in plan.ranges:
        if name in plan.fixed:
            a, b = plan.fixed[name]
            ranges[name] = Range(low=a, high=b, calibrator="fixed", fixed=True)
        else:
            empty = low[name] > high[name]  # a tensor without values leaves what the reduction began with
            a, b = (0.0, 0.0) if empty else (low[name], high[name])
            ranges[name] = Range(low=a, high=b, calibrator=calibrator)
    for name in plan.constants:
        value = view.constant(name)
        if value is not None and value.size:
            _refuse(name, not np.isfinite(value).all())
            ranges[name] = Range(low=float(value.min()), high=float(value.max()), calibrator="constant", fixed=True)
    for group in plan.ties:
        together = [ranges[name] for name in group if name in ranges]
        a, b = min(r.low for r in together), max(r.high for r in together)
        for name in group:
            if name in ranges and (ranges[name].low, ranges[name].high) != (a, b):
                ranges[name] = Range(low=a, high=b, calibrator=f"{ranges[name].calibrator}, tied")
    return ranges


def _refuse(name: str, bad: bool) -> None:
    if bad:
        raise UsageError(
            f"Calibration met NaN or infinity in tensor {name!r}. Check the calibration samples, their preprocessing, "
            "and the model's weights."
        )


def _doubtful(view: GraphView) -> list[str]:
    """Tensors whose sum is checked: minimum and maximum skip NaN in both runtimes."""
    made = [name for node in view.nodes if node.op_type not in _SAFE for name in node.output if view.is_float(name)]
    return list(dict.fromkeys([*made, *(name for name in view.outputs if view.is_float(name))]))


def _copy_without_outputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    return copy


def _add(graph: onnx.GraphProto, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
    import onnx

    graph.node.append(onnx.helper.make_node(op, list(inputs), [output], name=output, **attributes))


def _constant(graph: onnx.GraphProto, name: str, value: Sequence[int]) -> str:
    import onnx

    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.int64), name))
    return name


def _with_extremes(proto: onnx.ModelProto, names: Sequence[str], sums: Sequence[str]) -> onnx.ModelProto:
    import onnx

    copy = _copy_without_outputs(proto)
    graph = copy.graph
    for name in names:
        for op, end, kind in (("ReduceMin", "low", 1), ("ReduceMax", "high", 1), ("Size", "count", 7)):
            output = f"{name}/{end}"
            _add(graph, op, [name], output, **({} if op == "Size" else {"keepdims": 0}))
            graph.output.append(onnx.helper.make_tensor_value_info(output, kind, []))
    for name in sums:
        _add(graph, "ReduceSum", [name], f"{name}/sum", keepdims=0)
        graph.output.append(onnx.helper.make_tensor_value_info(f"{name}/sum", onnx.TensorProto.FLOAT, []))
    return copy


def _with_samples(proto: onnx.ModelProto, steps: Mapping[str, int]) -> onnx.ModelProto:
    import onnx

    copy = _copy_without_outputs(proto)
    graph = copy.graph
    flat, zero, last = (
        _constant(graph, f"edgekit/{name}", [value]) for name, value in (("flat", -1), ("zero", 0), ("last", 2**62))
    )
    for name, step in steps.items():
        _add(graph, "Reshape", [name, flat], f"{name}/flat")
        stride = _constant(graph, f"{name}/stride", [step])
        _add(graph, "Slice", [f"{name}/flat", zero, last, zero, stride], f"{name}/sample")
        graph.output.append(onnx.helper.make_tensor_value_info(f"{name}/sample", onnx.TensorProto.FLOAT, [None]))
    return copy


def stride_for(count: int, wanted: int = SAMPLED) -> int:
    """A prime stride of at least `count / wanted` that does not divide `count`: it walks over all channels alike."""
    step = max(1, count // wanted)
    while step > 1 and (count % step == 0 or any(step % d == 0 for d in range(2, int(step**0.5) + 1))):
        step += 1
    return step


def _percentiles(
    proto: onnx.ModelProto, plan: Plan, batches: Batches, extremes: Extremes, progress: Progress
) -> tuple[dict[str, float], dict[str, float]]:
    names = [name for name in plan.ranges if name not in plan.fixed and extremes.high[name] > extremes.low[name]]
    session = open_session(_with_samples(proto, {name: stride_for(extremes.count[name]) for name in names}))
    histograms = {name: np.zeros(BINS, np.int64) for name in names}
    with progress.task("calibrating: percentiles", extremes.samples) as task:
        for batch in batches():
            for name, values in zip(names, session(batch), strict=True):
                low, high = extremes.low[name], extremes.high[name]
                position = (values - np.float32(low)) * np.float32(BINS / (high - low))
                histograms[name] += np.bincount(np.clip(position, 0, BINS - 1).astype(np.int32), minlength=BINS)
            task.advance(len(batch[0]))
    lows, highs = dict(extremes.low), dict(extremes.high)
    for name, histogram in histograms.items():
        lows[name], highs[name] = percentile_range(histogram, extremes.low[name], extremes.high[name])
    return lows, highs


def percentile_range(
    histogram: npt.NDArray[np.int64], low: float, high: float, percentile: float = PERCENTILE
) -> tuple[float, float]:
    """The interval that leaves out `100 - percentile` per cent of the values on either side, to a bin's width."""
    cumulated = np.cumsum(histogram)
    tail = cumulated[-1] * (100 - percentile) / 100
    first = int(np.searchsorted(cumulated, tail, side="right"))
    last = int(np.searchsorted(cumulated, cumulated[-1] - tail, side="left"))
    width = (high - low) / len(histogram)
    return low + first * width, low + (last + 1) * width
