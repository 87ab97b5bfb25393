"""Removing channels, and masking them: the same network twice, once smaller and once with zeros."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgekit.prune.groups import Group
from edgekit.prune.shapes import fit_attributes, owner_of, replace_tensor

Removal = Mapping[str, Sequence[int]]
"""Group name -> the channels of that group that go."""


def removed(module: nn.Module, groups: Sequence[Group], removal: Removal) -> nn.Module:
    """A copy of `module` without the channels in `removal`; an ordinary module of smaller layers."""
    result = copy.deepcopy(module)
    for (name, axis), rows in _kept(module, groups, removal).items():
        owner, attribute = owner_of(result, name)
        replace_tensor(owner, attribute, getattr(owner, attribute).detach().index_select(axis, rows).clone())
    fit_attributes(result)
    return result


def kept(module: nn.Module, groups: Sequence[Group], removal: Removal) -> dict[str, Tensor]:
    """Which positions stay along the first axis of every tensor that follows a group, by the tensor's name."""
    return {name: rows for (name, axis), rows in _kept(module, groups, removal).items() if axis == 0}


def _kept(module: nn.Module, groups: Sequence[Group], removal: Removal) -> dict[tuple[str, int], Tensor]:
    gone: dict[tuple[str, int], set[int]] = defaultdict(set)
    for group in groups:
        for member in group.members:
            gone[member.tensor, member.axis].update(member.positions(removal.get(group.name, ())))
    extents = {(name, axis): getattr(*owner_of(module, name)).shape[axis] for name, axis in gone}
    return {
        key: torch.tensor([i for i in range(extents[key]) if i not in positions], dtype=torch.long)
        for key, positions in gone.items()
    }


def masked(module: nn.Module, groups: Sequence[Group], removal: Removal) -> nn.Module:
    """A copy of `module` whose consumers ignore the channels in `removal`: what `removed` must equal."""
    result = copy.deepcopy(module)
    with torch.no_grad():
        for group in groups:
            for member in group.consumers:
                owner, attribute = owner_of(result, member.tensor)
                tensor = getattr(owner, attribute)
                positions = torch.tensor(member.positions(removal.get(group.name, ())), dtype=torch.long)
                tensor.index_fill_(member.axis, positions, 0.0)
    return result
