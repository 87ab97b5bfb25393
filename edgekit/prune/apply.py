"""Removing channels, and masking them: the same network twice, once smaller and once with zeros."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from edgekit.prune.groups import Group
from edgekit.prune.shapes import fit_attributes, owner_of, replace_tensor

Removal = Mapping[str, Sequence[int]]
"""Group name -> the channels of that group that go."""


def removed(module: nn.Module, groups: Sequence[Group], removal: Removal) -> nn.Module:
    """A copy of `module` without the channels in `removal`; an ordinary module of smaller layers."""
    result = copy.deepcopy(module)
    gone: dict[tuple[str, int], set[int]] = defaultdict(set)
    for group in groups:
        for member in group.members:
            gone[member.tensor, member.axis].update(member.positions(removal.get(group.name, ())))
    for (name, axis), positions in gone.items():
        owner, attribute = owner_of(result, name)
        tensor = getattr(owner, attribute)
        keep = torch.tensor([i for i in range(tensor.shape[axis]) if i not in positions], dtype=torch.long)
        replace_tensor(owner, attribute, tensor.detach().index_select(axis, keep).clone())
    fit_attributes(result)
    return result


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
