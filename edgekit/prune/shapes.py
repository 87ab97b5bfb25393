"""Saving and rebuilding a module whose layers have shrunk, without pickled code: tensors decide the shapes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.graph.exporting import copied

Shapes = dict[str, list[int]]


def state(module: nn.Module) -> tuple[dict[str, Tensor], Shapes]:
    """The tensors of `module` (contiguous copies, fit for safetensors) and their shapes (fit for JSON)."""
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}
    return tensors, {name: list(value.shape) for name, value in tensors.items()}


def restore(fresh: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `fresh` that holds `tensors`, with layers cut to fit. The inverse of `state`.

    Raises:
        UsageError: the tensors are of another model.
    """
    own = fresh.state_dict()
    strange = sorted(set(own) - set(tensors)) + sorted(n for n in set(tensors) - set(own) if not n.endswith("bias"))
    bigger = sorted(n for n in own if n in tensors and tensors[n].ndim != own[n].ndim)
    if strange or bigger:
        raise UsageError(f"The saved weights are of another model: {', '.join((strange + bigger)[:3])}. Start anew.")
    result = copied(fresh)
    for name, tensor in tensors.items():
        owner, attribute = owner_of(result, name)
        replace_tensor(owner, attribute, tensor.clone())
    fit_attributes(result)
    return result


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds the tensor `name`, and its attribute there."""
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def replace_tensor(owner: nn.Module, attribute: str, value: Tensor) -> Tensor:
    """Put `value` in the place of a parameter or buffer (a parameter that is missing is added); what stands there."""
    if attribute in owner._buffers:
        owner._buffers[attribute] = value
        return value
    old = owner._parameters.get(attribute)
    made = nn.Parameter(value, requires_grad=True if old is None else old.requires_grad)
    owner._parameters[attribute] = made
    return made


def fit_attributes(module: nn.Module) -> None:
    """Set every layer's size attributes from the shapes of its tensors."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            _fit_conv(layer)
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            tensor = layer.weight if layer.affine else layer.running_mean
            layer.num_features = layer.num_features if tensor is None else len(tensor)
        elif isinstance(layer, nn.PReLU):
            layer.num_parameters = len(layer.weight)


def _fit_conv(layer: nn.modules.conv._ConvNd) -> None:
    first, second = layer.weight.shape[:2]
    if layer.transposed:
        layer.in_channels, layer.out_channels = first, second * layer.groups
        return
    if layer.groups > 1 and second == 1:  # depthwise: as many groups as inputs
        layer.groups = first // max(layer.out_channels // layer.groups, 1)
    layer.in_channels, layer.out_channels = second * layer.groups, first


def parameters(module: nn.Module) -> int:
    """How many trainable numbers the module holds."""
    return sum(p.numel() for p in module.parameters())


def float_bytes(module: nn.Module) -> int:
    """Bytes of weights in a float32 file: BatchNorm is folded, its shift is what remains of it."""
    norms = (part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine)
    return 4 * (parameters(module) - sum(norm.weight.numel() for norm in norms))


def has_batchnorm(module: nn.Module) -> bool:
    """Whether the module normalises by running statistics of its batches."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None for m in module.modules())


def laid_out(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The module with its weights laid out so: `channels_last` trains faster on processors. Values are the same."""
    result: nn.Module = module.to(memory_format=layout)  # type: ignore[call-overload]
    return result
