"""Pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.graph.torch_layers import Window
from edgekit.graph.torch_step import Entry, Function, Operator, Step


def max_pool(op: Operator) -> Step:
    """MaxPool, with indices where they are asked for."""
    window = Window(op, op.attributes["kernel_shape"])
    small = all(p <= k // 2 for p, k in zip(window.before, window.kernel, strict=True))
    indices = len(op.node.output) > 1
    kinds: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
    if window.axes not in kinds:
        raise op.refused(f"{window.axes} spatial axes")
    if window.symmetric and small and not indices:
        return Step(kinds[window.axes](window.kernel, window.stride, window.before, window.dilation,
                                       ceil_mode=window.ceil), (0,))  # fmt: skip
    return Step(MaxPool(window, indices, bool(op.attributes.get("storage_order", 0))), (0,))


class MaxPool(nn.Module):
    """Maximum over windows with any padding; the second result is ONNX's index into the whole input."""

    def __init__(self, window: Window, indices: bool, column_major: bool) -> None:
        super().__init__()
        self.window, self.indices, self.column_major = window, indices, column_major

    def forward(self, x: Tensor) -> Any:
        """The maxima, or the maxima and their indices."""
        pads = _pads(self.window, x)
        lowest = torch.finfo(x.dtype).min if x.is_floating_point() else torch.iinfo(x.dtype).min
        padded = F.pad(x, pads, value=-torch.inf if x.is_floating_point() else lowest)
        functions: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
        if not x.is_floating_point():
            padded = padded.to(torch.float32)
        pooled, where = functions[self.window.axes](
            padded, self.window.kernel, self.window.stride, 0, self.window.dilation, return_indices=True
        )
        pooled = pooled.to(x.dtype)
        return (pooled, self._flat(where, x, padded, pads)) if self.indices else pooled

    def _flat(self, where: Tensor, x: Tensor, padded: Tensor, pads: list[int]) -> Tensor:
        """Index inside one padded plane -> index into the whole unpadded tensor."""
        places: list[Tensor] = []
        for axis in reversed(range(self.window.axes)):
            extent = padded.shape[2 + axis]
            places.insert(0, where % extent - pads[2 * (self.window.axes - 1 - axis)])
            where = where // extent
        order = range(self.window.axes)
        index = torch.zeros_like(where)
        for axis in reversed(order) if self.column_major else order:
            index = index * x.shape[2 + axis] + places[axis]
        plane = x[0, 0].numel()
        start = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * self.window.axes)
        return index + start * plane


def _pads(window: Window, x: Tensor) -> list[int]:
    """Explicit padding, last axis first, wide enough for the windows that ceil_mode adds."""
    pads = window.pads(x.shape[2:])
    if not window.ceil:
        return pads
    result = list(pads)
    for axis in range(window.axes):
        place = 2 * (window.axes - 1 - axis)
        extent, stride = x.shape[2 + axis], window.stride[axis]
        span = (window.kernel[axis] - 1) * window.dilation[axis] + 1
        count = -(-(extent + pads[place] + pads[place + 1] - span) // stride) + 1
        if (count - 1) * stride >= extent + pads[place]:
            count -= 1
        needed = (count - 1) * stride + span - extent - pads[place] - pads[place + 1]
        result[place + 1] = pads[place + 1] + max(needed, 0)
    return result


def average_pool(op: Operator) -> Step:
    """AveragePool: torch's module where it can say it."""
    window = Window(op, op.attributes["kernel_shape"])
    include = bool(op.attributes.get("count_include_pad", 0))
    small = all(p <= k // 2 for p, k in zip(window.before, window.kernel, strict=True))
    kinds: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
    if window.axes not in kinds:
        raise op.refused(f"{window.axes} spatial axes")
    if window.symmetric and small and all(d == 1 for d in window.dilation):
        pool = kinds[window.axes](window.kernel, window.stride, window.before, window.ceil, include)
        return Step(pool, (0,))
    return Step(Function(_average, window=window, include=include), (0,))


def _average(x: Tensor, window: Window, include: bool) -> Tensor:
    """Sums of windows divided by how many elements each covers."""
    functions: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    pads = _pads(window, x)
    own = window.pads(x.shape[2:])
    ones = torch.ones(1, 1, *window.kernel, dtype=x.dtype)
    counted = F.pad(torch.ones(1, 1, *x.shape[2:], dtype=x.dtype), own, value=1.0 if include else 0.0)
    counted = F.pad(counted, [a - b for a, b in zip(pads, own, strict=True)])
    planes = F.pad(x, pads).reshape(-1, 1, *[e + pads[2 * (window.axes - 1 - i)] + pads[2 * (window.axes - 1 - i) + 1]
                                             for i, e in enumerate(x.shape[2:])])  # fmt: skip
    settings = {"stride": window.stride, "dilation": window.dilation}
    sums = functions[window.axes](planes, ones, **settings)
    counts = functions[window.axes](counted, ones, **settings)
    return (sums / counts).reshape(x.shape[0], x.shape[1], *sums.shape[2:])


def global_average_pool(op: Operator) -> Step:
    """GlobalAveragePool."""
    return Step(nn.AdaptiveAvgPool2d(1) if op.rank(0) == 4 else Function(_global_mean), (0,))


def _global_mean(x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def global_max_pool(op: Operator) -> Step:
    """GlobalMaxPool."""
    return Step(Function(_global_max), (0,))


def _global_max(x: Tensor) -> Tensor:
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


OPERATORS: dict[str, Entry] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
}
