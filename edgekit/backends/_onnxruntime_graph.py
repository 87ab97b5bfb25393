"""What ONNX Runtime does with every operator, read from the graph that its optimizer writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.backends import Placement

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.spec import QuantSpec

CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})

KERNELS = frozenset({"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm"})
"""8-bit kernels whose names don't start with QLinear."""

MOVES = frozenset(
    {
    "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape",
    "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators whose result has the type of their first input."""


def _is_kernel(node: onnx.NodeProto) -> bool:
    return node.op_type.startswith("QLinear") or node.op_type in KERNELS


def _eight_bit(proto: onnx.ModelProto) -> set[str]:
    """Names of the activations that are 8-bit integers; a QGemm without an output scale gives floats."""
    found: set[str] = set()
    for node in proto.graph.node:
        integer = node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear")
        integer |= node.op_type == "QGemm" and len(node.input) >= 9 and bool(node.input[8])
        integer |= node.op_type in MOVES and bool(node.input) and node.input[0] in found
        if integer:
            found.update(node.output)
    return found


def placement(proto: onnx.ModelProto, spec: QuantSpec | None) -> Placement:
    """Operators in 8-bit kernels and in float ones, and why those are float. Conversions between the two don't count.

    `proto` is the optimized graph. Nodes keep the names of the operators they come from.
    """
    eight_bit = _eight_bit(proto)
    floats: dict[str, onnx.NodeProto] = {}
    integers = 0
    for i, node in enumerate(proto.graph.node):
        if node.op_type in CONVERSIONS or node.op_type == "Constant":
            continue
        if _is_kernel(node) or (node.op_type in MOVES and node.output[0] in eight_bit):
            integers += 1
        else:
            floats[node.name or f"{node.op_type}_{i}"] = node
    if spec is None:
        return Placement(int8_nodes=integers, float_nodes=len(floats))
    reasons = {name: _reason(node, spec) for name, node in floats.items()}
    return Placement(int8_nodes=integers, float_nodes=len(floats), reasons=reasons)


def _reason(node: onnx.NodeProto, spec: QuantSpec) -> str:
    planned = spec.is_float(node.name, "onnxruntime")
    if planned:
        return planned
    if node.name in spec.nodes:
        return f"ONNX Runtime did not fuse this {node.op_type} with its conversions"
    return f"{node.op_type} is not in the quantization plan"


def conversions(proto: onnx.ModelProto, spec: QuantSpec | None) -> tuple[str, ...]:
    """A line on conversions of activations between float and 8 bits inside the network."""
    if spec is None:
        return ()
    constants = {item.name for item in proto.graph.initializer}
    ends = {item.name for item in (*proto.graph.input, *proto.graph.output)}
    inside = [
        node.name
        for node in proto.graph.node
        if node.op_type in CONVERSIONS
        and node.input[0] not in constants
        and node.input[0] not in ends
        and node.output[0] not in ends
    ]
    if not inside:
        return ()
    return (f"{len(inside)} conversions between float and 8 bits inside the network, at {', '.join(inside[:5])}",)
