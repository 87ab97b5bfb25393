"""Rules that recognise an operator in the parts that exporters write it in."""

from __future__ import annotations

import math

import onnx

from edgekit.graph.fold_graph import FoldGraph
from edgekit.graph.tools import attributes

SIXTH = 1 / 6


def fold_activation(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    """`clip(x + 3, 0, 6) / 6` is HardSigmoid; `x` times that, in either order of the factors, is HardSwish."""
    return _hard_sigmoid(graph, node) or _hard_swish(graph, node)


def _sixth(graph: FoldGraph, node: onnx.NodeProto | None) -> str | None:
    """What a node divides by six, or None."""
    if node is None or node.op_type not in ("Div", "Mul"):
        return None
    operands = graph.operands(node)
    if operands is None or (node.op_type == "Div" and operands != (0, 1)):
        return None
    number = graph.number(node, operands[1])
    wanted = 6.0 if node.op_type == "Div" else SIXTH
    return node.input[operands[0]] if number is not None and math.isclose(number, wanted, rel_tol=1e-6) else None


def _clipped_plus_three(graph: FoldGraph, name: str) -> tuple[str, list[onnx.NodeProto]] | None:
    """`x` and the nodes, where `name` is `clip(x + 3, 0, 6)` that nothing else reads."""
    clip = graph.before(name, "Clip")
    if clip is None or len(clip.input) < 3 or graph.number(clip, 1) != 0.0 or graph.number(clip, 2) != 6.0:
        return None
    add = graph.before(clip.input[0], "Add")
    operands = None if add is None else graph.operands(add)
    if add is None or operands is None or graph.number(add, operands[1]) != 3.0:
        return None
    constant = graph.constant(add, operands[1])
    source = add.input[operands[0]]
    rank = graph.rank(source)
    if constant is None or (constant.ndim and (rank is None or constant.ndim > rank)):
        return None
    return source, [clip, add]


def _become(graph: FoldGraph, node: onnx.NodeProto, op_type: str, source: str, gone: list[onnx.NodeProto]) -> bool:
    for part in gone:
        graph.alive.discard(part.name)
    node.op_type = op_type
    del node.input[:], node.attribute[:]
    node.input.append(source)
    graph.readers.setdefault(source, []).append(node)
    if op_type == "HardSigmoid":
        node.attribute.extend([onnx.helper.make_attribute("alpha", SIXTH), onnx.helper.make_attribute("beta", 0.5)])
    return True


def _hard_sigmoid(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    divided = _sixth(graph, node)
    parts = None if divided is None else _clipped_plus_three(graph, divided)
    return parts is not None and _become(graph, node, "HardSigmoid", *parts)


def _hard_swish(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    divided = _sixth(graph, node)
    product = graph.before(divided, "Mul") if divided is not None else None
    if product is not None:
        # x * clip(x + 3, 0, 6) / 6
        for index in (0, 1):
            parts = _clipped_plus_three(graph, product.input[index])
            if parts is not None and parts[0] == product.input[1 - index]:
                return _become(graph, node, "HardSwish", parts[0], [product, *parts[1]])
    if node.op_type != "Mul":
        return False
    for index in (0, 1):
        gate, source = graph.before(node.input[index], "HardSigmoid"), node.input[1 - index]
        if gate is not None and gate.input[0] == source and _is_sixth(gate):
            return _become(graph, node, "HardSwish", source, [gate])
        scaled = graph.makers.get(source)
        # (x / 6) * clip(x + 3, 0, 6)
        parts = _clipped_plus_three(graph, node.input[index])
        if parts is not None and graph.single(source) and _sixth(graph, scaled) == parts[0] and scaled is not None:
            return _become(graph, node, "HardSwish", parts[0], [scaled, *parts[1]])
    return False


def _is_sixth(gate: onnx.NodeProto) -> bool:
    given = attributes(gate)
    return math.isclose(given.get("alpha", 0.2), SIXTH, rel_tol=1e-6) and given.get("beta", 0.5) == 0.5


def fold_mean(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    """ReduceMean over all spatial axes is GlobalAveragePool, with a Flatten behind it where the axes go."""
    if node.op_type != "ReduceMean":
        return False
    rank = graph.rank(node.input[0])
    axes = graph.constant(node, 1)
    if rank is None or rank < 3 or axes is None:
        return False
    if sorted(int(a) % rank for a in axes.flat) != list(range(2, rank)):
        return False
    keep = attributes(node).get("keepdims", 1)
    source = node.input[0]
    node.op_type = "GlobalAveragePool"
    del node.input[:], node.attribute[:]
    node.input.append(source)
    if not keep:
        graph.append_after(node, "Flatten", axis=1)
    return True
