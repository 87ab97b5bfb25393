"""How the axes of an operation's result come from those of its arguments: everything that is no layer."""

from __future__ import annotations

import operator
from typing import Any

import torch

from edgekit.graph.einsum import contract
from edgekit.prune.axes import (
    ONE,
    between,
    extent,
    factor,
    freeze,
    product,
    resolved,
    unify,
)
from edgekit.prune.basic_rules import REDUCED, counted, first, pointwise
from edgekit.prune.follow import Axes, Call, Rule
from edgekit.prune.layout_rules import (
    cat,
    channel_shuffle,
    copied,
    expand,
    filled,
    fold,
    grid_sampler,
    index,
    index_select,
    pad,
    permute,
    pixel_shuffle,
    pixel_unshuffle,
    repeat,
    repeat_interleave,
    reshape,
    select,
    slice_,
    slice_scatter,
    split,
    stack,
    unbind,
    unfold,
    window,
)
from edgekit.prune.product_rules import addmm, attention, contraction, linear, matmul

aten = torch.ops.aten


def rule_of(target: Any) -> Rule | None:
    """The rule of a function that a lifted graph calls."""
    if target is operator.getitem:
        return item
    packet = getattr(target, "overloadpacket", target)
    if packet in (aten.max, aten.min) and torch.Tag.pointwise in target.tags:
        return pointwise
    if packet in RULES:
        return RULES[packet]
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return pointwise
    return None


def item(call: Call) -> Any:
    """One of several results."""
    several, which = call.found.nodes[call.node.args[0]], call.node.args[1]  # type: ignore[index]
    return several[which] if isinstance(several, tuple) and isinstance(which, int) else None


def reduce(call: Call) -> Any:
    """A mean, a maximum, a norm: what it takes together stays whole, or it goes over the channels that are left.

    The latter where each position is held against the result again, as in norms that a forward writes out.
    """
    axes = first(call)
    value = call.value[0] if isinstance(call.value, tuple | list) else call.value
    given = call.values.get("dim")
    dims = range(len(axes)) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {d % max(len(axes), 1) for d in dims}
    kept = value.ndim == len(axes) and bool(call.values.get("keepdim"))
    for dim in gone:
        if kept and call.node.target.overloadpacket in SIZELESS:  # type: ignore[union-attr]
            call.takes(dim)
        else:
            freeze(axes[dim], REDUCED)
    made = [ONE if i in gone else axis for i, axis in enumerate(axes) if kept or i not in gone]
    return tuple(list(made) for _ in call.value) if isinstance(call.value, tuple | list) else made


SIZELESS = frozenset(
    (
        aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std, aten.var_mean, aten.linalg_vector_norm,
        aten.norm,
    )
)  # fmt: skip
"""Reductions that hold no number of what they take together."""


def along(call: Call) -> Axes:
    """A softmax, a running sum, a roll: the shape stays, and so do the axes that it goes along."""
    axes, given = first(call), call.values.get("dim", call.values.get("dims"))
    dims = range(len(axes)) if given in (None, []) else [given] if isinstance(given, int) else given
    for dim in dims:
        freeze(axes[dim], REDUCED)
    return axes


def normalise(call: Call) -> Axes:
    """LayerNorm or RMSNorm over the last axes, whose weights, where there are any, are no layer's."""
    axes, extents = call.axes("input"), call["normalized_shape"]
    for name in ("weight", "bias"):
        if call.nodes.get(name) is not None:
            for own, other in zip(call.axes(name), axes[-len(extents) :], strict=True):
                unify(own, other)
    for back in range(-len(extents), 0):
        call.normalises(back)
        call.literal("normalized_shape", len(extents) + back, counted(axes[back]))
    return axes


def instance_norm(call: Call) -> Axes:
    """Each channel of each sample by itself."""
    axes = call.axes("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.nodes.get(name) is not None:
            unify(call.axes(name)[0], axes[1])
    return axes


def group_norm(call: Call) -> Axes:
    """GroupNorm whose weights, where there are any, are no layer's."""
    axes, groups = call.axes("input"), factor(call["num_groups"])
    unify(axes[1], product([groups, factor(extent(axes[1]) // call["num_groups"])]))
    for name in ("weight", "bias"):
        if call.nodes.get(name) is not None:
            unify(call.axes(name)[0], axes[1])
    call.normalises(1)
    call.literal("num_groups", None, counted(groups))
    return axes


def glu(call: Call) -> Axes:
    """One half of an axis gates the other."""
    axes = list(call.axes("self"))
    dim, half = call["dim"] % len(axes), call.shape[call["dim"]]
    a, b = between(axes[dim], 0, half), between(axes[dim], half, 2 * half)
    unify(a, b)
    axes[dim] = resolved(a)
    return axes


RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            aten.alias, aten.clone, aten.contiguous, aten.detach, aten.detach_, aten.dropout, aten.dropout_, aten.to,
            aten._to_copy, aten.type_as, aten.feature_dropout, aten.alpha_dropout, aten.lift_fresh_copy, aten.zero_,
            aten.fill_, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.fill,
        ),
        first,
    ),
    **dict.fromkeys(
        (
            aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.squeeze, aten.unsqueeze,
            aten.view_as, aten.reshape_as, aten.squeeze_, aten.unsqueeze_,
        ),
        reshape,
    ),
    **dict.fromkeys(
        (
            aten.permute, aten.transpose, aten.t, aten.movedim, aten.moveaxis, aten.swapaxes, aten.swapdims,
            aten.numpy_T, aten.mT, aten.adjoint,
        ),
        permute,
    ),
    # These torch does not mark.
    **dict.fromkeys(
        (
            aten.hardswish, aten.hardswish_, aten.relu6_, aten.mish_, aten.gelu_, aten.log_sigmoid, aten.where,
            aten.masked_fill, aten.masked_fill_, aten.rsub, aten.true_divide,
        ),
        pointwise,
    ),
    **dict.fromkeys((aten.expand, aten.expand_as, aten.broadcast_to), expand),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.zeros, aten.ones), filled),
    **dict.fromkeys(
        (
            aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d,
            aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d, aten.adaptive_max_pool1d,
            aten.adaptive_max_pool2d, aten.max_pool2d_with_indices, aten.upsample_nearest1d, aten.upsample_nearest2d,
            aten.upsample_nearest3d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_linear1d,
            aten._upsample_nearest_exact2d, aten.upsample_trilinear3d, aten._upsample_bilinear2d_aa,
        ),
        window,
    ),
    **dict.fromkeys(
        (
            aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std, aten.var_mean,
            aten.linalg_vector_norm, aten.norm, aten.logsumexp, aten.prod, aten.argmax, aten.argmin, aten.any, aten.all,
        ),
        reduce,
    ),
    **dict.fromkeys(
        (aten.softmax, aten._softmax, aten.log_softmax, aten.cumsum, aten.roll, aten.flip, aten.cumprod), along
    ),
    **dict.fromkeys((aten.matmul, aten.bmm, aten.mm, aten.mv), matmul),
    **dict.fromkeys((aten.addmm, aten.baddbmm), addmm),
    **dict.fromkeys((aten.pad, aten.constant_pad_nd), pad),
    **dict.fromkeys((aten.layer_norm, aten.rms_norm), normalise),
    aten.linear: linear,
    aten.scaled_dot_product_attention: attention,
    contract: contraction,
    aten.grid_sampler: grid_sampler,
    aten.im2col: unfold,
    aten.col2im: fold,
    aten.instance_norm: instance_norm,
    aten.group_norm: group_norm,
    aten.glu: glu,
    aten.repeat: repeat,
    aten.repeat_interleave: repeat_interleave,
    aten.cat: cat,
    aten.concat: cat,
    aten.concatenate: cat,
    aten.stack: stack,
    aten.split: split,
    aten.split_with_sizes: split,
    aten.chunk: split,
    aten.unbind: unbind,
    aten.select: select,
    aten.slice: slice_,
    aten.pixel_shuffle: pixel_shuffle,
    aten.pixel_unshuffle: pixel_unshuffle,
    aten.channel_shuffle: channel_shuffle,
    aten.index: index,
    aten.index_select: index_select,
    aten.copy_: copied,
    aten.slice_scatter: slice_scatter,
}  # fmt: skip
"""By operator. What torch itself marks as working element by element needs no entry."""
