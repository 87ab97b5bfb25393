"""Fold what inference does not need apart: BatchNorm and scales into weights, activations into one operator.

Every rewrite computes the same up to the rounding of float32. Training needs the parts, so this runs only on
entering `quantize` or an emitter.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from edgekit.graph.fold_activations import fold_activation, fold_mean
from edgekit.graph.fold_ahead import fold_gate, fold_scale_ahead, fold_shift_ahead
from edgekit.graph.fold_graph import FoldGraph
from edgekit.graph.fold_weights import fold_batch_norm, fold_pad, fold_scale, fold_shift, make_gemm
from edgekit.graph.normalise import normalise

RULES: tuple[Callable[[FoldGraph, onnx.NodeProto], bool], ...] = (
    fold_pad,
    fold_batch_norm,
    fold_scale,
    fold_shift,
    make_gemm,
    fold_activation,
    fold_mean,
    fold_scale_ahead,
    fold_shift_ahead,
    fold_gate,
)
"""Each looks at one node and, where it applies, changes the graph and says so."""


def fold(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with fewer operators. `proto` (normalised) is not changed; names of outputs stay.

    BatchNorm, and multiplications and additions of constants per channel, go into the Conv, ConvTranspose or Gemm
    before them; factors of whole tensors, and constants that are added where nothing is padded, into the weights behind
    them; zero padding into the Conv after it; MatMul and Add become Gemm; HardSigmoid, HardSwish and global averages
    are recognised; `x + x * gate` is `x * (gate + 1)`. Clip stays Clip.
    """
    graph = FoldGraph(proto)
    while _pass(graph):
        pass
    return normalise(graph.finished())


def _pass(graph: FoldGraph) -> bool:
    """One pass over the graph; whether anything changed."""
    changed = False
    for node in graph.nodes:
        for rule in RULES:
            changed |= node.name in graph.alive and rule(graph, node)
    graph.sweep()
    return changed
