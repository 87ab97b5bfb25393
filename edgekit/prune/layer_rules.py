"""How the axes of a layer's result come from those of its input and of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from edgekit.prune.axes import Axis, count, extent, factor, freeze, product, resolved, unify
from edgekit.prune.follow import INPUT, Axes, Call, Rule

WINDOW = "a window moves along it"


def convolution(call: Call) -> Axes:
    """Conv1d to Conv3d: of `groups` groups each reads its part of the channels and makes its part."""
    layer, source = call.module, call.axes("input")
    assert isinstance(layer, nn.modules.conv._ConvNd)
    source = source if len(source) == len(call.shape) else [factor(1), *source]
    weight = call.weight("weight")
    assert weight is not None
    groups = factor(layer.groups)
    if layer.transposed:
        inner = factor(extent(weight[0]) // layer.groups)
        unify(weight[0], product([groups, inner]))
        read, made = weight[0], product([resolved(groups), weight[1]])
        multiplied = (weight[0], weight[1])
    else:
        inner = factor(extent(weight[0]) // layer.groups)
        unify(weight[0], product([groups, inner]))
        read, made = product([resolved(groups), weight[1]]), weight[0]
        multiplied = (weight[0], weight[1])
    unify(source[1], read)
    for axis in (*source[2:], *weight[2:]):
        freeze(axis, WINDOW)
    bias = call.weight("bias")
    if bias is not None:
        unify(bias[0], made)
    call.reads(0, 1, f"{call.node.target}.weight", 0 if layer.transposed else 1)
    pixels = math.prod(call.values["input"].shape[2:] if layer.transposed else call.shape[2:])
    call.works([source[0], *multiplied], pixels * math.prod(layer.kernel_size))
    call.setting("groups", lambda counts: count(resolved(groups), counts))
    call.setting("in_channels", lambda counts: count(resolved(read), counts))
    call.setting("out_channels", lambda counts: count(resolved(made), counts))
    return [source[0], resolved(made), *(factor(n, INPUT) for n in call.shape[2:])]


def linear(call: Call) -> Axes:
    """Linear over the last axis."""
    source, weight, bias = call.axes("input"), call.weight("weight"), call.weight("bias")
    assert weight is not None
    unify(source[-1], weight[1])
    if bias is not None:
        unify(bias[0], weight[0])
    call.reads(0, -1, f"{call.node.target}.weight", 1)
    call.works([*source[:-1], *weight], 1)
    call.setting("in_features", lambda counts: count(resolved(weight[1]), counts))
    call.setting("out_features", lambda counts: count(resolved(weight[0]), counts))
    return [*source[:-1], resolved(weight[0])]


def _with(call: Call, axis: Axis, *names: str) -> None:
    for name in names:
        weight = call.weight(name)
        if weight is not None:
            unify(weight[0], axis)


def batch_norm(call: Call) -> Axes:
    """BatchNorm: each channel by itself."""
    source = call.axes("input")
    _with(call, source[1], "weight", "bias", "running_mean", "running_var")
    call.setting("num_features", lambda counts: count(resolved(source[1]), counts))
    return source


def layer_norm(call: Call) -> Axes:
    """LayerNorm over the last axes: after a removal over those channels that are left."""
    layer, source = call.module, call.axes("input")
    assert isinstance(layer, nn.LayerNorm)
    axes = len(layer.normalized_shape)
    for name in ("weight", "bias"):
        weight = call.weight(name)
        for own, other in zip(weight or (), source[-axes:], strict=weight is not None):
            unify(own, other)
    for axis in range(-axes, 0):
        call.normalises(axis)
    last = source[-axes:]
    call.setting("normalized_shape", lambda counts: tuple(count(resolved(axis), counts) for axis in last))
    return source


def group_norm(call: Call) -> Axes:
    """GroupNorm: whole groups may go, or the same channels of every group."""
    layer, source = call.module, call.axes("input")
    assert isinstance(layer, nn.GroupNorm)
    groups = factor(layer.num_groups)
    unify(source[1], product([groups, factor(layer.num_channels // layer.num_groups)]))
    _with(call, source[1], "weight", "bias")
    call.normalises(1)
    call.setting("num_groups", lambda counts: count(resolved(groups), counts))
    call.setting("num_channels", lambda counts: count(resolved(source[1]), counts))
    return source


def embedding(call: Call) -> Axes:
    """Embedding: the rows stay, what they hold may shrink."""
    weight = call.weight("weight")
    assert weight is not None
    freeze(weight[0], "its rows are looked up by number")
    call.setting("embedding_dim", lambda counts: count(resolved(weight[1]), counts))
    return [*call.axes("input"), weight[1]]


def prelu(call: Call) -> Axes:
    """PReLU: a slope a channel, or one for all."""
    source, weight = call.axes("input"), call.weight("weight")
    assert weight is not None
    if extent(weight[0]) > 1:
        unify(weight[0], source[1])
        call.setting("num_parameters", lambda counts: count(resolved(source[1]), counts))
    return source


def same(call: Call) -> Axes:
    """What changes no axis."""
    return call.axes("input")


LAYERS: Mapping[type[nn.Module], Rule] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), batch_norm),
    nn.Linear: linear,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.Embedding: embedding,
    nn.PReLU: prelu,
    nn.Dropout: same,
}
"""The layers that a lifted graph has."""
