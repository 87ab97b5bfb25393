"""Multiply-accumulates of a module, and of the module that a removal would leave."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgekit.prune.groups import Group

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def count_macs(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates for one sample: convolutions, linear layers and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    # The counter looks for the gradient function of what a module returns; a view of a parameter has none here.
    frozen = copy.deepcopy(module).requires_grad_(False).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        frozen(*inputs)
    return int(counter.get_total_flops()) // 2 // len(inputs[0])


class MacModel:
    """Predicts MACs from tensor shapes alone: each weight is used once at each output position.

    What no weight explains (products of two activations) is counted once and taken as fixed.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._positions = _positions(module, inputs)
        parameters = dict(module.named_parameters(remove_duplicate=False))  # a shared weight has a name a user
        self._shapes = {name: list(parameters[name].shape) for name in self._positions}
        self.total = count_macs(module, inputs)
        self._fixed = self.total - sum(self._layer(name, {}) for name in self._positions)

    def _layer(self, name: str, gone: dict[tuple[str, int], int]) -> int:
        macs = self._positions[name]
        for axis, extent in enumerate(self._shapes[name]):
            macs *= extent - gone.get((name, axis), 0)
        return macs

    def after(self, groups: Iterable[Group], removal: dict[str, list[int]]) -> int:
        """MACs once the channels in `removal` are gone."""
        gone: dict[tuple[str, int], int] = defaultdict(int)
        for group in groups:
            channels = removal.get(group.name, ())
            for member in group.members if channels else ():
                gone[member.tensor, member.axis] += len(member.positions(channels))
        return self._fixed + sum(self._layer(name, gone) for name in self._positions)


def _positions(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, int]:
    """How often each layer's weight is used for one sample, by the weight's name."""
    counts: dict[str, int] = defaultdict(int)
    names: dict[nn.Module, str] = {layer: name for name, layer in module.named_modules() if isinstance(layer, LAYERS)}

    def count(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        transposed = isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed
        tensor = args[0] if transposed else output
        own = tensor.shape[-1] if isinstance(layer, nn.Linear) else tensor.shape[1]
        counts[f"{names[layer]}.weight"] += tensor.numel() // own // len(inputs[0])

    handles = [layer.register_forward_hook(count) for layer in names]
    try:
        with torch.no_grad():
            module.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return dict(counts)
