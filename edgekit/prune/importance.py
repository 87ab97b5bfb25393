"""How much each channel of each group matters: one score a channel, higher is more important.

- `taylor`: squared first-order change of the loss when the channel is cut off from its consumers, averaged over
  samples (Molchanov et al. 2017, arXiv:1611.06440, and 2019, arXiv:1906.10771). Needs labels.
- `activation`: variance of the channel times the squared norm of the weights that read it: what is lost once
  the biases have taken up the mean (FLAP, An et al. 2023, arXiv:2312.11983). Needs samples alone.
- `l1`, `l2`: norms of all weights of the channel in the group (Li et al. 2016, arXiv:1608.08710; group norms as in
  Fang et al. 2023, arXiv:2301.12900).
- `bn_scale`: magnitude of BatchNorm's scale (Liu et al. 2017, arXiv:1708.06519).
- `random`: the control.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import UsageError
from edgekit.prune.groups import Group, Member
from edgekit.prune.shapes import owner_of

Importance = Literal["taylor", "activation", "l1", "l2", "bn_scale", "random"]
Batch = tuple[Tensor, Tensor | None]
"""Inputs of the model and class labels `[N]`, or None."""
Scores = dict[str, Tensor]
"""Group name -> `[channels]` float64."""


def score(
    kind: Importance, module: nn.Module, groups: Sequence[Group], batches: Iterable[Batch], seed: int = 0
) -> Scores:
    """The score of every channel. `batches` is read by `taylor` and `activation` alone; `module` is not changed."""
    if kind == "taylor":
        return _taylor(copy.deepcopy(module).eval(), groups, batches)
    if kind == "activation":
        return _activation(module.eval(), groups, batches)
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return {g.name: torch.rand(g.channels, generator=generator, dtype=torch.float64) for g in groups}
    if kind == "bn_scale":
        return {g.name: _bn_scale(module, g) for g in groups}
    return {g.name: _norms(module, g, 1 if kind == "l1" else 2) for g in groups}


def by_channel(member: Member, values: Tensor) -> Tensor:
    """`values` `[..., positions]` summed into the group's channels: `[..., channels]`."""
    if all(len(p) == 1 and p[0] == c for c, p in enumerate(member.index)) and values.shape[-1] == len(member.index):
        return values
    columns = [values[..., list(p)].sum(-1) for p in member.index]
    return torch.stack(columns, dim=-1)


def _weights(module: nn.Module, group: Group) -> list[tuple[Member, Tensor]]:
    """The members that are weights of two or more axes: not biases or normalisation."""
    pairs = [(m, getattr(*owner_of(module, m.tensor)).detach()) for m in group.members]
    return [(m, t) for m, t in pairs if t.ndim >= 2]


def _norms(module: nn.Module, group: Group, power: int) -> Tensor:
    total = torch.zeros(group.channels, dtype=torch.float64)
    for member, tensor in _weights(module, group):
        values = tensor.double().abs().pow(power).movedim(member.axis, -1).reshape(-1, tensor.shape[member.axis])
        total += by_channel(member, values.sum(0))
    return total if power == 1 else total.sqrt()


def _bn_scale(module: nn.Module, group: Group) -> Tensor:
    total, found = torch.zeros(group.channels, dtype=torch.float64), False
    for member in group.members:
        owner, attribute = owner_of(module, member.tensor)
        if isinstance(owner, nn.modules.batchnorm._BatchNorm) and attribute == "weight":
            total += by_channel(member, owner.weight.detach().double().abs())
            found = True
    if not found:
        raise UsageError(f"importance 'bn_scale': layer {group.name!r} has no BatchNorm. Use 'taylor' or 'l2'.")
    return total


def _channel_axis_last(layer: nn.Module, values: Tensor) -> Tensor:
    """`[N, ..., channels]`, whatever the layer's layout."""
    return values if isinstance(layer, nn.Linear) else values.movedim(1, -1)


def _activation(module: nn.Module, groups: Sequence[Group], batches: Iterable[Batch]) -> Scores:
    layers = {m.layer: module.get_submodule(m.layer) for g in groups for m in g.consumers}
    sums: dict[str, list[Tensor | float]] = {}

    def watch(name: str, layer: nn.Module, x: Tensor) -> None:
        flat = _channel_axis_last(layer, x.detach()).reshape(-1, _in_positions(layer, x)).double()
        count, mean, square = sums.get(name, [0.0, 0.0, 0.0])
        sums[name] = [count + len(flat), mean + flat.sum(0), square + (flat * flat).sum(0)]

    handles = [
        layer.register_forward_pre_hook(lambda mod, args, name=name: watch(name, mod, args[0]))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            for inputs, _ in batches:
                module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    scores = {}
    for group in groups:
        total = torch.zeros(group.channels, dtype=torch.float64)
        for member in group.consumers:
            count, mean, square = sums[member.layer]
            variance = square / count - (mean / count) ** 2
            weight = getattr(*owner_of(module, member.tensor)).detach().double()
            norm = weight.pow(2).movedim(member.axis, -1).reshape(-1, weight.shape[member.axis]).sum(0)
            total += by_channel(member, variance * norm)
        scores[group.name] = total
    return scores


def _in_positions(layer: nn.Module, x: Tensor) -> int:
    return x.shape[-1] if isinstance(layer, nn.Linear) else x.shape[1]


def _taylor(module: nn.Module, groups: Sequence[Group], batches: Iterable[Batch]) -> Scores:
    layers = {m.layer: module.get_submodule(m.layer) for g in groups for m in g.consumers}
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # A tensor of its own for each consumer: the gradient along this edge, not of all that read the channel.
        edge = args[0].view_as(args[0]) if args[0].requires_grad else args[0].detach().requires_grad_(True)
        edge.retain_grad()
        seen.setdefault(name, []).append(edge)
        return (edge, *args[1:])

    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: watch(name, args)) for name, layer in layers.items()
    ]
    scores = {g.name: torch.zeros(g.channels, dtype=torch.float64) for g in groups}
    count = 0
    try:
        with torch.enable_grad():
            for inputs, labels in batches:
                if labels is None:
                    raise UsageError("importance 'taylor' needs labels. Use 'activation' for data without.")
                seen.clear()
                torch.autograd.backward(F.cross_entropy(_logits(module(inputs)), labels, reduction="sum"))
                count += len(labels)
                for group in groups:
                    scores[group.name] += _edges(group, layers, seen, len(labels)).pow(2).sum(0)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / max(count, 1) for name, total in scores.items()}


def _edges(group: Group, layers: dict[str, nn.Module], seen: dict[str, list[Tensor]], samples: int) -> Tensor:
    """`[samples, channels]`: minus the first-order change of each sample's loss without the channel."""
    total = torch.zeros(samples, group.channels, dtype=torch.float64)
    for member in group.consumers:
        for edge in seen[member.layer]:
            assert edge.grad is not None
            change = _channel_axis_last(layers[member.layer], (edge * edge.grad).detach()).double()
            total += by_channel(member, change.reshape(samples, -1, change.shape[-1]).sum(1))
    return total


def _logits(output: Tensor | Sequence[Tensor]) -> Tensor:
    logits = output if isinstance(output, Tensor) else output[0]
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UsageError(
            f"importance 'taylor' needs class logits [N, classes] as the model's first output, got "
            f"{list(logits.shape)}. Set prune.importance to 'activation'."
        )
    return logits
