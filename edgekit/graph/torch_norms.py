"""Normalisation over the axes of each sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edgekit.graph.torch_step import Entry, Function, Operator, Step


def layer_norm(op: Operator) -> Step:
    """LayerNormalization over the last axes."""
    settings = {"axis": op.attributes.get("axis", -1), "epsilon": op.attributes.get("epsilon", 1e-5)}
    return Step(
        Function(_layer_norm_with_statistics if any(op.node.output[1:]) else _layer_norm, **settings), range(len(op))
    )


def _layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int, epsilon: float) -> Tensor:
    extents = x.shape[axis if axis >= 0 else axis + x.dim() :]
    return F.layer_norm(x, extents, scale.expand(extents), None if bias is None else bias.expand(extents), epsilon)


def _layer_norm_with_statistics(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    axes = list(range(axis if axis >= 0 else axis + x.dim(), x.dim()))
    mean = x.mean(dim=axes, keepdim=True)
    inverse = (((x - mean) ** 2).mean(dim=axes, keepdim=True) + epsilon).rsqrt()
    return _layer_norm(x, scale, bias, axis=axis, epsilon=epsilon), mean, inverse


def instance_norm(op: Operator) -> Step:
    """InstanceNormalization."""
    return Step(Function(_instance_norm, epsilon=op.attributes.get("epsilon", 1e-5)), (0, 1, 2))


def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


OPERATORS: dict[str, Entry] = {
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
}
