"""Rules that move constants into the weights behind them, and into gates."""

from __future__ import annotations

import numpy as np
import onnx

from edgekit.graph.fold_graph import FoldGraph
from edgekit.graph.tools import Array, attributes

GATES = ("HardSigmoid", "Sigmoid")


def fold_scale_ahead(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    """One factor for a whole tensor goes into the weights of all operators that read it.

    `x * s + c` in front of them becomes `x + c / s`, which fold_shift_ahead takes where nothing is padded. Factors
    per channel stay: they may be what keeps the channels of a tensor in one range.
    """
    operands = graph.operands(node) if node.op_type in ("Mul", "Div") else None
    if operands is None or (node.op_type == "Div" and operands != (0, 1)):
        return False
    value, factor = graph.constant(node, operands[1]), graph.number(node, operands[1])
    rank = graph.rank(node.input[operands[0]])
    if value is None or value.dtype != np.float32 or not factor or rank is None or value.ndim > rank:
        return False
    factor = factor if node.op_type == "Mul" else 1 / factor
    source, readers = node.input[operands[0]], _weighted_readers(graph, node.output[0])
    if readers is None:
        shift = _only_shift(graph, node)
        readers = None if shift is None else _weighted_readers(graph, shift[0].output[0])
        if shift is None or readers is None:
            return False
        added = np.asarray(shift[2] / factor, np.float32)
        if not np.isfinite(added).all():
            return False
        shift[0].input[shift[1]] = graph.new_constant(f"{shift[0].name}_shift", added)
    for one in readers:
        weight = graph.constant(one, 1)
        assert weight is not None  # see _weighted_readers
        graph.set_constant(one, 1, (weight.astype(np.float64) * factor).astype(np.float32), f"{one.name}_weight")
    _bypass(graph, node, source)
    return True


def fold_shift_ahead(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    """Addition of a constant (one, or one a channel) in front of weights that pad nothing becomes their bias."""
    found = _shift(graph, node)
    readers = None if found is None else _weighted_readers(graph, node.output[0])
    if found is None or readers is None:
        return False
    place, shift = found
    moved = [_moved(graph, one, shift) for one in readers]
    if any(part is None for part in moved):
        return False
    for one, part in zip(readers, moved, strict=True):
        bias = graph.constant(one, 2) if len(one.input) > 2 and one.input[2] else None
        assert part is not None  # see above
        total = part if bias is None else part + bias.astype(np.float64).reshape(-1)
        graph.set_constant(one, 2, total.astype(np.float32), f"{one.name}_bias")
    _bypass(graph, node, node.input[1 - place])
    return True


def fold_gate(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    """`x + x * gate` is `x * (gate + 1)`: one pass over `x` less where the gate is one number a channel."""
    if node.op_type != "Add":
        return False
    for index in (0, 1):
        product, source = graph.before(node.input[index], "Mul"), node.input[1 - index]
        if product is None or source not in product.input or source in graph.constants:
            continue
        gate = product.input[1 - list(product.input).index(source)]
        shape, maker = graph.shapes.get(gate), graph.makers.get(gate)
        if maker is None or maker.op_type not in GATES or shape is None or graph.rank(source) != len(shape):
            continue
        if len(shape) < 3 or any(extent != 1 for extent in shape[2:]):
            continue
        one = graph.new_constant(f"{product.name}_one", np.asarray(1, np.float32))
        product.op_type = "Add"
        product.input[:] = [gate, one]
        node.op_type = "Mul"
        node.input[:] = [source, product.output[0]]
        graph.readers[source] = [reader for reader in graph.readers[source] if reader is not product]
        graph.shapes[product.output[0]] = shape
        return True
    return False


def _weighted_readers(graph: FoldGraph, name: str) -> list[onnx.NodeProto] | None:
    """All readers of a tensor, if each is an operator with constant float weights that takes it as its data."""
    readers = [node for node in graph.readers.get(name, []) if node.name in graph.alive]
    if not readers or name in graph.outputs:
        return None
    for node in readers:
        weight = graph.constant(node, 1)
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node.domain or list(node.input).count(name) != 1:
            return None
        if node.input[0] != name or weight is None or weight.dtype != np.float32:
            return None
    return readers


def _shift(graph: FoldGraph, node: onnx.NodeProto) -> tuple[int, Array] | None:
    """The position and the value `[1]` or `[channels]` of a constant that a node adds; subtracted ones negative."""
    operands = graph.operands(node) if node.op_type in ("Add", "Sub") else None
    if operands is None or (node.op_type == "Sub" and operands != (0, 1)):
        return None
    value, rank = graph.constant(node, operands[1]), graph.rank(node.input[operands[0]])
    if value is None or value.dtype != np.float32 or rank is None or rank < 2 or value.ndim > rank:
        return None
    full = value.reshape((1,) * (rank - value.ndim) + value.shape)
    if any(extent != 1 for axis, extent in enumerate(full.shape) if axis != 1):
        return None
    flat = full.reshape(-1).astype(np.float64)
    return operands[1], -flat if node.op_type == "Sub" else flat


def _only_shift(graph: FoldGraph, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int, Array] | None:
    """The Add or Sub of one constant number that alone reads a node: it, where the constant is, and its value."""
    if not graph.single(node.output[0]):
        return None
    (reader,) = [one for one in graph.readers[node.output[0]] if one.name in graph.alive]
    found = _shift(graph, reader)
    if found is None or found[1].size != 1:
        return None
    place = found[0]
    value = graph.constant(reader, place)
    return None if value is None else (reader, place, value.astype(np.float64))


def _moved(graph: FoldGraph, node: onnx.NodeProto, shift: Array) -> Array | None:
    """What `shift` on its input adds to each output channel of `node`; None where padding makes that uneven."""
    weight, given = graph.constant(node, 1), attributes(node)
    bias = graph.constant(node, 2) if len(node.input) > 2 and node.input[2] else None
    if weight is None or (bias is None and len(node.input) > 2 and node.input[2]):
        return None
    if node.op_type == "Gemm":
        if given.get("transA", 0) or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
            return None
        matrix = weight if given.get("transB", 0) else weight.T
        moved = matrix.astype(np.float64) @ np.broadcast_to(shift, (matrix.shape[1],))
        return moved if bias is None or bias.size == moved.size else None
    if (
        node.op_type != "Conv"
        or any(given.get("pads", [0]))
        or given.get("auto_pad", "NOTSET")
        not in (
            "NOTSET",
            "VALID",
        )
    ):
        return None
    groups, outputs = int(given.get("group", 1)), weight.shape[0]
    summed = weight.astype(np.float64).reshape(*weight.shape[:2], -1).sum(axis=2)
    each = np.broadcast_to(shift, (groups * weight.shape[1],)).reshape(groups, -1)
    return np.asarray((summed * np.repeat(each, outputs // groups, axis=0)).sum(axis=1))


def _bypass(graph: FoldGraph, node: onnx.NodeProto, source: str) -> None:
    """Let the readers of `node` read `source` instead, and drop it."""
    readers = [one for one in graph.readers.get(node.output[0], []) if one.name in graph.alive]
    for one in readers:
        one.input[:] = [source if name == node.output[0] else name for name in one.input]
    kept = [one for one in graph.readers.get(source, []) if one is not node]
    graph.readers[source] = [*kept, *readers]
    graph.alive.discard(node.name)
