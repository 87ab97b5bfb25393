"""Operations that move, join, take apart or pick positions, and compute nothing."""

from __future__ import annotations

import math
from typing import Any

import torch

from edgekit.prune.axes import (
    ONE,
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
from edgekit.prune.basic_rules import MOVED, PICKED, broadcast, counted, first
from edgekit.prune.follow import INPUT, Axes, Call

aten = torch.ops.aten


def filled(call: Call) -> Axes:
    """A tensor of given extents that holds one number."""
    axes = [factor(n) for n in call.shape]
    for index, axis in enumerate(axes):
        call.literal("size", index, counted(axis))
    return axes


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
                call.literal(argument, index, counted(result[start + index]))
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
            call.literal("size", index, counted(axis))
    return result


def repeat(call: Call) -> Axes:
    """Copies side by side: so many times the axis."""
    axes = call.axes("self")
    axes = [ONE] * (len(call.shape) - len(axes)) + axes
    result: Axes = []
    for index, axis in enumerate(axes):
        times = factor(call.shape[index] // max(extent(axis), 1))
        result.append(product([times, axis]))
        call.literal("repeats", index, counted(times))
    return result


def repeat_interleave(call: Call) -> Axes | None:
    """Each index several times over: grouped queries."""
    if call.values.get("dim") is None or not isinstance(call.values.get("repeats"), int):
        return None
    axes, dim = list(call.axes("self")), call["dim"]
    times = factor(call["repeats"])
    call.literal("repeats", None, counted(times))
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
        call.literal("split_sizes", index, counted(own[dim]))
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
        call.literal("start", None, counted(before))
        call.literal("end", None, lambda counts: count(resolved(before), counts) + count(resolved(part), counts))
    else:
        call.literal("end", None, counted(part))
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
            call.literal("pad", 2 * place, counted(before))
            call.literal("pad", 2 * place + 1, counted(after))
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
