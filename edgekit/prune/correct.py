"""Statistics after channels are gone: BatchNorm measures anew; without it, biases and scales take up the shift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from edgekit.prune.cost import LAYERS

MOST = 4.0
"""How far a correction may scale a channel: beyond that its statistics are noise."""

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


Moments = tuple[Tensor, Tensor]
"""Mean and standard deviation `[channels]` of a layer's output."""


def channel_moments(module: nn.Module, inputs: Tensor) -> dict[str, Moments]:
    """Mean and deviation of every output channel of every layer that has a bias, by the layer's name."""
    moments: dict[str, Moments] = {}
    handles = [
        layer.register_forward_hook(lambda mod, _, output, name=name: moments.update({name: _moments(mod, output)}))
        for name, layer in biased(module).items()
    ]
    try:
        with torch.no_grad():
            module.eval()(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return moments


def correct_biases(module: nn.Module, inputs: Tensor, wanted: Mapping[str, Moments]) -> int:
    """Set biases and weight scales in place until every layer's output has the `wanted` moments; how many layers.

    What re-estimation does where there is BatchNorm: bias correction (Nagel et al. 2019, arXiv:1906.04721) by
    measured means, and the deviation with it. Layers are corrected in the order in which they run, each on the
    corrected output of those before it: the hook returns the corrected output, so one pass does them all.
    """
    done: set[str] = set()

    def correct(name: str, layer: nn.Module, output: Tensor) -> Tensor | None:
        if name in done or name not in wanted:
            return None
        done.add(name)
        mean, deviation = _moments(layer, output)
        ratio = (wanted[name][1] / deviation.clamp_min(1e-8)).clamp(1 / MOST, MOST)
        if not scale_outputs(layer, ratio):
            ratio = torch.ones_like(ratio)
        bias = layer.bias
        assert isinstance(bias, Tensor)
        bias.copy_((bias - mean) * ratio + wanted[name][0])
        shape = (-1,) if isinstance(layer, nn.Linear) else (-1, *[1] * (output.ndim - 2))
        return torch.addcmul((wanted[name][0] - mean * ratio).reshape(shape), output, ratio.reshape(shape))

    handles = [
        layer.register_forward_hook(lambda mod, _, output, name=name: correct(name, mod, output))
        for name, layer in biased(module).items()
    ]
    try:
        with torch.no_grad():
            module.eval()(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return len(done)


def scale_outputs(layer: nn.Module, ratio: Tensor) -> bool:
    """Multiply each output channel's weights by `ratio` in place; False where channels share weights."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed:
        if layer.groups > 1:
            return False
        weight.mul_(ratio.reshape(1, -1, *[1] * (weight.ndim - 2)))
        return True
    weight.mul_(ratio.reshape(-1, *[1] * (weight.ndim - 1)))
    return True


def biased(module: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and dense layers that have a bias, by name."""
    return {n: m for n, m in module.named_modules() if isinstance(m, LAYERS) and m.bias is not None}


def _moments(layer: nn.Module, output: Tensor) -> Moments:
    axes = tuple(range(output.ndim - 1)) if isinstance(layer, nn.Linear) else (0, *range(2, output.ndim))
    mean = output.mean(dim=axes, keepdim=True)
    variance = (output - mean).square_().mean(dim=axes)  # `Tensor.std` over leading axes is several times as slow
    return mean.flatten(), variance.sqrt()
