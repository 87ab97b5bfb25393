"""Statistics after channels are gone: BatchNorm's are measured anew; without BatchNorm the biases take up the shift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from edgekit.prune.cost import LAYERS

_Norm = nn.modules.batchnorm._BatchNorm


def reestimate_batchnorm(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm by the plain average over `batches`, in place.

    Only BatchNorm runs in training mode meanwhile, so dropout and the like stay off.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _Norm) and layer.running_mean is not None]
    momenta = [layer.momentum for layer in norms]
    module.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
        layer.train()
    try:
        with torch.no_grad():
            for inputs in batches:
                module(inputs)
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
        module.eval()


def channel_means(module: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """The mean output of every channel of every layer that has a bias, by the layer's name."""
    means: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda mod, _, output, name=name: means.update({name: _mean(mod, output)}))
        for name, layer in _biased(module).items()
    ]
    try:
        with torch.no_grad():
            module.eval()(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return means


def correct_biases(module: nn.Module, inputs: Tensor, wanted: Mapping[str, Tensor]) -> int:
    """Shift biases in place until every layer's mean output over `inputs` is `wanted`; how many were shifted.

    Layers are corrected in the order in which they run, each on the corrected output of those before it: the hook
    returns the shifted output, so one pass does them all (bias correction as in Nagel et al. 2019,
    arXiv:1906.04721, by measured means).
    """
    layers = _biased(module)
    done: set[str] = set()

    def correct(name: str, layer: nn.Module, output: Tensor) -> Tensor | None:
        if name in done or name not in wanted:
            return None
        done.add(name)
        bias = layer.bias
        assert isinstance(bias, Tensor)
        shift = wanted[name] - _mean(layer, output)
        bias += shift
        return output + (shift if isinstance(layer, nn.Linear) else shift.reshape(-1, *[1] * (output.ndim - 2)))

    handles = [
        layer.register_forward_hook(lambda mod, _, output, name=name: correct(name, mod, output))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            module.eval()(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return len(done)


def _biased(module: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in module.named_modules() if isinstance(m, LAYERS) and m.bias is not None}


def _mean(layer: nn.Module, output: Tensor) -> Tensor:
    axes = range(output.ndim - 1) if isinstance(layer, nn.Linear) else [0, *range(2, output.ndim)]
    return output.mean(dim=tuple(axes))
