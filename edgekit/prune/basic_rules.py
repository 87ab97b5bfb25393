"""What the rules of operations have in common: why axes stay whole, and how arguments are stretched to one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from edgekit.prune.axes import (
    Axis,
    count,
    extent,
    factor,
    resolved,
    unify,
)
from edgekit.prune.follow import INPUT, Axes, Call, Counts

aten = torch.ops.aten

REDUCED = "an operation takes its channels together (a mean, a maximum, a softmax)"
PICKED = "single ones of its channels are picked by number"
MOVED = "a window moves along its channels, or they change places"


def counted(axis: Axis) -> Callable[[Counts], int]:
    """How many positions of the axis stay, once it is known what does."""
    return lambda counts: count(resolved(axis), counts)


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
