"""Multiply-accumulates of a module, and of the network that a removal would leave."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.prune.axes import Axis, Factor, count, factors, resolved

if TYPE_CHECKING:
    from edgekit.prune.apply import Removal
    from edgekit.prune.find import Found

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def count_macs(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates for one sample: convolutions, linear layers and matrix products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter looks for the gradient function of what a module returns; a view of a parameter has none here.
    frozen = copy.deepcopy(module).requires_grad_(False).eval()
    # It does not know the fused attention of processors either.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel([SDPBackend.MATH]):
        frozen(*inputs)
    return int(counter.get_total_flops()) // 2 // len(inputs[0])


class MacModel:
    """Predicts MACs of one sample from how many indices of each factor stay."""

    def __init__(self, found: Found) -> None:
        self._factors = found.factors
        self._batch = found.followed.batch
        self._work: list[tuple[int, tuple[Axis, ...]]] = []
        self._of: dict[Factor, list[int]] = {}
        for work in found.followed.work:
            axes = tuple(resolved(axis) for axis in work.axes)
            for one in {part for axis in axes for part in factors(axis)}:
                self._of.setdefault(one, []).append(len(self._work))
            self._work.append((work.times, axes))
        self.total = self.left({})

    def left(self, counts: Mapping[Factor, int]) -> int:
        """MACs when so many indices of these factors stay."""
        return sum(self._one(number, counts) for number in range(len(self._work))) // self._batch

    def freed(self, counts: Mapping[Factor, int], one: Factor, stay: int) -> int:
        """How many fewer there are once only `stay` indices of `one` do."""
        after = {**counts, one: stay}
        touched = self._of.get(one, ())
        return sum(self._one(n, counts) - self._one(n, after) for n in touched) // self._batch

    def _one(self, number: int, counts: Mapping[Factor, int]) -> int:
        times, axes = self._work[number]
        for axis in axes:
            times *= count(axis, counts)
        return times

    def after(self, removal: Removal) -> int:
        """MACs once the channels in `removal` are gone."""
        return self.left({self._factors[n]: self._factors[n].extent - len(gone) for n, gone in removal.items()})
