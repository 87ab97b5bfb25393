"""What TensorRT demands of a graph, checked before TensorRT sees it, and what it will do with every node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.backends import Placement
from edgekit.backends._emitted import initializers, nodes, operators
from edgekit.quant.legal import check_graph

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.spec import QuantSpec

HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that run in integers where both of their inputs come out of a DequantizeLinear."""
EPILOGUES = frozenset({"Relu", "Clip", "Add", "Mul", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu"})
"""Element by element: fused behind an integer operator, or integer themselves between DQ and Q."""
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Concat"})


def check_symmetric(proto: onnx.ModelProto) -> None:
    """The promise of the symmetric variant: zero points are 0 and signed, activations per tensor, biases float.

    Raises:
        BuildError: some node breaks it; all that do are named, each with what is wrong.
    """
    check_graph(proto, "tensorrt")


def planned(proto: onnx.ModelProto, spec: QuantSpec | None) -> Placement:
    """Operators between DQ and Q count as integer. As planned from the graph: only a GPU shows the engine's own."""
    known = operators(proto)
    if spec is None:
        return Placement(int8_nodes=0, float_nodes=len(known))
    dequantized = {o for n in proto.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    constants, integer, reasons = initializers(proto), set(dequantized), {}
    for node in proto.graph.node:
        if node.name not in known:
            continue
        data = node.input[:2] if node.op_type in HEAVY else [i for i in node.input if i and i not in constants]
        source = dequantized if node.op_type in HEAVY | POOLS else integer
        if node.op_type in HEAVY | POOLS | EPILOGUES and data and all(i in source for i in data):
            integer.update(node.output)
        else:
            reasons[node.name] = spec.is_float(node.name, "tensorrt") or _why_float(node, set(data), dequantized)
    return Placement(int8_nodes=len(known) - len(reasons), float_nodes=len(reasons), reasons=reasons)


def _why_float(node: onnx.NodeProto, data: set[str], dequantized: set[str]) -> str:
    if node.op_type not in HEAVY | POOLS | EPILOGUES:
        return f"TensorRT computes {node.op_type} in float"
    absent = sorted(data - dequantized)
    return f"{', '.join(absent)} of this {node.op_type} is not quantized in the graph"


def half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float16 inside, with float32 inputs and outputs.

    A strongly typed network has no precision flags: the graph itself must say it.
    """
    import onnx
    from onnx import TensorProto, helper

    lowered = onnx.ModelProto()
    lowered.CopyFrom(proto)
    graph = lowered.graph
    scales = {node.input[2] for node in nodes(graph) if node.op_type == "Resize" and len(node.input) > 2}
    for tensor in graph.initializer:
        if tensor.name not in scales:
            _halve(tensor)
    for node in nodes(graph):
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.HasField("t"):
                _halve(attribute.t)
    del graph.value_info[:]
    constants = {tensor.name for tensor in graph.initializer}
    floats = TensorProto.FLOAT
    entering = [i.name for i in graph.input if i.name not in constants and i.type.tensor_type.elem_type == floats]
    leaving = [o.name for o in graph.output if o.type.tensor_type.elem_type == floats]
    for node in nodes(graph):
        node.input[:] = [f"{i}__half" if i in entering or i in leaving else i for i in node.input]
        node.output[:] = [f"{o}__half" if o in leaving else o for o in node.output]
    casts = [helper.make_node("Cast", [n], [f"{n}__half"], f"{n}__to_half", to=TensorProto.FLOAT16) for n in entering]
    ends = [helper.make_node("Cast", [f"{n}__half"], [n], f"{n}__to_float", to=TensorProto.FLOAT) for n in leaving]
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *body, *ends])
    return lowered


def _halve(tensor: onnx.TensorProto) -> None:
    """A float32 constant in float16; numbers beyond its range become its largest."""
    import onnx

    if tensor.data_type == onnx.TensorProto.FLOAT:
        values = onnx.numpy_helper.to_array(tensor)
        limit = np.finfo(np.float16).max
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.clip(values, -limit, limit).astype(np.float16), tensor.name))
