"""Which channels of a module must go together.

The dependency graph of Torch-Pruning (Fang et al. 2023, arXiv:2301.12900) proposes the groups; each is then proven on
the model itself, and one that doesn't hold is left whole, with the reason.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.extras import require
from edgekit.prune.apply import masked, removed
from edgekit.prune.groups import Group, Member, Side

OUTPUT = "its channels are an output of the model"
DIFFERENT = "removing its channels is not the same as masking them: a later operation shifts or mixes them"


@dataclass(frozen=True)
class Found:
    """The groups that may be pruned, and the layers that stay whole with the reason."""

    groups: tuple[Group, ...]
    whole: dict[str, str]


ENDLESS = "where its channels go cannot be followed to an end"
MOST_TIMES = 4
"""A group may pass every edge of the model so often (with other positions each time) before it counts as endless."""


class _EndlessError(Exception):
    """Following the channels of a layer doesn't come to an end."""


class _WholeError(Exception):
    """A group that can't be pruned; the message says why."""


def find_groups(module: nn.Module, inputs: tuple[Tensor, ...]) -> Found:
    """The prunable groups of `module`, which is not changed. `inputs` is a small probe batch.

    Raises:
        UsageError: no layer of the model can be pruned, or the model can't be traced.
    """
    proposed = _propose(module, inputs)
    groups, whole = [], {}
    for name, made in proposed:
        if isinstance(made, Group):
            reason = _refuted(module, made, inputs)
            if reason is None:
                groups.append(made)
            else:
                whole[name] = reason
        else:
            whole[name] = made
    if not groups:
        reasons = "; ".join(f"{k}: {v}" for k, v in list(whole.items())[:5]) or "it has no convolution or linear layer"
        raise UsageError(f"No channels of this model can be pruned ({reasons}). Leave 'prune' out of the recipe.")
    return Found(tuple(groups), whole)


def _propose(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[str, Group | str]]:
    tp = require("torch_pruning", extra="torch", why="pruning")
    copied = copy.deepcopy(module).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(True)
    names = {id(m): n for n, m in copied.named_modules()} | {id(p): n for n, p in copied.named_parameters()}
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(copied, example_inputs=inputs, verbose=False)
            found = list(_groups(tp, graph))
    except Exception as error:
        raise UsageError(
            f"Pruning can't trace this model ({type(error).__name__}: {error}). Leave 'prune' out of the recipe."
        ) from error
    result: list[tuple[str, Group | str]] = []
    for layer, group in found:
        name = names[id(layer)]
        if group is None:
            result.append((name, ENDLESS))
            continue
        try:
            result.append((name, _translate(group, name, names, graph)))
        except _WholeError as reason:
            result.append((name, str(reason)))
    return result


def _groups(tp: Any, graph: Any) -> Iterator[tuple[nn.Module, Any]]:
    """Every layer that makes channels, with its group, or None where following its channels finds no end.

    Torch-Pruning walks on while the positions that it sees are new. Through flattened maps that are joined and taken
    apart again (the head of a detector) they are new for ever.
    """
    from torch_pruning.dependency import graph as walking

    most = MOST_TIMES * sum(len(node.dependencies) for node in graph.module2node.values())

    class Bounded(walking.Group):  # type: ignore[misc]
        def add_dep(self, dep: Any, idxs: Any) -> None:
            if len(self) > most:
                raise _EndlessError
            super().add_dep(dep, idxs)

    visited: set[nn.Module] = set(graph.IGNORED_LAYERS_IN_TRACING)
    original, walking.Group = walking.Group, Bounded
    try:
        for layer in list(graph.module2node):
            if not isinstance(layer, tp.ops.TORCH_CONV | tp.ops.TORCH_LINEAR) or layer in visited:
                continue
            pruner = graph.get_pruner_of_module(layer)
            try:
                group = graph.get_pruning_group(
                    layer, pruner.prune_out_channels, list(range(pruner.get_out_channels(layer)))
                )
            except _EndlessError:
                yield layer, None
                continue
            visited |= {dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)}
            yield layer, group
    finally:
        walking.Group = original


def _translate(group: Any, name: str, names: dict[int, str], graph: Any) -> Group:
    channels = len(group[0].idxs)
    members: list[Member] = []
    for item in group:
        target = item.dep.target.module
        if id(target) not in names:
            continue  # an operation without parameters
        index: list[list[int]] = [[] for _ in range(channels)]
        for root, position in zip(item.root_idxs, item.idxs, strict=True):
            index[root].append(position)
        side: Side = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
        for tensor, axis, own_side in _tensors(target, side, item.dep.target.pruning_dim):
            path = f"{names[id(target)]}.{tensor}".strip(".")
            members.append(Member(path, axis, own_side, tuple(tuple(sorted(set(p))) for p in index)))
    if not any(m.side == "in" for m in members):
        raise _WholeError(OUTPUT)
    return Group(name, channels, tuple(dict.fromkeys(members)))


def _tensors(target: Any, side: Side, axis: int | None) -> list[tuple[str, int, Side]]:
    """The tensors of a layer that follow its channels on one side: (attribute, axis, side)."""
    if isinstance(target, nn.Parameter):
        return [("", axis if axis is not None else target.ndim - 1, "out")]
    if isinstance(target, nn.modules.conv._ConvNd):
        return _conv_tensors(target, side)
    if isinstance(target, nn.Linear):
        return [("weight", 1, "in")] if side == "in" else [("weight", 0, "out"), *_present(target, "bias")]
    if isinstance(target, nn.modules.batchnorm._BatchNorm | nn.PReLU):
        return _present(target, "weight", "bias", "running_mean", "running_var")
    raise _WholeError(f"it reaches a {type(target).__name__}, which is not pruned")


def _conv_tensors(target: nn.modules.conv._ConvNd, side: Side) -> list[tuple[str, int, Side]]:
    if target.groups > 1:
        if not target.groups == target.in_channels == target.out_channels:
            raise _WholeError(f"it reaches a convolution with {target.groups} groups")
        return [("weight", 0, "out"), *_present(target, "bias")]
    into = 0 if target.transposed else 1
    return [("weight", into, "in")] if side == "in" else [("weight", 1 - into, "out"), *_present(target, "bias")]


def _present(target: nn.Module, *names: str) -> list[tuple[str, int, Side]]:
    return [(n, 0, "out") for n in names if getattr(target, n, None) is not None]


def _refuted(module: nn.Module, group: Group, inputs: tuple[Tensor, ...]) -> str | None:
    """Why removing channels of `group` is not the same as masking them, tried on `module`; None if it is."""
    half = {group.name: list(range(0, group.channels, 2))}
    with torch.no_grad():
        try:
            expected = _outputs(masked(module, (group,), half), inputs)
        except IndexError:
            return DIFFERENT
        try:
            seen = _outputs(removed(module, (group,), half), inputs)
        except (RuntimeError, IndexError, ValueError) as error:
            return f"the model fails without them ({str(error).strip().partition(chr(10))[0]})"
    for a, b in zip(seen, expected, strict=True):
        if a.shape != b.shape:
            return OUTPUT
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max()))):
            return DIFFERENT
    return None


def _outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    result = module.eval()(*inputs)
    return [result] if isinstance(result, Tensor) else list(result)
