"""What ONNX Runtime does with every operator, read from the graph that its optimizer writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.backends import Placement

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.spec import QuantSpec

CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})

KERNELS = frozenset(
    {"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QGemm"}
)
"""Kernels on integers whose names don't start with QLinear."""

MOVES = frozenset(
    {
    "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "NhwcMaxPool", "Pad",
    "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators whose result has the type of their first input."""


def is_kernel(node: onnx.NodeProto) -> bool:
    """Whether this is an 8-bit kernel."""
    return node.op_type.startswith("QLinear") or node.op_type in KERNELS


def eight_bit(proto: onnx.ModelProto) -> set[str]:
    """Names of the activations that are 8-bit integers; a QGemm without an output scale gives floats."""
    found: set[str] = set()
    for node in proto.graph.node:
        integer = node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear")
        integer |= node.op_type == "QGemm" and len(node.input) >= 9 and bool(node.input[8])
        integer |= node.op_type in MOVES and bool(node.input) and node.input[0] in found
        if integer:
            found.update(node.output)
    return found


def placement(optimized: onnx.ModelProto, emitted: onnx.ModelProto, spec: QuantSpec | None) -> Placement:
    """Operators in 8-bit kernels and in float ones, and why those are float; conversions between them don't count."""
    integers_of = eight_bit(optimized)
    owners = _owners(optimized, emitted, spec)
    integers: set[str] = set()
    floats: dict[str, onnx.NodeProto] = {}
    for node, owner in zip(optimized.graph.node, owners, strict=True):
        if node.op_type in CONVERSIONS or node.op_type == "Constant":
            continue
        if is_kernel(node) or (node.op_type in MOVES and node.output[0] in integers_of):
            integers.add(owner)
        else:
            floats.setdefault(owner, node)
    reasons = {} if spec is None else {name: _reason(name, node, spec) for name, node in floats.items()}
    return Placement(int8_nodes=len(integers - floats.keys()), float_nodes=len(floats), reasons=reasons)


def _owners(optimized: onnx.ModelProto, emitted: onnx.ModelProto, spec: QuantSpec | None) -> list[str]:
    """For each optimized node the operator of the source graph that it belongs to.

    By its name, by what it makes, or, inside a function that was written out, by what reads it. `conv/gate` belongs to
    `conv` where the emitter made it.
    """
    names = {node.name for node in emitted.graph.node}
    made = {output: node.name for node in emitted.graph.node for output in node.output if output}
    reader: dict[str, int] = {}
    nodes = list(optimized.graph.node)
    owners = [""] * len(nodes)
    for i in reversed(range(len(nodes))):
        node = nodes[i]
        known = node.name if node.name in names else next((made[name] for name in node.output if name in made), "")
        read = next((owners[reader[name]] for name in node.output if name in reader), "")
        owners[i] = known or read or node.name or f"{node.op_type}_{i}"
        reader.update(dict.fromkeys(node.input, i))
    if spec is None:
        return owners
    planned = {*spec.nodes, *(node for reasons in spec.keep_float.values() for node in reasons)}
    stems = {name: name.rpartition("/")[0] for name in owners if name not in planned}
    return [stems[name] if stems.get(name) in planned else name for name in owners]


def _reason(name: str, node: onnx.NodeProto, spec: QuantSpec) -> str:
    planned = spec.is_float(name, "onnxruntime")
    if planned:
        return planned
    if name in spec.nodes:
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
