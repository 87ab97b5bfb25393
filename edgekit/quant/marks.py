"""The graph that is emitted, in floats: a mark wherever a quantizer and its dequantizer stand in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.quant.qdq import emit
from edgekit.quant.spec import QuantSpec, Variant
from edgekit.quant.view import typed

if TYPE_CHECKING:
    import onnx

BACKEND = "simulation"
"""No runtime: what is emitted for it has neither the rewrites nor the float islands of one of them."""


@dataclass(frozen=True)
class Mark:
    """An Identity node of the marked graph, and the tensor of the QuantSpec whose grid belongs there."""

    node: str
    tensor: str
    weight: bool


def marked(proto: onnx.ModelProto, spec: QuantSpec, variant: Variant) -> tuple[onnx.ModelProto, tuple[Mark, ...]]:
    """What `emit` makes of a graph, each Q/DQ an Identity, and every integer initializer the float one again.

    Whoever puts rounding in the place of the marks computes what the emitted graph computes.
    """
    import onnx

    from edgekit.graph.tools import drop_unused, replace_nodes

    graph = emit(proto, spec, variant, BACKEND)
    floats = {tensor.name: tensor for tensor in proto.graph.initializer}
    constants = {tensor.name for tensor in graph.graph.initializer}
    made = {node.output[0]: node for node in graph.graph.node}
    nodes, marks, gone = [], [], set()
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear":
            continue
        if node.op_type != "DequantizeLinear":
            nodes.append(node)
            continue
        tensor, source = node.name.removesuffix("/dequantize"), node.input[0]
        if source in constants:
            gone.add(tensor)
        source = tensor if source in constants else made[source].input[0]
        nodes.append(onnx.helper.make_node("Identity", [source], list(node.output), name=node.name))
        marks.append(Mark(node.name, tensor, tensor in spec.weights))
    replace_nodes(graph.graph, nodes)
    graph.graph.initializer.extend(floats[name] for name in sorted(gone - constants))
    drop_unused(graph.graph)
    return typed(graph), tuple(marks)
