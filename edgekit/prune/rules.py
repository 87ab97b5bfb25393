"""How the axes of an operation's result come from those of its arguments: everything that is no layer."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from edgekit.graph.einsum import contract
from edgekit.prune.axes import (
    ONE,
    Axis,
    Joined,
    between,
    count,
    extent,
    factor,
    freeze,
    joined,
    product,
    refactored,
    resolved,
    unify,
)
from edgekit.prune.follow import INPUT, Axes, Call, Counts, Rule

aten = torch.ops.aten

REDUCED = "an operation takes its channels together (a mean, a maximum, a softmax)"
PICKED = "single ones of its channels are picked by number"
MOVED = "a window moves along its channels, or they change places"


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


def broadcast(shape: Sequence[int], several: Sequence[Axes]) -> Axes:
    """The axes of a result of this shape whose arguments are stretched to it, made one."""
    result: Axes = []
    for back in range(-len(shape), 0):
        axes = [one[back] for one in several if len(one) >= -back and extent(one[back]) == shape[back]]
        if shape[back] == 1 or not axes:
            result.append(factor(shape[back], INPUT))
            continue
        for other in axes[1:]:
            unify(axes[0], other)
        result.append(resolved(axes[0]))
    return result


def pointwise(call: Call) -> Axes:
    """Element by element."""
    return broadcast(call.shape, call.all_axes())


def first(call: Call) -> Axes:
    """The axes of the first argument."""
    axes = call.found.nodes[call.node.args[0]]  # type: ignore[index]
    assert isinstance(axes, list)
    return axes


def filled(call: Call) -> Axes:
    """A tensor of given extents that holds one number."""
    axes = [factor(n) for n in call.shape]
    for index, axis in enumerate(axes):
        call.literal("size", index, _counted(axis))
    return axes


def _counted(axis: Axis) -> Callable[[Counts], int]:
    return lambda counts: count(resolved(axis), counts)


def reshape(call: Call) -> Axes:
    """The same elements under other extents."""
    name = next(n for n in ("self", "input") if n in call.nodes)
    result = refactored(call.axes(name), call.shape)
    argument = next((n for n in ("size", "shape", "sizes") if n in call.nodes), None)
    if argument is not None:
        given = call.nodes[argument]
        start = call["dim"] % len(call.axes(name)) if "dim" in call.values else 0
        for index, size in enumerate(given):
            if isinstance(size, int) and size >= 0:
                call.literal(argument, index, _counted(result[start + index]))
    return result


def permute(call: Call) -> Axes:
    """Axes in another order, told by what the operation does to a shape of distinct extents."""
    axes = first(call)
    probe = torch.empty(tuple(range(2, 2 + len(axes))), device="meta")
    args = [probe, *(call.values[name] for name in list(call.nodes)[1:])]
    moved = call.node.target(*args)  # type: ignore[operator]
    return [axes[n - 2] for n in moved.shape]


def expand(call: Call) -> Axes:
    """Axes of extent one are repeated, new ones come in front."""
    axes = call.axes("self")
    axes = [ONE] * (len(call.shape) - len(axes)) + axes
    result = [axis if extent(axis) == n else factor(n) for axis, n in zip(axes, call.shape, strict=True)]
    for index, axis in enumerate(result):
        given = call.nodes["size"][index] if "size" in call.nodes else None
        if isinstance(given, int) and given > 0:
            call.literal("size", index, _counted(axis))
    return result


def repeat(call: Call) -> Axes:
    """Copies side by side: so many times the axis."""
    axes = call.axes("self")
    axes = [ONE] * (len(call.shape) - len(axes)) + axes
    result: Axes = []
    for index, axis in enumerate(axes):
        times = factor(call.shape[index] // max(extent(axis), 1))
        result.append(product([times, axis]))
        call.literal("repeats", index, _counted(times))
    return result


def repeat_interleave(call: Call) -> Axes | None:
    """Each index several times over: grouped queries."""
    if call.values.get("dim") is None or not isinstance(call.values.get("repeats"), int):
        return None
    axes, dim = list(call.axes("self")), call["dim"]
    times = factor(call["repeats"])
    call.literal("repeats", None, _counted(times))
    axes[dim] = product([axes[dim], times])
    return axes


def cat(call: Call) -> Axes:
    """Side by side along one axis."""
    parts = [call.found.nodes[node] for node in call.nodes["tensors"]]
    parts = [axes for axes in parts if len(axes) == len(call.shape)]
    dim = call["dim"] % len(call.shape)
    for axes in parts[1:]:
        for index in range(len(axes)):
            if index != dim:
                unify(parts[0][index], axes[index])
    result = [resolved(axis) for axis in parts[0]]
    result[dim] = joined([resolved(axes[dim]) for axes in parts])
    return result


def stack(call: Call) -> Axes:
    """Side by side along a new axis."""
    parts = [call.found.nodes[node] for node in call.nodes["tensors"]]
    dim = call["dim"] % len(call.shape)
    for axes in parts[1:]:
        for one, other in zip(parts[0], axes, strict=True):
            unify(one, other)
    result = [resolved(axis) for axis in parts[0]]
    result.insert(dim, factor(len(parts), PICKED))
    return result


def split(call: Call) -> tuple[Axes, ...]:
    """Parts of one axis."""
    name = "tensor" if "tensor" in call.nodes else "self"
    axes, result, at = call.axes(name), [], 0
    dim = call["dim"] % len(axes)
    for index, part in enumerate(call.value):
        size = part.shape[dim]
        own = list(axes)
        own[dim] = between(axes[dim], at, at + size)
        call.literal("split_sizes", index, _counted(own[dim]))
        result.append(own)
        at += size
    return tuple([resolved(axis) for axis in axes] for axes in result)


def unbind(call: Call) -> tuple[Axes, ...]:
    """Every index of one axis by itself."""
    axes = list(call.axes("self"))
    freeze(axes.pop(call["dim"] % len(axes)), PICKED)
    return tuple(list(axes) for _ in call.value)


def select(call: Call) -> Axes:
    """One index of one axis."""
    axes = list(call.axes("self"))
    freeze(axes.pop(call["dim"] % len(axes)), PICKED)
    return axes


def slice_(call: Call) -> Axes:
    """A range of one axis."""
    axes = list(call.axes("self"))
    dim = call["dim"] % len(axes)
    whole, size = axes[dim], extent(axes[dim])
    if call["step"] != 1:
        freeze(whole, PICKED)
        axes[dim] = factor(call.shape[dim], INPUT)
        return axes
    start, end, _ = slice(call["start"], call["end"]).indices(size)
    if (start, end) == (0, size):
        return axes
    part = between(whole, start, end)
    if start:
        before = between(whole, 0, start)
        call.literal("start", None, _counted(before))
        call.literal("end", None, lambda counts: count(resolved(before), counts) + count(resolved(part), counts))
    else:
        call.literal("end", None, _counted(part))
    axes[dim] = part
    return axes


def pad(call: Call) -> Axes | None:
    """Numbers before and behind; channels of zeros are channels of their own."""
    if call.values.get("mode", "constant") != "constant":
        return _all_padded(call)
    axes, pads = list(call.axes("self")), list(call["pad"])
    for place in range(len(pads) // 2):
        dim, (low, high) = len(axes) - 1 - place, pads[2 * place : 2 * place + 2]
        if low < 0 or high < 0:
            freeze(axes[dim], PICKED)
            axes[dim] = factor(call.shape[dim], INPUT)
        elif low or high:
            before, after = factor(low) if low else Joined(()), factor(high) if high else Joined(())
            axes[dim] = joined([before, axes[dim], after])
            call.literal("pad", 2 * place, _counted(before))
            call.literal("pad", 2 * place + 1, _counted(after))
    return axes


def _all_padded(call: Call) -> Axes:
    axes, pads = list(call.axes("self")), list(call["pad"])
    for place in range(len(pads) // 2):
        dim = len(axes) - 1 - place
        if pads[2 * place] or pads[2 * place + 1]:
            freeze(axes[dim], MOVED)
            axes[dim] = factor(call.shape[dim], INPUT)
    return axes


def window(call: Call) -> Any:
    """Pools, and resizing: the axes in front stay, the others become others."""
    axes = first(call)
    value = call.value[0] if isinstance(call.value, tuple) else call.value
    spatial = _spatial(str(call.node.target))
    for axis in axes[-spatial:]:
        freeze(axis, MOVED)
    made = [*axes[:-spatial], *(factor(n, INPUT) for n in value.shape[-spatial:])]
    return tuple(list(made) for _ in call.value) if isinstance(call.value, tuple) else made


def _spatial(name: str) -> int:
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


def grid_sampler(call: Call) -> Axes:
    """Pixels picked by coordinates: [N, C, H, W] at [N, H', W', 2] -> [N, C, H', W']; 3-D alike."""
    axes, grid = call.axes("input"), call.axes("grid")
    unify(axes[0], grid[0])
    for axis in (*axes[2:], *grid[1:]):
        freeze(axis, MOVED)
    return [resolved(axes[0]), axes[1], *grid[1:-1]]


def unfold(call: Call) -> Axes:
    """Windows side by side: [N, C, H, W] -> [N, C k k, L]."""
    axes = call.axes("self")
    for axis in axes[-2:]:
        freeze(axis, MOVED)
    window = factor(math.prod(call["kernel_size"]), MOVED)
    return [*axes[:-3], product([axes[-3], window]), factor(call.shape[-1], INPUT)]


def fold(call: Call) -> Axes:
    """Windows summed where they overlap: [N, C k k, L] -> [N, C, H, W]."""
    axes, made = call.axes("self"), factor(call.shape[-3])
    unify(axes[-2], product([made, factor(math.prod(call["kernel_size"]), MOVED)]))
    freeze(axes[-1], MOVED)
    return [*axes[:-2], resolved(made), *(factor(n, INPUT) for n in call.shape[-2:])]


def pixel_shuffle(call: Call) -> Axes:
    """[N, C r r, H, W] -> [N, C, H r, W r]."""
    axes, r = list(call.axes("self")), call["upscale_factor"]
    channels = factor(extent(axes[-3]) // (r * r))
    unify(axes[-3], product([channels, factor(r, MOVED), factor(r, MOVED)]))
    return [*axes[:-3], resolved(channels), *(factor(n, INPUT) for n in call.shape[-2:])]


def pixel_unshuffle(call: Call) -> Axes:
    """[N, C, H r, W r] -> [N, C r r, H, W]."""
    axes, r = list(call.axes("self")), call["downscale_factor"]
    made = product([axes[-3], factor(r, MOVED), factor(r, MOVED)])
    return [*axes[:-3], made, *(factor(n, INPUT) for n in call.shape[-2:])]


def channel_shuffle(call: Call) -> Axes:
    """[N, g c, ...] -> [N, c g, ...]."""
    axes, g = list(call.axes("input" if "input" in call.nodes else "self")), call["groups"]
    groups, inner = factor(g, MOVED), factor(extent(axes[1]) // g)
    unify(axes[1], product([groups, inner]))
    axes[1] = product([resolved(inner), resolved(groups)])
    return axes


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


def matmul(call: Call) -> Axes:
    """[..., m, k] x [..., k, n]."""
    names = list(call.nodes)[:2]
    a, b = (call.axes(name) for name in names)
    made, work = _contract(call, a, b)
    call.reads(0, -1, *_weight(call, 1, max(len(b) - 2, 0)))
    call.works(work, 1)
    return made


def _contract(call: Call, a: Axes, b: Axes) -> tuple[Axes, Axes]:
    unify(a[-1], b[-2] if len(b) > 1 else b[0])
    left, right = (a[-2:-1] if len(a) > 1 else []), (b[-1:] if len(b) > 1 else [])
    outer = call.shape[: len(call.shape) - len(left) - len(right)]
    batch = broadcast(outer, [a[:-2], b[:-2]])
    made = [resolved(axis) for axis in (*batch, *left, *right)]
    return made, [*made, resolved(a[-1])]


def _weight(call: Call, argument: int, axis: int) -> tuple[str, int]:
    """Path and axis of an argument that is a weight as it is."""
    node = call.node.args[argument]
    is_weight = isinstance(node, fx.Node) and node.op == "get_attr"
    return (str(node.target), axis) if is_weight else ("", 0)  # type: ignore[union-attr]


def addmm(call: Call) -> Axes:
    """A matrix product onto something."""
    names = list(call.nodes)
    made, work = _contract(call, call.axes(names[1]), call.axes(names[2]))
    call.reads(1, -1, *_weight(call, 2, max(len(call.axes(names[2])) - 2, 0)))
    call.works(work, 1)
    return broadcast(call.shape, [made, call.axes(names[0])])


def linear(call: Call) -> Axes:
    """A dense layer whose weights are made by the network itself."""
    source, weight = call.axes("input"), call.axes("weight")
    unify(source[-1], weight[1])
    if call.nodes.get("bias") is not None:
        unify(call.axes("bias")[0], weight[0])
    made = [*source[:-1], resolved(weight[0])]
    call.reads(0, -1, *_weight(call, 1, 1))
    call.works([*made, source[-1]], 1)
    return made


def attention(call: Call) -> Axes:
    """Scaled dot products: the products go over what a head holds, the result over the keys."""
    q, k, v = (call.axes(name) for name in ("query", "key", "value"))
    if call.values.get("enable_gqa"):
        return _grouped(call, q, k, v)
    batch = broadcast(call.shape[:-2], [q[:-2], k[:-2], v[:-2]])
    _attend(call, q, k, v)
    return [*batch, q[-2], v[-1]]


def _grouped(call: Call, q: Axes, k: Axes, v: Axes) -> Axes:
    times = factor(extent(q[-3]) // extent(k[-3]))
    unify(k[-3], v[-3])
    unify(q[-3], product([k[-3], times]))
    batch = broadcast(call.shape[:-3], [q[:-3], k[:-3], v[:-3]])
    _attend(call, q, k, v)
    return [*batch, resolved(q[-3]), q[-2], v[-1]]


def _attend(call: Call, q: Axes, k: Axes, v: Axes) -> None:
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    freeze(k[-2], REDUCED)
    if call.nodes.get("attn_mask") is not None:
        mask = call.axes("attn_mask")
        scores = [*call.shape[:-2], extent(q[-2]), extent(k[-2])]
        broadcast(scores, [mask, [*q[:-1], k[-2]]])
    call.reads(0, -1)
    outer = [resolved(axis) for axis in q[:-1]]
    call.works([*outer, k[-2], q[-1]], 1)
    call.works([*outer, k[-2], v[-1]], 1)


def contraction(call: Call) -> Axes:
    """Einstein summation of one tensor or two: axes by letter; letters that the result lacks are summed over."""
    before, after = str(call.node.args[0]).split("->")
    terms, nodes = before.split(","), call.node.args[1:]
    letters: dict[str, Axis] = {}
    for term, node in zip(terms, nodes, strict=True):
        for letter, axis in zip(term, call.found.nodes[node], strict=True):  # type: ignore[index]
            unify(letters.setdefault(letter, axis), axis)
    for letter in letters.keys() - set(after):
        places = [(number + 1, term.index(letter)) for number, term in enumerate(terms) if letter in term]
        places.sort(key=lambda place: bool(_weight(call, *place)[0]))  # what is computed comes first
        call.reads(*places[0], *(_weight(call, *places[-1]) if len(places) > 1 else ("", 0)))
    if len(terms) > 1:
        call.works([resolved(axis) for axis in letters.values()], 1)
    return [resolved(letters[letter]) for letter in after]


def normalise(call: Call) -> Axes:
    """LayerNorm or RMSNorm over the last axes, whose weights, where there are any, are no layer's."""
    axes, extents = call.axes("input"), call["normalized_shape"]
    for name in ("weight", "bias"):
        if call.nodes.get(name) is not None:
            for own, other in zip(call.axes(name), axes[-len(extents) :], strict=True):
                unify(own, other)
    for back in range(-len(extents), 0):
        call.normalises(back)
        call.literal("normalized_shape", len(extents) + back, _counted(axes[back]))
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
    call.literal("num_groups", None, _counted(groups))
    return axes


def glu(call: Call) -> Axes:
    """One half of an axis gates the other."""
    axes = list(call.axes("self"))
    dim, half = call["dim"] % len(axes), call.shape[call["dim"]]
    a, b = between(axes[dim], 0, half), between(axes[dim], half, 2 * half)
    unify(a, b)
    axes[dim] = resolved(a)
    return axes


def index(call: Call) -> Axes | None:
    """Elements by number: the axes that are picked from stay whole."""
    axes, given = call.axes("self"), list(call["indices"])
    given += [None] * (len(axes) - len(given))
    used = [i for i, one in enumerate(given) if one is not None]
    if used != list(range(used[0], used[-1] + 1)) or any(given[i].dtype == torch.bool for i in used):
        return None
    for i in used:
        freeze(axes[i], PICKED)
    for node in call.nodes["indices"]:
        if node is not None:
            for axis in call.found.nodes[node]:
                freeze(axis, PICKED)
    shape = list(call.shape)[used[0] : used[0] + len(call.shape) - len(axes) + len(used)]
    return [*axes[: used[0]], *(factor(n, PICKED) for n in shape), *axes[used[-1] + 1 :]]


def index_select(call: Call) -> Axes:
    """The same along one axis."""
    axes = list(call.axes("self"))
    dim = call["dim"] % len(axes)
    freeze(axes[dim], PICKED)
    axes[dim] = factor(call.shape[dim], PICKED)
    return axes


def copied(call: Call) -> Axes:
    """One tensor written into another."""
    axes, source = call.axes("self"), call.axes("src")
    broadcast(call.shape, [axes, source])
    return axes


def slice_scatter(call: Call) -> Axes | None:
    """One tensor written into a range of another."""
    axes, source, dim = call.axes("self"), call.axes("src"), call["dim"]
    for i, (own, other) in enumerate(zip(axes, source, strict=True)):
        if i != dim % len(axes):
            unify(own, other)
        elif extent(own) != extent(other):
            return None
        else:
            unify(own, other)
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
