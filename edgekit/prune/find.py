"""Which channels of a network may go, and which must go together.

What `follow` says is proven on the network itself: half of every group's channels are removed, and the result is held
against the same network with those channels masked. A group that does not hold is left whole, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, fx, nn

from edgekit.errors import UsageError
from edgekit.prune.axes import Axis, Factor, factors, positions, resolved
from edgekit.prune.follow import OUTPUT, Followed, follow
from edgekit.prune.groups import Group, Member

DIFFERENT = "removing its channels is not the same as masking them"
MOST_PROOFS = 64
"""Groups that do not hold are searched for with so many runs of the network at most."""


@dataclass(frozen=True)
class Found:
    """A lifted network, the groups that may be cut, the factor behind each, and the layers that stay whole and why."""

    view: fx.GraphModule
    followed: Followed
    groups: tuple[Group, ...]
    whole: dict[str, str]
    factors: dict[str, Factor] = field(default_factory=dict)


def find_groups(view: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Found:
    """The prunable groups of a lifted network, which is not changed. `inputs` is a probe batch of two samples.

    Raises:
        UsageError: no layer of the model can be pruned.
    """
    followed = follow(view, inputs)
    named = dict(_named(followed))
    groups = {name: _group(name, one, followed) for name, one in named.items()}
    whole = {**followed.apart, **dict(_whole(followed))}
    found = Found(view, followed, tuple(groups.values()), whole, named)
    found = _proven(found, inputs)
    if not found.groups:
        texts = [f"{k}: {v}" for k, v in found.whole.items() if v != OUTPUT] or [f"{k}: {v}" for k, v in whole.items()]
        reasons = "; ".join(texts[:5]) or "it has no convolution or linear layer"
        raise UsageError(f"No channels of this model can be pruned ({reasons}). Leave 'prune' out of the recipe.")
    return found


def _made(followed: Followed) -> Iterator[tuple[str, Axis]]:
    """Every convolution and dense layer by name, with the axis that its weight makes."""
    for name, layer in followed.view.named_modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) and f"{name}.weight" in followed.tensors:
            transposed = isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed
            yield name, resolved(followed.tensors[f"{name}.weight"][1 if transposed else 0])


def _named(followed: Followed) -> Iterator[tuple[str, Factor]]:
    """The factors that are free, named after the layer that makes them, or else after a weight that they shape."""
    seen: set[Factor] = set()
    names: set[str] = set()
    others = [(path, resolved(axis)) for path, axes in followed.tensors.items() for axis in axes]
    for name, axis in [*_made(followed), *others]:
        free = list(dict.fromkeys(one for one in factors(axis) if not one.frozen))
        for number, one in enumerate(free):
            if one not in seen and one.extent > 1:
                seen.add(one)
                own = name if len(free) == 1 else f"{name}[{number}]"
                while own in names:  # another axis of the same weight
                    number += 1
                    own = f"{name}[{number}]"
                names.add(own)
                yield own, one


def _group(name: str, one: Factor, followed: Followed) -> Group:
    read = {(reads.weight, reads.weight_axis) for reads in followed.reads if reads.weight}
    members = []
    for path, axes in followed.tensors.items():
        for number, axis in enumerate(axes):
            own = resolved(axis)
            if one in factors(own):
                members.append(Member(path, number, "in" if (path, number) in read else "out", positions(own, one)))
    return Group(name, one.extent, tuple(members))


def _whole(followed: Followed) -> Iterator[tuple[str, str]]:
    for name, axis in _made(followed):
        parts = list(factors(axis))
        if parts and all(one.frozen for one in parts):
            yield name, parts[-1].frozen


def _proven(found: Found, inputs: tuple[Tensor, ...]) -> Found:
    """Without the groups for which removing is not masking; all are tried at once first."""
    budget = [MOST_PROOFS]
    bad = {group.name for group in _refuted(found, list(found.groups), inputs, budget)}
    if not bad:
        return found
    whole = {**found.whole, **dict.fromkeys(sorted(bad), DIFFERENT)}
    return replace(found, groups=tuple(g for g in found.groups if g.name not in bad), whole=whole)


def _refuted(found: Found, groups: list[Group], inputs: tuple[Tensor, ...], budget: list[int]) -> list[Group]:
    if not groups:
        return []
    if budget[0] <= 0:
        return groups
    budget[0] -= 1
    if _holds(found, groups, inputs):
        return []
    if len(groups) == 1:
        return groups
    middle = len(groups) // 2
    return [
        *_refuted(found, groups[:middle], inputs, budget),
        *_refuted(found, groups[middle:], inputs, budget),
    ]


def _holds(found: Found, groups: Sequence[Group], inputs: tuple[Tensor, ...]) -> bool:
    from edgekit.prune.apply import difference, masked, removed

    half = {group.name: list(range(0, group.channels, 2)) for group in groups}
    try:
        smaller = removed(found, half).view
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False
    return difference(smaller, masked(found, half), inputs) is not None
