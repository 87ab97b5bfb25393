"""BatchNorm that no weight takes up, as the convolution that it is."""

from __future__ import annotations

import numpy as np
import onnx

from edgekit.graph.fold_graph import FoldGraph
from edgekit.graph.normalise import normalise
from edgekit.graph.tools import attributes


def norms_to_convolutions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a folded graph in which every BatchNorm over an image or a sequence is a depthwise 1x1 convolution.

    BatchNorm has no 8-bit kernel anywhere, and a scale for each channel. With one weight a channel a convolution has
    both: the weight is exact in 8 bits, and the shift is its 32-bit bias. Where networks normalise before they
    convolve (DenseNet, pre-activation ResNet) all else would stay float around it.
    """
    graph = FoldGraph(proto)
    changed = False
    for node in graph.nodes:
        changed |= _to_convolution(graph, node)
    if not changed:
        return proto
    return normalise(graph.finished())


def _to_convolution(graph: FoldGraph, node: onnx.NodeProto) -> bool:
    rank = graph.rank(node.input[0]) if node.op_type == "BatchNormalization" else None
    if rank is None or rank < 3 or any(node.output[1:]):
        return False
    statistics = [graph.constant(node, index) for index in range(1, 5)]
    if any(value is None or value.dtype != np.float32 for value in statistics):
        return False
    scale, bias, mean, variance = (np.asarray(value, np.float64) for value in statistics)
    factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    node.op_type = "Conv"
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("group", len(factor)))
    node.attribute.append(onnx.helper.make_attribute("kernel_shape", [1] * (rank - 2)))
    weight = factor.reshape(-1, *[1] * (rank - 1))
    graph.set_constant(node, 1, weight.astype(np.float32), f"{node.name}_weight")
    graph.set_constant(node, 2, (bias - mean * factor).astype(np.float32), f"{node.name}_bias")
    del node.input[3:]
    return True
