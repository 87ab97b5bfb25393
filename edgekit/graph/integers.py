"""Forms of a folded graph that 8-bit kernels exist for."""

from __future__ import annotations

import numpy as np
import onnx

from edgekit.graph.fold_graph import FoldGraph
from edgekit.graph.normalise import normalise
from edgekit.graph.norms import norms_to_convolutions
from edgekit.graph.tools import attributes

ELEMENTWISE = ("Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
"""One value to one value: as well before a DepthToSpace as behind it."""


def for_integers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, `proto` itself where nothing is to do, from operators that run in 8 bits.

    BatchNorm that no weight takes up is a depthwise convolution; a transposed convolution whose windows do not
    overlap is a 1x1 convolution whose channels are then laid out in space (Shi et al. 2016, arXiv:1609.07009).
    """
    return transposed_to_convolutions(norms_to_convolutions(proto))


def transposed_to_convolutions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every ConvTranspose with a stride as large as its window is Conv and DepthToSpace.

    ONNX Runtime has no 8-bit ConvTranspose. The activation behind one stands before the DepthToSpace, where
    it is part of the Conv.
    """
    graph = FoldGraph(proto)
    changed = False
    for node in graph.nodes:
        changed |= _to_convolution(graph, node)
    if not changed:
        return proto
    return normalise(graph.finished())


def _to_convolution(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    if node.op_type != "ConvTranspose" or node.domain:
        return False
    weight, given = graph.constant(node, 1), attributes(node)
    has_bias = len(node.input) > 2 and bool(node.input[2])
    bias = graph.constant(node, 2) if has_bias else None
    if weight is None or weight.ndim != 4 or weight.dtype != np.float32 or (has_bias and bias is None):
        return False
    size = weight.shape[2]
    plain = weight.shape[3] == size and given.get("strides") == [size, size] and given.get("group", 1) == 1
    plain &= all(n == 1 for n in given.get("dilations", [1])) and given.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    plain &= not any(given.get("pads", [0])) and not any(given.get("output_padding", [0]))
    if not plain or size < 2 or "output_shape" in given:
        return False
    behind = _activation(graph, node)
    node.op_type = "Conv"
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("kernel_shape", [1, 1]))
    turned = weight.transpose(1, 2, 3, 0).reshape(-1, weight.shape[0], 1, 1)
    graph.set_constant(node, 1, np.ascontiguousarray(turned), f"{node.name}_weight")
    if bias is not None:
        graph.set_constant(node, 2, np.repeat(bias.reshape(-1), size * size), f"{node.name}_bias")
    graph.append_after(behind or node, "DepthToSpace", blocksize=size, mode="CRD")
    return True


def _activation(graph: FoldGraph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The activation that alone reads a node, its bounds single numbers."""
    if not graph.single(node.output[0]):
        return None
    (reader,) = [one for one in graph.readers[node.output[0]] if one.name in graph.alive]
    if reader.op_type not in ELEMENTWISE or reader.domain:
        return None
    bounds = [graph.constants.get(name) for name in reader.input[1:] if name]
    return reader if all(bound is not None and bound.size == 1 for bound in bounds) else None
