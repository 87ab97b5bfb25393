"""Quantized operators with constant weights, seen as matrices: what corrections of weights and biases work on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.quant.plan import WEIGHTED
from edgekit.quant.view import GraphView, attribute

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """An operator that multiplies `source` by the constant `value`, named `weight`, and adds the initializer `bias`."""

    node: onnx.NodeProto
    weight: str
    value: Array
    bias: str | None
    groups: int

    @property
    def source(self) -> str:
        """The tensor that is multiplied."""
        return str(self.node.input[0])

    @property
    def rank(self) -> int:
        """Of `source` and the output; a MatMul's may be larger."""
        return self.value.ndim

    @property
    def inputs(self) -> int:
        """Channels of `source`."""
        if self.node.op_type == "Conv":
            return int(self.value.shape[1]) * self.groups
        return int(self.value.shape[0 if self.transposed else 1])

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        groups, outputs, _ = self.matrix(self.value).shape
        return int(groups * outputs)

    @property
    def transposed(self) -> bool:
        """Whether the weight lies `[in, out]`."""
        if self.node.op_type == "Gemm":
            return not attribute(self.node, "transB", 0)
        return self.node.op_type in ("MatMul", "ConvTranspose")

    def matrix(self, weight: Array) -> Array:
        """A weight of this shape as `[groups, outputs, inputs * taps]`, outputs and inputs counted within a group."""
        if not self.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        split = weight.reshape(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])
        return np.swapaxes(split, 1, 2).reshape(self.groups, weight.shape[1], -1)

    def unmatrix(self, matrix: Array) -> Array:
        """The inverse of `matrix`."""
        if not self.transposed:
            return matrix.reshape(self.value.shape)
        inputs, outputs, *taps = self.value.shape
        split = matrix.reshape(self.groups, outputs, inputs // self.groups, *taps)
        return np.ascontiguousarray(np.swapaxes(split, 1, 2)).reshape(self.value.shape)

    def response(self, weight: Array, mean: Array) -> Array:
        """What `weight` makes of an input that is `mean[c]` all over channel `c`, borders aside: one number an output.

        A dense operator has `[outputs]`, a grouped one the groups one after another.
        """
        matrix = self.matrix(weight.astype(np.float64))
        taps = matrix.reshape(*matrix.shape[:2], len(mean) // self.groups, -1).sum(axis=3)
        answer: Array = np.einsum("goi,gi->go", taps, mean.reshape(self.groups, -1)).reshape(-1)
        return answer


def layers(proto: onnx.ModelProto, nodes: Collection[str]) -> list[Layer]:
    """Those of `nodes` that have a constant float weight of a matrix or a kernel, in the graph's order."""
    view, wanted = GraphView(proto.graph), set(nodes)
    found = []
    for node in view.nodes:
        weight = view.constant(node.input[1]) if node.op_type in WEIGHTED and node.name in wanted else None
        if weight is None or weight.ndim < 2 or (node.op_type == "MatMul" and weight.ndim != 2):
            continue
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        groups = attribute(node, "group", 1) if node.op_type.startswith("Conv") else 1
        found.append(Layer(node, node.input[1], weight, bias, int(groups)))
    return found


def own_biases(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every Conv, ConvTranspose and Gemm has a bias vector that no other operator reads.

    Operators without one get zeros. Gemms with a bias of another shape, or none that is constant, are left alone.
    """
    import onnx

    from edgekit.graph.tools import set_initializer, tensor_names, unique_name

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    view, taken = GraphView(copy.graph), tensor_names(copy.graph)
    for layer in layers(copy, [node.name for node in copy.graph.node]):
        if layer.node.op_type == "MatMul" or layer.value.dtype != np.float32:
            continue
        shape = layer.matrix(layer.value).shape
        channels = shape[0] * shape[1]
        value = np.zeros(channels, np.float32) if layer.bias is None else view.constant(layer.bias)
        if value is None or value.size not in (1, channels):
            continue
        if layer.bias is not None and value.shape == (channels,) and len(view.consumers[layer.bias]) == 1:
            continue
        name = unique_name(f"{layer.node.name}_bias", taken)
        set_initializer(copy.graph, name, np.broadcast_to(value.reshape(-1), (channels,)).copy())
        del layer.node.input[2:]
        layer.node.input.append(name)
    from edgekit.graph.tools import drop_unused

    drop_unused(copy.graph)
    return copy
