"""Operators with weights as torch's own modules: convolution, BatchNorm, dense layers; and pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.graph.torch_host import sym_max
from edgekit.graph.torch_step import Entry, Function, Operator, Step

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
TRANSPOSED: dict[int, type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
NORMS: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


class Window:
    """The attributes that convolutions and pools share, with their defaults: one entry a spatial axis."""

    def __init__(self, op: Operator, kernel: Sequence[int]) -> None:
        given = op.attributes
        self.axes = len(kernel)
        self.kernel = tuple(kernel)
        self.stride = tuple(given.get("strides", [1] * self.axes))
        self.dilation = tuple(given.get("dilations", [1] * self.axes))
        self.auto = given.get("auto_pad", "NOTSET")
        pads = given.get("pads", [0] * 2 * self.axes) if self.auto == "NOTSET" else [0] * 2 * self.axes
        self.before, self.after = tuple(pads[: self.axes]), tuple(pads[self.axes :])
        self.ceil = bool(given.get("ceil_mode", 0))

    @property
    def same(self) -> bool:
        """Whether padding depends on the input's extent."""
        return self.auto in ("SAME_UPPER", "SAME_LOWER")

    @property
    def symmetric(self) -> bool:
        """Whether torch's own padding can say it."""
        return not self.same and self.before == self.after

    def torch_pads(self) -> list[int]:
        """As `torch.nn.functional.pad` wants it: last axis first."""
        return [n for pair in reversed(list(zip(self.before, self.after, strict=True))) for n in pair]

    def pads(self, extents: Sequence[int]) -> list[int]:
        """The padding of an input with these spatial extents, last axis first."""
        if not self.same:
            return self.torch_pads()
        result: list[int] = []
        for extent, k, s, d in reversed(list(zip(extents, self.kernel, self.stride, self.dilation, strict=True))):
            total = sym_max(((extent + s - 1) // s - 1) * s + (k - 1) * d + 1 - extent, 0)
            less = total // 2
            result += [less, total - less] if self.auto == "SAME_UPPER" else [total - less, less]
        return result

    def pad(self, value: float = 0.0) -> nn.Module:
        """A module that pads explicitly."""
        if self.same:
            return SamePad(self, value)
        if self.axes == 2 and value == 0.0:
            return nn.ZeroPad2d((self.before[1], self.after[1], self.before[0], self.after[0]))
        return Function(F.pad, pad=self.torch_pads(), value=value)


class SamePad(nn.Module):
    """Pads so that `ceil(extent / stride)` windows fit."""

    def __init__(self, window: Window, value: float) -> None:
        super().__init__()
        self.window, self.value = window, value

    def forward(self, x: Tensor) -> Tensor:
        """`x` padded."""
        return F.pad(x, self.window.pads(x.shape[2:]), value=self.value)


def _hold(module: nn.Module, name: str, value: Tensor | None) -> None:
    """Put the initializer's own tensor into a module that was made on the meta device."""
    if value is None:
        return
    if name in module._parameters:
        module.register_parameter(name, value if isinstance(value, nn.Parameter) else nn.Parameter(value))
    else:
        module.register_buffer(name, value.detach() if isinstance(value, nn.Parameter) else value)


def _weight_shape(op: Operator) -> list[int]:
    shape = op.shape(1)
    extents = [d for d in shape or () if isinstance(d, int)]
    if shape is None or len(extents) != len(shape):
        raise op.refused("the shape of its weight is unknown")
    return extents


def convolution(op: Operator) -> Step:
    """Conv: torch's module when its weights are initializers, after an explicit pad where torch has no such padding."""
    extents = _weight_shape(op)
    window = Window(op, op.attributes.get("kernel_shape", extents[2:]))
    groups = op.attributes.get("group", 1)
    padding = window.before if window.symmetric else (0,) * window.axes
    pads = [] if window.symmetric else [window.pad()]
    weight, bias = op.parameter(1), op.parameter(2)
    if weight is None or (op.given(2) and bias is None):
        return Step(
            Function(_convolve, pad=pads[0] if pads else None, stride=window.stride, padding=padding,
                     dilation=window.dilation, groups=groups),
            tuple(range(len(op))),
        )  # fmt: skip
    kind: Any = CONVOLUTIONS.get(window.axes)
    if kind is None:
        raise op.refused(f"{window.axes} spatial axes")
    module = kind(
        extents[1] * groups, extents[0], window.kernel, window.stride, padding, window.dilation, groups,
        bias is not None, device="meta",
    )  # fmt: skip
    return Step([*pads, _weighted(module, weight, bias)], (0,), _names(op))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, pad: nn.Module | None, **given: Any) -> Tensor:
    functions: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    return functions[x.dim() - 2](x if pad is None else pad(x), weight, bias, **given)


def _weighted(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    _hold(module, "weight", weight)
    _hold(module, "bias", bias)
    return module


def _names(op: Operator, weight: int = 1, bias: int = 2) -> dict[str, str]:
    names = {op.node.input[weight]: "weight"}
    if op.given(bias):
        names[op.node.input[bias]] = "bias"
    return names


def transposed_convolution(op: Operator) -> Step:
    """ConvTranspose. Padding that torch lacks is cut off afterwards."""
    extents = _weight_shape(op)
    window = Window(op, op.attributes.get("kernel_shape", extents[2:]))
    groups = op.attributes.get("group", 1)
    extra = tuple(op.attributes.get("output_padding", [0] * window.axes))
    wanted = op.attributes.get("output_shape")
    fits = all(e < max(s, d) for e, s, d in zip(extra, window.stride, window.dilation, strict=True))
    plain = window.symmetric and wanted is None and fits
    weight, bias = op.parameter(1), op.parameter(2)
    kind: Any = TRANSPOSED.get(window.axes)
    if kind is None:
        raise op.refused(f"{window.axes} spatial axes")
    if weight is None or (op.given(2) and bias is None) or not plain:
        return Step(Function(_deconvolve, window=window, extra=extra, wanted=wanted, groups=groups), range(len(op)))
    module = kind(
        extents[0], extents[1] * groups, window.kernel, window.stride, window.before, extra, groups,
        bias is not None, window.dilation, device="meta",
    )  # fmt: skip
    return Step(_weighted(module, weight, bias), (0,), _names(op))


def _deconvolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    window: Window, extra: tuple[int, ...], wanted: list[int] | None, groups: int,
) -> Tensor:  # fmt: skip
    """Transposed convolution without padding, then cut or widened to what the padding asks for."""
    functions: dict[int, Callable[..., Tensor]] = {
        1: F.conv_transpose1d,
        2: F.conv_transpose2d,
        3: F.conv_transpose3d,
    }
    full = functions[window.axes](x, weight, None, stride=window.stride, groups=groups, dilation=window.dilation)
    pads: list[int] = []
    for axis in reversed(range(window.axes)):
        made, begin, end = full.shape[2 + axis], window.before[axis], window.after[axis]
        extent = made + extra[axis] - begin - end
        if wanted is not None or window.same:
            extent = wanted[axis] if wanted is not None else x.shape[2 + axis] * window.stride[axis]
            total = made + extra[axis] - extent
            half = total // 2
            begin = half if window.auto == "SAME_UPPER" else total - half
        pads += [-begin, extent + begin - made]
    result = F.pad(full, pads)
    return result if bias is None else result + bias.reshape(-1, *[1] * window.axes)


def batch_norm(op: Operator) -> Step:
    """BatchNormalization in inference form; the module re-estimates its statistics in training mode."""
    if op.attributes.get("training_mode", 0):
        raise op.refused("it is in training mode")
    scale, bias, mean, variance = (op.parameter(i) for i in range(1, 5))
    epsilon = op.attributes.get("epsilon", 1e-5)
    if scale is None or bias is None or mean is None or variance is None:
        return Step(Function(_normalised, epsilon=epsilon), range(5))
    kind: Any = NORMS.get(op.rank(0) or 4, nn.BatchNorm2d)
    module = kind(scale.numel(), epsilon, 1 - op.attributes.get("momentum", 0.9), device="meta")
    _hold(module, "weight", scale)
    _hold(module, "bias", bias)
    _hold(module, "running_mean", mean.detach())
    _hold(module, "running_var", variance.detach())
    module.num_batches_tracked = torch.zeros((), dtype=torch.long)
    places = ("weight", "bias", "running_mean", "running_var")
    return Step(module, (0,), dict(zip(op.node.input[1:5], places, strict=True)))


def _normalised(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


def gemm(op: Operator) -> Step:
    """Gemm: a linear layer where its weight is an initializer and alpha and beta are 1."""
    given = op.attributes
    weight, bias = op.parameter(1), op.parameter(2)
    plain = given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
    turned = not given.get("transB", 0)
    if plain and weight is not None and weight.dim() == 2 and (not turned or op.alone(1)):
        width = weight.shape[1] if turned else weight.shape[0]
        if not op.given(2) or (bias is not None and bias.shape == (width,)):
            return linear(op, turned)
    settings = {"alpha": given.get("alpha", 1.0), "beta": given.get("beta", 1.0)}
    turns = {"a_turned": bool(given.get("transA", 0)), "b_turned": bool(given.get("transB", 0))}
    return Step(Function(_gemm, **settings, **turns), range(len(op)))


def linear(op: Operator, turned: bool) -> Step:
    """A linear layer; `turned` when the initializer is `[in, out]`."""
    weight, bias = op.parameter(1), op.parameter(2)
    assert weight is not None
    if turned:
        weight = nn.Parameter(weight.detach().t().contiguous())
    module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    name = op.node.input[1]
    return Step(_weighted(module, weight, bias), (0,), _names(op), frozenset([name] if turned else []))


def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float, beta: float, a_turned: bool, b_turned: bool
) -> Tensor:
    result = (a.t() if a_turned else a) @ (b.t() if b_turned else b)
    result = result if alpha == 1.0 else result * alpha
    return result if c is None else result + (c if beta == 1.0 else c * beta)


def matmul(op: Operator) -> Step:
    """MatMul: a linear layer where the right side is a two-dimensional initializer of its own."""
    weight = op.parameter(1)
    if isinstance(weight, nn.Parameter) and weight.dim() == 2 and op.alone(1) and (op.rank(0) or 0) > 1:
        return linear(op, turned=True)
    return Step(Function(torch.matmul), (0, 1))


OPERATORS: dict[str, Entry] = {
    "BatchNormalization": batch_norm,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Gemm": gemm,
    "MatMul": matmul,
}
