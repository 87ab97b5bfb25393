"""Operators whose weights are 2:4 sparse, as NVIDIA's sparse tensor cores want them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.graph.tools import attributes, initializers, producers

if TYPE_CHECKING:
    import onnx

_AXIS = {"Conv": 1, "Gemm": 0, "MatMul": -2}
"""Along which axis of the weight an operator sums."""


def two_of_four(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Names of convolutions and matrix products at least two of every four of whose weights are zero, along the sum.

    Weights may come through a DequantizeLinear. A convolution sums over `C` of its weight `[K, C, R, S]`; TensorRT
    wants the pattern there, at every output channel and kernel position, and C to be a multiple of four.
    """
    constants, made = initializers(proto.graph), producers(proto.graph)
    found = []
    for node in proto.graph.node:
        if node.op_type not in _AXIS or len(node.input) < 2:
            continue
        name, axis = node.input[1], _AXIS[node.op_type]
        if node.op_type == "Gemm" and attributes(node).get("transB", 0):
            axis = 1
        while name in made and made[name].op_type in ("DequantizeLinear", "QuantizeLinear", "Identity", "Cast"):
            name = made[name].input[0]
        if name in constants and is_two_of_four(constants[name], axis):
            found.append(node.name)
    return tuple(found)


def is_two_of_four(weight: np.ndarray, axis: int) -> bool:
    """Whether at least two of every four neighbours along the axis are zero, and not everything is.

    >>> is_two_of_four(np.array([[1, 0, 0, 2, 0, 0, 0, 3]]), 1), is_two_of_four(np.array([[1, 1, 1, 0]]), 1)
    (True, False)
    """
    if weight.ndim < 2 or weight.shape[axis] % 4:
        return False
    rows = np.moveaxis(weight != 0, axis, -1)
    groups = rows.reshape(-1, 4).sum(axis=1)
    return bool(groups.max(initial=0) <= 2 and groups.any())
