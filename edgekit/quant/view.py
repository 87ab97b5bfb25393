"""A read-only index over an ONNX graph: who makes a tensor, who reads it, which are constants."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.spec import Grid


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, or `default`."""
    import onnx

    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def typed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types of all tensors; the same object if it has them already."""
    import onnx

    graph = proto.graph
    known = {value.name for value in (*graph.value_info, *graph.output)}
    if all(name in known for node in graph.node for name in node.output if name):
        return proto
    from edgekit.graph.large import lightly

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return lightly(copy, onnx.shape_inference.infer_shapes)


class GraphView:
    """Lookups over one graph; build a new one after the graph changes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        import onnx

        from edgekit.graph.tools import reads

        self.nodes = tuple(graph.node)
        self.initializers = {item.name: item for item in graph.initializer}
        self.inputs = tuple(item.name for item in graph.input if item.name not in self.initializers)
        self.outputs = tuple(item.name for item in graph.output)
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in reads(node):  # what the bodies of If and Loop take from outside too
                self.consumers[name].append(node)
        self._types = {item.name: item.data_type for item in graph.initializer}
        for value in (*graph.input, *graph.output, *graph.value_info):
            self._types[value.name] = value.type.tensor_type.elem_type
        self._float = onnx.TensorProto.FLOAT

    def is_float(self, name: str) -> bool:
        """Whether a tensor is known to be float32."""
        return self._types.get(name) == self._float

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is an initializer."""
        return name in self.initializers

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of an initializer, or None for anything else (an omitted input too)."""
        import onnx

        return onnx.numpy_helper.to_array(self.initializers[name]) if name in self.initializers else None

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """The single reader of a tensor that is no graph output; None where there are others."""
        readers = self.consumers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def clip_bounds(node: onnx.NodeProto, view: GraphView) -> tuple[float, float] | None:
    """What a Relu or Clip limits its input to; None for another operator or bounds that are not constant."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = [float(attribute(node, "min", -np.inf)), float(attribute(node, "max", np.inf))]
    for i, name in enumerate(node.input[1:3]):
        if name:
            value = view.constant(name)
            if value is None:
                return None
            bounds[i] = float(value.reshape(-1)[0])
    return bounds[0], bounds[1]


def within(grid: Grid, bounds: tuple[float, float]) -> bool:
    """Whether every value of the grid lies inside `bounds`, to half a step."""
    low, high = grid.scale * (grid.low - grid.zero_point), grid.scale * (grid.high - grid.zero_point)
    return low >= bounds[0] - grid.scale / 2 and high <= bounds[1] + grid.scale / 2
