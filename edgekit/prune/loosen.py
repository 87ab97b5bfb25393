"""Reshapes of a torch view that repeat a channel count as a constant, rewritten so that channels may go."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from edgekit.graph.torch_step import Function


def loosen(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """`module`, or a copy that computes the same with reshapes such as `[-1, 256]` as `Flatten(1)`.

    Exporters write a flatten as a reshape to constants. `inputs` is a probe batch of two or more samples: what a
    reshape does is seen on it.
    """
    reshapes = {n: m for n, m in module.named_modules() if isinstance(m, Function) and "target" in m.settings}
    if not reshapes:
        return module
    found: dict[str, nn.Module] = {}
    handles = [layer.register_forward_hook(partial(_watch, name, found)) for name, layer in reshapes.items()]
    try:
        with torch.no_grad():
            module.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    result = copy.deepcopy(module)
    for name, layer in found.items():
        result.set_submodule(name, layer)
    return result


def _watch(name: str, found: dict[str, nn.Module], layer: Function, args: tuple[Tensor, ...], output: Tensor) -> None:
    x, target = args[0], list(layer.settings["target"])
    if len(x) < 2 or len(x) != len(output):
        return
    if output.ndim == 2 and x.ndim > 2:
        found[name] = nn.Flatten(1)
        return
    # [N, C, H, W] -> [N, C, H * W] and the like: axes that stay are copied, one that changes is inferred.
    same = [axis < x.ndim and x.shape[axis] == extent for axis, extent in enumerate(output.shape)]
    changed = [axis for axis, kept in enumerate(same) if not kept]
    if changed == [len(target) - 1]:
        settings = {**layer.settings, "target": [0] * (len(target) - 1) + [-1], "zero": False}
        found[name] = Function(layer.function, **settings)
