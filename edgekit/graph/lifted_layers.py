"""Operators that become layers of a lifted graph: torch's own, made around the weights that the operator is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

if TYPE_CHECKING:
    from edgekit.graph.lifted import Lifting

aten = torch.ops.aten


class Given:
    """A call's arguments by name, with the operator's defaults."""

    def __init__(self, lifting: Lifting, node: fx.Node) -> None:
        self.lifting, self.node = lifting, node
        schema = node.target._schema  # type: ignore[union-attr]
        self.values = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        self.values |= dict(zip((a.name for a in schema.arguments), node.args, strict=False))
        self.values |= dict(node.kwargs)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def tensor(self, name: str) -> Tensor | None:
        """The weight given as `name`, or None where none is given."""
        node = self.values.get(name)
        return None if node is None else self.lifting.known[node]

    def fixed(self, *names: str) -> bool:
        """Whether these are weights (or absent), and everything else is numbers."""
        tensors = [self.values.get(name) for name in names]
        return all(t is None or t in self.lifting.known for t in tensors)

    def key(self, *names: str) -> tuple[Any, ...]:
        """What makes two calls the same layer."""
        return tuple(_hashable(self.values.get(name)) for name in names)


Made = tuple[nn.Module, fx.Node, tuple[Any, ...]]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def hold(layer: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """Put tensors into a layer that was made on the meta device."""
    for name, value in tensors.items():
        if name in layer._buffers:
            layer._buffers[name] = None if value is None else value.detach()
        elif value is None:
            layer.register_parameter(name, None)
        else:
            kept = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
            layer.register_parameter(name, kept)
    return layer.eval()


_CONVS: dict[Any, tuple[Any, int]] = {
    aten.conv1d: (nn.Conv1d, 1), aten.conv2d: (nn.Conv2d, 2), aten.conv3d: (nn.Conv3d, 3),
}  # fmt: skip
_TRANSPOSED: dict[Any, tuple[Any, int]] = {
    aten.conv_transpose1d: (nn.ConvTranspose1d, 1), aten.conv_transpose2d: (nn.ConvTranspose2d, 2),
    aten.conv_transpose3d: (nn.ConvTranspose3d, 3),
}  # fmt: skip


def _spread(value: Any, axes: int) -> Any:
    """One number an axis."""
    if isinstance(value, str):
        return value
    values = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(values * axes if len(values) == 1 else values)


def _conv(given: Given) -> Made | None:
    kind, axes = _CONVS[given.node.target.overloadpacket]  # type: ignore[union-attr]
    if not given.fixed("weight", "bias"):
        return None
    weight, bias = given.tensor("weight"), given.tensor("bias")
    assert weight is not None
    groups = given["groups"]
    layer = kind(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), stride=_spread(given["stride"], axes),
        padding=_spread(given["padding"], axes), dilation=_spread(given["dilation"], axes), groups=groups,
        bias=bias is not None, device="meta",
    )  # fmt: skip
    return (
        hold(layer, weight=weight, bias=bias),
        given["input"],
        given.key("weight", "bias", "stride", "padding", "dilation", "groups"),
    )


def _transposed(given: Given) -> Made | None:
    kind, axes = _TRANSPOSED[given.node.target.overloadpacket]  # type: ignore[union-attr]
    if not given.fixed("weight", "bias"):
        return None
    weight, bias = given.tensor("weight"), given.tensor("bias")
    assert weight is not None
    groups = given["groups"]
    layer = kind(
        weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), stride=_spread(given["stride"], axes),
        padding=_spread(given["padding"], axes), output_padding=_spread(given["output_padding"], axes), groups=groups,
        bias=bias is not None, dilation=_spread(given["dilation"], axes), device="meta",
    )  # fmt: skip
    return (
        hold(layer, weight=weight, bias=bias),
        given["input"],
        given.key("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    )


def _linear(given: Given) -> Made | None:
    if not given.fixed("weight", "bias"):
        return None
    weight, bias = given.tensor("weight"), given.tensor("bias")
    assert weight is not None
    if weight.ndim != 2:
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return hold(layer, weight=weight, bias=bias), given["input"], given.key("weight", "bias")


def _batch_norm(given: Given) -> Made | None:
    names = ("weight", "bias", "running_mean", "running_var")
    if not given.fixed(*names) or given.tensor("running_mean") is None:
        return None
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    mean, weight = given.tensor("running_mean"), given.tensor("weight")
    assert mean is not None
    source = given["input"]
    layer = kinds[source.meta["val"].ndim](
        len(mean), eps=given["eps"], momentum=given["momentum"], affine=weight is not None, device="meta"
    )
    if weight is None:
        hold(layer, running_mean=mean, running_var=given.tensor("running_var"))
    else:
        hold(layer, **{name: given.tensor(name) for name in names})
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return layer, source, given.key(*names, "eps")


def _layer_norm(given: Given) -> Made | None:
    weight = given.tensor("weight") if given.fixed("weight", "bias") else None
    extents = list(given["normalized_shape"])
    if weight is None or any(not isinstance(n, int) for n in extents) or list(weight.shape) != extents:
        return None
    bias = given.tensor("bias")
    layer = nn.LayerNorm(extents, eps=given["eps"], bias=bias is not None, device="meta")
    return hold(layer, weight=weight, bias=bias), given["input"], given.key("weight", "bias", "eps")


def _group_norm(given: Given) -> Made | None:
    weight = given.tensor("weight") if given.fixed("weight", "bias") else None
    if weight is None or given.tensor("bias") is None:
        return None
    layer = nn.GroupNorm(given["num_groups"], len(weight), eps=given["eps"], device="meta")
    return hold(layer, weight=weight, bias=given.tensor("bias")), given["input"], given.key("weight", "bias", "eps")


def _embedding(given: Given) -> Made | None:
    if not given.fixed("weight") or given["scale_grad_by_freq"] or given["sparse"]:
        return None
    weight = given.tensor("weight")
    assert weight is not None
    layer = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    return hold(layer, weight=weight), given["indices"], given.key("weight")


def _prelu(given: Given) -> Made | None:
    if not given.fixed("weight"):
        return None
    weight = given.tensor("weight")
    assert weight is not None
    return hold(nn.PReLU(weight.numel(), device="meta"), weight=weight), given["self"], given.key("weight")


def _dropout(given: Given) -> Made | None:
    return nn.Dropout(given["p"]).eval(), given["input"], (given.node, given["p"])


LAYERS: dict[Any, Callable[[Given], Made | None]] = {
    **dict.fromkeys(_CONVS, _conv),
    **dict.fromkeys(_TRANSPOSED, _transposed),
    aten.linear: _linear,
    aten.batch_norm: _batch_norm,
    aten.layer_norm: _layer_norm,
    aten.group_norm: _group_norm,
    aten.embedding: _embedding,
    aten.prelu: _prelu,
    aten.dropout: _dropout,
}
"""Operators that become layers where their weights are weights."""
