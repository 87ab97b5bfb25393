"""SmoothQuant: outliers of activations move through a normalisation into the weights behind it.

Xiao et al. 2022 (arXiv:2211.10438): some channels of a transformer's activations are a hundred times as large as the
others, and one step for all of them leaves nothing for those. Where matrix products alone read what a LayerNorm or a
multiplication by constants gives, each channel is divided by a scale there, and the rows of the weights multiplied.
The exponent that shares the ranges out is searched for at each place, as in `edgekit.quant.equalize`.

A normalisation behind a residual sum (BERT) is read by the next sum too, and has no such place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.quant.equalize import Place, owned
from edgekit.quant.layers import Layer, layers
from edgekit.quant.view import GraphView, attribute, typed

if TYPE_CHECKING:
    import onnx

NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


def norm_places(proto: onnx.ModelProto) -> list[Place]:
    """Where a normalisation's factor and shift, or those of a Mul and an Add, can take the inverse scales up."""
    from edgekit.graph.tools import shapes

    view, ranks = GraphView(proto.graph), {name: len(dims) for name, dims in shapes(typed(proto).graph).items()}
    by_input: dict[str, list[Layer]] = {}
    for layer in layers(proto, [node.name for node in view.nodes]):
        by_input.setdefault(layer.source, []).append(layer)
    found = []
    for tensor, readers in by_input.items():
        products = all(layer.node.op_type in ("Gemm", "MatMul") and owned(layer, view) for layer in readers)
        alone = len(readers) == len(view.consumers[tensor]) and tensor not in view.outputs
        rank, width = ranks.get(tensor, 0), readers[0].inputs
        vectors = _vectors(tensor, width, rank, view) if products and alone and rank >= 2 else ()
        if vectors:
            found.append(Place(tensor, rank, -1, (), tuple(readers), vectors=vectors))
    return found


def _vectors(tensor: str, width: int, rank: int, view: GraphView) -> tuple[str, ...]:
    """The constants `[width]` that scale `tensor` when they are scaled; none where there is a part that is not."""
    node = view.producer.get(tensor)
    if node is None:
        return ()
    if node.op_type in NORMS:
        last = attribute(node, "axis", -1) in (-1, rank - 1) and not any(
            view.consumers[name] for name in node.output[1:]
        )
        names = tuple(name for name in node.input[1:] if name)
        return names if last and all(_is_vector(name, width, view) for name in names) else ()
    if node.op_type not in ("Add", "Mul"):
        return ()
    constants = [name for name in node.input if view.is_constant(name)]
    others = [name for name in node.input if not view.is_constant(name)]
    if len(constants) != 1 or len(others) != 1 or not _is_vector(constants[0], width, view):
        return ()
    if node.op_type == "Mul":
        return (constants[0],)
    before = view.producer.get(others[0])
    if before is None or before.op_type != "Mul" or view.only_consumer(others[0]) is None:
        return ()
    inner = _vectors(others[0], width, rank, view)
    return (*inner, constants[0]) if inner else ()


def _is_vector(name: str, width: int, view: GraphView) -> bool:
    """Whether a constant holds one float32 for each channel along the last axis, and one operator alone reads it."""
    value = view.constant(name)
    if value is None or value.dtype != np.float32 or not value.ndim:
        return False
    return value.size == width == value.shape[-1] and len(view.consumers[name]) == 1
