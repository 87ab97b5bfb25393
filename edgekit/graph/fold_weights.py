"""Rules that move constants into weights."""

from __future__ import annotations

import numpy as np
import onnx

from edgekit.graph.fold_graph import FoldGraph
from edgekit.graph.tools import Array, attributes

WEIGHTED = ("Conv", "ConvTranspose", "Gemm")


def fold_pad(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    """Zero padding before a Conv becomes the Conv's own."""
    if node.op_type != "Conv" or attributes(node).get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    pad = graph.before(node.input[0], "Pad")
    rank = graph.rank(node.input[1]) or 0
    added = None if pad is None else _zero_pads(graph, pad, rank)
    if pad is None or added is None:
        return False
    own = attributes(node).get("pads", [0] * 2 * (rank - 2))
    _drop_attributes(node, "auto_pad", "pads")
    node.attribute.append(onnx.helper.make_attribute("pads", [a + b for a, b in zip(own, added, strict=True)]))
    node.input[0] = pad.input[0]
    graph.alive.discard(pad.name)
    return True


def _zero_pads(graph: FoldGraph, pad: onnx.NodeProto, rank: int) -> list[int] | None:
    """The padding of the spatial axes `[before..., after...]`, or None if it is anything but zeros there."""
    pads = graph.constant(pad, 1)
    if pads is None or attributes(pad).get("mode", "constant") != "constant":
        return None
    if len(pad.input) > 2 and pad.input[2] and graph.number(pad, 2) != 0.0:
        return None
    axes = graph.constant(pad, 3) if len(pad.input) > 3 and pad.input[3] else np.arange(rank)
    if axes is None or rank < 3 or pads.size != 2 * axes.size:
        return None
    before, after = np.zeros(rank, int), np.zeros(rank, int)
    before[axes], after[axes] = pads[: axes.size], pads[axes.size :]
    if before[:2].any() or after[:2].any() or before.min() < 0 or after.min() < 0:
        return None
    return [int(n) for n in (*before[2:], *after[2:])]


def fold_batch_norm(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    """BatchNorm behind a weighted operator: `y = (x - mean) / sqrt(var + eps) * scale + bias`."""
    if node.op_type != "BatchNormalization" or any(node.output[1:]):
        return False
    weighted = graph.before(node.input[0], *WEIGHTED)
    statistics = [graph.constant(node, index) for index in range(1, 5)]
    if weighted is None or any(value is None for value in statistics):
        return False
    scale, bias, mean, variance = (np.asarray(value, np.float64) for value in statistics)
    factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    if not _rescale(graph, weighted, factor, bias - mean * factor):
        return False
    graph.absorb(weighted, node)
    return True


def fold_scale(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    """Multiplication (or division) by a constant per channel behind a weighted operator."""
    found = _weighted_before(graph, node, "Mul", "Div")
    if found is None:
        return False
    weighted, factor = found
    if node.op_type == "Div":
        if np.any(factor == 0):
            return False
        factor = 1 / factor
    if not _rescale(graph, weighted, factor, np.zeros_like(factor)):
        return False
    graph.absorb(weighted, node)
    return True


def fold_shift(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    """Addition (or subtraction) of a constant per channel behind a weighted operator becomes its bias."""
    found = _weighted_before(graph, node, "Add", "Sub")
    if found is None:
        return False
    weighted, shift = found
    if not _rescale(graph, weighted, np.ones_like(shift), -shift if node.op_type == "Sub" else shift):
        return False
    graph.absorb(weighted, node)
    return True


def _weighted_before(graph: FoldGraph, node: onnx.NodeProto, *types: str) -> tuple[onnx.NodeProto, Array] | None:
    """The weighted operator in front of a node of `types`, and the node's constant as one number a channel."""
    operands = graph.operands(node) if node.op_type in types else None
    if operands is None or (node.op_type in ("Sub", "Div") and operands != (0, 1)):
        return None
    weighted = graph.before(node.input[operands[0]], *WEIGHTED)
    value = graph.constant(node, operands[1])
    if weighted is None or value is None or value.dtype.kind != "f":
        return None
    weight = graph.constant(weighted, 1)
    channels = None if weight is None else _channels(weighted, weight)
    axis = 1 if weighted.op_type == "Gemm" or weight is None else weight.ndim - 1
    if channels is None or value.ndim > (2 if weighted.op_type == "Gemm" else axis + 1):
        return None
    rank = 2 if weighted.op_type == "Gemm" else axis + 1
    full = value.reshape((1,) * (rank - value.ndim) + value.shape)
    if any(n != 1 for i, n in enumerate(full.shape) if i != 1) or full.shape[1] not in (1, channels):
        return None
    return weighted, np.broadcast_to(full.reshape(-1).astype(np.float64), (channels,)).copy()


def _channels(node: onnx.NodeProto, weight: Array) -> int:
    given = attributes(node)
    if node.op_type == "Conv":
        return int(weight.shape[0])
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * int(given.get("group", 1))
    return int(weight.shape[0 if given.get("transB", 0) else 1])


def _rescale(graph: FoldGraph, node: onnx.NodeProto, factor: Array, shift: Array) -> bool:
    """Make `node` compute `y * factor + shift` (each `[channels]`); False if its weights are not constant."""
    weight = graph.constant(node, 1)
    has_bias = len(node.input) > 2 and bool(node.input[2])
    bias = graph.constant(node, 2) if has_bias else None
    if weight is None or weight.dtype.kind != "f" or (has_bias and bias is None):
        return False
    channels = _channels(node, weight)
    given = attributes(node)
    if node.op_type == "Gemm" and (given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0):
        return False
    if bias is not None and bias.size not in (1, channels):
        return False
    if factor.shape != (channels,):
        return False
    old = np.zeros(channels) if bias is None else np.broadcast_to(bias.reshape(-1).astype(np.float64), (channels,))
    if np.any(factor != 1):
        scaled = weight.astype(np.float64) * _along_channels(node, weight, factor)
        graph.set_constant(node, 1, scaled.astype(weight.dtype), f"{node.name}_weight")
    if bias is not None or np.any(shift != 0):
        graph.set_constant(node, 2, (old * factor + shift).astype(weight.dtype), f"{node.name}_bias")
    return True


def _along_channels(node: onnx.NodeProto, weight: Array, factor: Array) -> Array:
    """`factor` in a shape that multiplies the weight by output channel."""
    if node.op_type == "Conv":
        return factor.reshape(-1, *[1] * (weight.ndim - 1))
    if node.op_type == "Gemm":
        return factor.reshape(-1, 1) if attributes(node).get("transB", 0) else factor.reshape(1, -1)
    groups = attributes(node).get("group", 1)
    per_group = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return np.asarray(per_group.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)))


def make_gemm(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    """MatMul by a constant, and the Add behind it, on two-dimensional data."""
    if node.op_type != "MatMul" or graph.rank(node.input[0]) != 2:
        return False
    weight = graph.constant(node, 1)
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f":
        return False
    node.op_type = "Gemm"
    return True


def _drop_attributes(node: onnx.NodeProto, *names: str) -> None:
    for index in reversed([i for i, a in enumerate(node.attribute) if a.name in names]):
        del node.attribute[index]
