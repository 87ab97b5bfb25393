"""From a float .tflite to a static int8 one: the same graph with grids and integer constants put in.

Follows the 8-bit quantization specification of TensorFlow Lite (https://ai.google.dev/edge/litert/conversion/
tensorflow/quantization/quantization_spec): s8 activations per tensor, s8 weights per channel with zero point 0 in
[-127, 127], int32 biases at scale `input * weight`, and operators that must keep their input's grid.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.backends import _litert_flatbuffer as fb
from edgekit.errors import BuildError
from edgekit.quant.weights import quantize_bias


@dataclass(frozen=True)
class S8Grid:
    """`real = scale * (q - zero_point)` with q in [-128, 127]: the u8 grid of the same scale, shifted by 128."""

    scale: float
    zero_point: int

    def quantize(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
        """Round to nearest even, clipped."""
        q = np.rint(values.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        clipped: npt.NDArray[np.int8] = np.clip(q, -128, 127).astype(np.int8)
        return clipped


@dataclass(frozen=True)
class Kernel:
    """What an int8 kernel asks for: its operator version and the grids around it.

    `grids`: "free" (every tensor its own), "input" (the output takes that of the first input), "output" (all inputs
    take that of the output). `fixed` is an output grid that the kernel insists on. `weight_axis` is the output
    channel's axis of the constant second operand; a bias follows the last of `data_inputs` and it.
    """

    version: int
    grids: str = "free"
    fixed: S8Grid | None = None
    weight_axis: int | None = None
    data_inputs: tuple[int, ...] | None = None


_UNIT = S8Grid(1 / 256, -128)
KERNELS: dict[str, Kernel] = {
    "CONV_2D": Kernel(3, weight_axis=0, data_inputs=(0,)),
    "DEPTHWISE_CONV_2D": Kernel(3, weight_axis=3, data_inputs=(0,)),
    "FULLY_CONNECTED": Kernel(4, weight_axis=0, data_inputs=(0,)),
    "TRANSPOSE_CONV": Kernel(3, weight_axis=0, data_inputs=(2,)),
    "ADD": Kernel(2),
    "SUB": Kernel(2),
    "MUL": Kernel(2),
    "MEAN": Kernel(2, data_inputs=(0,)),
    "LOGISTIC": Kernel(2, fixed=_UNIT),
    "TANH": Kernel(2, fixed=S8Grid(1 / 128, 0)),
    "SOFTMAX": Kernel(2, fixed=_UNIT),
    "HARD_SWISH": Kernel(1),
    "LEAKY_RELU": Kernel(2),
    "RELU": Kernel(2),
    "RELU6": Kernel(2),
    "AVERAGE_POOL_2D": Kernel(2, "input"),
    "MAX_POOL_2D": Kernel(2, "input"),
    "RESHAPE": Kernel(1, "input", data_inputs=(0,)),
    "SQUEEZE": Kernel(2, "input"),
    "EXPAND_DIMS": Kernel(1, "input", data_inputs=(0,)),
    "TRANSPOSE": Kernel(2, "input", data_inputs=(0,)),
    "PAD": Kernel(2, "input", data_inputs=(0,)),
    "PADV2": Kernel(2, "input", data_inputs=(0, 2)),
    "MIRROR_PAD": Kernel(2, "input", data_inputs=(0,)),
    "SLICE": Kernel(2, "input", data_inputs=(0,)),
    "STRIDED_SLICE": Kernel(2, "input", data_inputs=(0,)),
    "SPLIT": Kernel(2, "input", data_inputs=(1,)),
    "GATHER": Kernel(2, "input", data_inputs=(0,)),
    "RESIZE_BILINEAR": Kernel(2, "input", data_inputs=(0,)),
    "RESIZE_NEAREST_NEIGHBOR": Kernel(2, "input", data_inputs=(0,)),
    "CONCATENATION": Kernel(2, "output"),
    "PACK": Kernel(2, "output"),
    "MAXIMUM": Kernel(2, "output"),
    "MINIMUM": Kernel(2, "output"),
}

CLAMPS = frozenset({"RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"})


@dataclass(frozen=True)
class Decision:
    """What to make of the float graph: all keys are positions in it.

    `grids` holds the grid of float activation tensors, `operators` those that run in int8 (or vanish: clamps between
    equal grids), `weights` the int8 value and the per-channel scales (one scale: per tensor) of constant weights.
    """

    grids: Mapping[int, S8Grid]
    operators: frozenset[int]
    weights: Mapping[int, tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]]


def data_inputs(name: str, operator: Any) -> list[int]:
    """The inputs of an operator that carry activations or constants on an activation grid."""
    kernel = KERNELS.get(name)
    inputs = fb.indices(operator.inputs)
    if kernel is None or kernel.data_inputs is None:
        return [index for index in inputs if index >= 0]
    return [inputs[position] for position in kernel.data_inputs if position < len(inputs)]


def rewrite(content: bytes, decision: Decision) -> bytes:
    """The int8 model. Graph inputs and outputs stay float: QUANTIZE and DEQUANTIZE stand at the ends."""
    model = fb.read(content)
    _Rewriter(model, decision).run()
    return fb.write(model)


class _Rewriter:
    """Walks the operators in order and keeps, for every float tensor, its int8 twins by grid."""

    def __init__(self, model: Any, decision: Decision) -> None:
        self.model, self.decision = model, decision
        (self.graph,) = model.subgraphs
        self.operators: list[Any] = []
        self.twins: dict[int, dict[S8Grid, int]] = {}
        computed = {index for operator in self.graph.operators for index in fb.indices(operator.outputs)}
        self.has_float = {index for index in range(len(self.graph.tensors)) if index not in computed}

    def run(self) -> None:
        for position, operator in enumerate(list(self.graph.operators)):
            name = fb.operator_name(self.model, operator)
            if position in self.decision.operators:
                self._integer(name, operator)
            else:
                for index in fb.indices(operator.inputs):
                    self._need_float(index)
                self.has_float.update(fb.indices(operator.outputs))
                self.operators.append(operator)
        for index in fb.indices(self.graph.outputs):
            self._need_float(index)
        self.graph.operators = self.operators

    def _integer(self, name: str, operator: Any) -> None:
        if name in CLAMPS and self._same_grid(operator):
            return
        kernel = KERNELS[name]
        inputs, outputs = fb.indices(operator.inputs), fb.indices(operator.outputs)
        data = data_inputs(name, operator)
        wanted = [self._grid(index) for index in outputs]
        common = wanted[0] if kernel.grids == "output" else self._grid(data[0])
        shared = kernel.grids == "output" or (len(data) > 1 and kernel.grids == "input")
        news = {index: self._need_int8(index, common if shared else self._grid(index)) for index in data}
        if kernel.weight_axis is not None:
            last = max(1, *(kernel.data_inputs or ()))
            news |= self._constants(inputs, last, kernel.weight_axis, common)
        operator.inputs = [news.get(index, index) for index in inputs]
        operator.opcodeIndex = self._code(name, operator, kernel.version)
        self.operators.append(operator)
        results = []
        for index, grid in zip(outputs, wanted, strict=True):
            made = kernel.fixed or (common if kernel.grids == "input" else grid)
            results.append(self._twin(index, made))
        operator.outputs = results

    def _same_grid(self, operator: Any) -> bool:
        """Drop a clamp between equal grids: the ends of its input's grid have clamped already."""
        (source,), (result,) = fb.indices(operator.inputs), fb.indices(operator.outputs)
        grid = self._grid(source)
        if grid != self._grid(result):
            return False
        self.twins.setdefault(result, {})[grid] = self._need_int8(source, grid)
        return True

    def _code(self, name: str, operator: Any, version: int) -> int:
        """Options of newer versions (such as FULLY_CONNECTED's keep_num_dims) must not be lost."""
        return fb.operator_code(self.model, name, max(version, self.model.operatorCodes[operator.opcodeIndex].version))

    def _grid(self, index: int) -> S8Grid:
        """The grid of an activation, or that of a constant's values."""
        grid = self.decision.grids.get(index)
        if grid is not None:
            return grid
        value = fb.constant(self.model, self.graph.tensors[index])
        if value is None:
            raise BuildError(f"LiteRT: tensor {fb.tensor_name(self.graph.tensors[index])!r} has no range.")
        return grid_of(float(value.min(initial=0)), float(value.max(initial=0)))

    def _constants(self, inputs: list[int], last: int, axis: int, grid: S8Grid) -> dict[int, int]:
        values, scales = self.decision.weights[inputs[1]]
        news = {inputs[1]: self._constant(inputs[1], values, scales, axis, "INT8")}
        place = last + 1
        if len(inputs) > place and inputs[place] >= 0:
            bias = fb.constant(self.model, self.graph.tensors[inputs[place]])
            assert bias is not None  # see `_litert_decide`: others stay float
            integers, steps = quantize_bias(bias, grid.scale, scales)
            news[inputs[place]] = self._constant(inputs[place], integers, steps, 0, "INT32")
        return news

    def _constant(
        self, index: int, values: npt.NDArray[Any], scales: npt.NDArray[np.float32], axis: int, kind: str
    ) -> int:
        tensor = self._copy(index, kind)
        tensor.buffer = fb.add_constant(self.model, values)
        tensor.quantization = parameters(scales, np.zeros(len(scales), np.int64), axis if len(scales) > 1 else 0)
        return len(self.graph.tensors) - 1

    def _copy(self, index: int, kind: str) -> Any:
        tensor = copy.copy(self.graph.tensors[index])
        tensor.type = getattr(fb.schema().TensorType, kind)
        self.graph.tensors.append(tensor)
        return tensor

    def _twin(self, index: int, grid: S8Grid) -> int:
        """A new int8 tensor for the values of float tensor `index`."""
        tensor = self._copy(index, "INT8")
        tensor.name = f"{fb.tensor_name(tensor)}_int8".encode()
        tensor.quantization = parameters(np.array([grid.scale], np.float32), np.array([grid.zero_point]), 0)
        twin = len(self.graph.tensors) - 1
        self.twins.setdefault(index, {})[grid] = twin
        return twin

    def _need_int8(self, index: int, grid: S8Grid) -> int:
        """The int8 twin of `index` on `grid`: there already, a constant, quantized, or moved over from another grid."""
        twins = self.twins.get(index, {})
        if grid in twins:
            return twins[grid]
        value = fb.constant(self.model, self.graph.tensors[index])
        if value is not None:
            twin = self._twin(index, grid)
            self.graph.tensors[twin].buffer = fb.add_constant(self.model, grid.quantize(value))
            return twin
        source = index if index in self.has_float else next(iter(twins.values()))
        version = 1 if source == index else 2
        twin = self._twin(index, grid)
        self._convert("QUANTIZE", version, source, twin)
        return twin

    def _need_float(self, index: int) -> None:
        if index < 0 or index in self.has_float:
            return
        self._convert("DEQUANTIZE", 2, next(iter(self.twins[index].values())), index)
        self.has_float.add(index)

    def _convert(self, name: str, version: int, source: int, result: int) -> None:
        operator = fb.schema().OperatorT()
        operator.opcodeIndex = fb.operator_code(self.model, name, version)
        operator.inputs, operator.outputs = [source], [result]
        self.operators.append(operator)


def grid_of(low: float, high: float) -> S8Grid:
    """The affine grid of a range, as `QuantSpec.grid` makes it."""
    from edgekit.quant.spec import QuantSpec, Range

    spec = QuantSpec(nodes=(), tensors={"x": Range(low=low, high=high, calibrator="values")}, weights={})
    grid = spec.grid("x", "affine")
    return S8Grid(grid.scale, grid.zero_point - 128)


def parameters(scales: npt.NDArray[np.float32], zero_points: npt.NDArray[Any], axis: int) -> Any:
    """The schema's quantization parameters of a tensor."""
    parameters = fb.schema().QuantizationParametersT()
    parameters.scale = scales.astype(np.float32)
    parameters.zeroPoint = zero_points.astype(np.int64)
    parameters.quantizedDimension = axis
    return parameters
