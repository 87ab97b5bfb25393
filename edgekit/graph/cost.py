"""What a graph costs: multiply-accumulates, parameters, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from edgekit.errors import UsageError
from edgekit.graph.large import model_bytes
from edgekit.graph.tools import attributes, shapes, with_sizes

Shapes = Mapping[str, tuple[int | str | None, ...]]

QUANTIZED = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4})
FLOATS = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
)


@dataclass(frozen=True)
class Cost:
    """For one sample: `macs` of all convolutions and matrix products, `by_node` those of each, by node name.

    `macs` is None where the shape that some operator works on is not known (behind a Loop, for example).
    `parameters` counts the numbers in initializers that are weights (floats; 8- and 4-bit integers), single numbers
    left out; `bytes` is the size of the model as an ONNX file.
    """

    macs: int | None
    parameters: int
    bytes: int
    by_node: dict[str, int]


def cost(proto: onnx.ModelProto, sizes: Mapping[str, int] | None = None) -> Cost:
    """Count for one sample. `sizes` gives dynamic axes an extent by name; the first axis is else 1, others 64."""
    known = _shapes(proto, sizes)
    by_node, whole = {}, True
    for node in proto.graph.node:
        count = COUNTED.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        try:
            if count is not None:
                by_node[node.name] = count(node, known)
        except UsageError:
            whole = False
    parameters = 0
    for tensor in proto.graph.initializer:
        if tensor.data_type in FLOATS | QUANTIZED and math.prod(tensor.dims) > 1:
            parameters += math.prod(tensor.dims)
    return Cost(sum(by_node.values()) if whole else None, parameters, model_bytes(proto), by_node)


def _shapes(proto: onnx.ModelProto, sizes: Mapping[str, int] | None) -> Shapes:
    """Shapes of all tensors. Where inference gets lost in shape arithmetic, that is computed first."""
    fixed = with_sizes(proto, sizes)
    known: Shapes = shapes(fixed.graph)
    counted = [name for node in fixed.graph.node if node.op_type in COUNTED for name in node.output]
    if all(isinstance(d, int) for name in counted for d in known.get(name, (None,))):
        return known
    from edgekit.graph.normalise import normalise

    return {**known, **shapes(normalise(fixed).graph)}


def _known(name: str, known: Shapes) -> tuple[int, ...]:
    shape = known.get(name)
    if shape is None or any(not isinstance(d, int) for d in shape):
        raise UsageError(f"The shape of {name!r} is not known: the work on it cannot be counted.")
    return tuple(int(d) for d in shape if isinstance(d, int))


def _convolution(node: onnx.NodeProto, known: Shapes) -> int:
    weight = _known(node.input[1], known)
    return math.prod(_known(node.output[0], known)) * math.prod(weight[1:])


def _transposed(node: onnx.NodeProto, known: Shapes) -> int:
    weight = _known(node.input[1], known)
    return math.prod(_known(node.input[0], known)) * math.prod(weight[1:])


def _gemm(node: onnx.NodeProto, known: Shapes) -> int:
    left = _known(node.input[0], known)
    inner = left[0] if attributes(node).get("transA", 0) else left[1]
    return math.prod(_known(node.output[0], known)) * inner


def _matmul(node: onnx.NodeProto, known: Shapes) -> int:
    return math.prod(_known(node.output[0], known)) * _known(node.input[0], known)[-1]


COUNTED = {"Conv": _convolution, "ConvTranspose": _transposed, "Gemm": _gemm, "MatMul": _matmul}
"""The operators whose work is counted; all others are small beside them."""
