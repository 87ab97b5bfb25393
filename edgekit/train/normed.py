"""BatchNorm for the time of training, where an exporter has folded it away.

A network whose BatchNorm is folded trains badly: rates that are right for it diverge. So each convolution gets a
BatchNorm that changes nothing at first (its scale and shift are the statistics that it removes), and afterwards it is
folded back into the convolution: names and shapes of the module are the same before and after.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgekit.prune.correct import biased, scale_outputs

_NORMS: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


class Normed(nn.Sequential):
    """A convolution and its temporary BatchNorm."""


def with_batchnorm(module: nn.Module, batches: Iterable[Tensor]) -> tuple[nn.Module, int]:
    """A copy of `module` with a neutral BatchNorm after every convolution over an image, and how many.

    Convolutions on single positions (the gates of squeeze-and-excite) and dense layers stay: training normalises
    them neither in common architectures.
    """
    result = copy.deepcopy(module).eval()
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}
    axes: dict[str, int] = {}

    def watch(name: str, output: Tensor) -> None:
        if output.ndim not in _NORMS or output[0, 0].numel() == 1:
            return
        flat = output.double().movedim(1, -1).reshape(-1, output.shape[1])
        count, total, square = sums.get(name, (0, torch.zeros(()), torch.zeros(())))
        sums[name] = (count + len(flat), total + flat.sum(0), square + (flat * flat).sum(0))
        axes[name] = output.ndim

    layers = biased(result)
    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: watch(name, output))
        for name, layer in layers.items()
        if isinstance(layer, nn.modules.conv._ConvNd) and not (layer.transposed and layer.groups > 1)
    ]
    try:
        with torch.no_grad():
            for inputs in batches:
                result(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name, (count, total, square) in sums.items():
        mean = total / count
        variance = (square / count - mean * mean).clamp_min(0)
        result.set_submodule(name, Normed(layers[name], _neutral(axes[name], mean, variance)).eval())
    return result, len(sums)


def _neutral(axes: int, mean: Tensor, variance: Tensor) -> nn.Module:
    norm = _NORMS[axes](len(mean))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
    return norm


def without_batchnorm(module: nn.Module) -> nn.Module:
    """A copy of `module` with every temporary BatchNorm folded into its convolution."""
    result = copy.deepcopy(module).eval()
    for name, pair in [(n, m) for n, m in result.named_modules() if isinstance(m, Normed)]:
        layer, norm = pair
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        bias = layer.bias
        assert isinstance(bias, Tensor)
        with torch.no_grad():
            ratio = norm.weight / (norm.running_var + norm.eps).sqrt()
            scale_outputs(layer, ratio)
            bias.copy_((bias - norm.running_mean) * ratio + norm.bias)
        result.set_submodule(name, layer)
    return result
