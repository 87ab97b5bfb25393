"""Rounding with a learned step: what a quantizer and its dequantizer do to a tensor, and a gradient through it.

The gradient is that of learned step size quantization (Esser et al. 2020, arXiv:1902.08153, eq. 3 and 5): values inside
the grid pass theirs straight through, values beyond it none; the step gets `round(v) - v` inside and the end of the
grid beyond, with `v = x / step`, times `1 / sqrt(values * largest integer)`. A zero point moves both ends (Bhalgat et
al. 2020, arXiv:2004.09576); it stays as it was calibrated, for zero must remain a point of the grid.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class _Round(torch.autograd.Function):
    """`step * clamp(round(x / step), low, high)`; the gradient of `step` is multiplied by `scale`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
        ratio = x / step
        ctx.save_for_backward(ratio, step)
        ctx.settings = low, high, scale
        return ratio.round().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ratio, step), (low, high, scale), (grad,) = ctx.saved_tensors, ctx.settings, grads
        # Whole-tensor operators that torch has vectorised: with masks and `where` this takes four times as long.
        passed = torch.ops.aten.hardtanh_backward(grad, ratio, low, high)
        learned = None
        if ctx.needs_input_grad[1]:
            slope = ratio.round().clamp_(low, high).mul_(grad).addcmul_(passed, ratio, value=-1)
            learned = slope.sum_to_size(step.shape).mul_(scale)
        return passed, learned, None, None, None


def fake_quantize(x: Tensor, step: Tensor, low: int, high: int, scale: float = 1.0) -> Tensor:
    """`x` rounded to `step * [low ... high]`, half to even as in ONNX; `step` is a number or broadcasts to `x`.

    >>> fake_quantize(torch.tensor([-3.0, 0.5, 0.76, 9.0]), torch.tensor(0.5), 0, 15).tolist()
    [0.0, 0.5, 1.0, 7.5]
    """
    result: Tensor = _Round.apply(x, step, low, high, scale)  # type: ignore[no-untyped-call]
    return result


class FakeQuantize(nn.Module):
    """The grid `factor * step * [low ... high]` of one activation, or of one weight with a step for each channel.

    What is learned is the `growth` of the step since its `start`, so that one learning rate suits steps of every size.
    The activations of a tie group share it: its gradient is the sum of theirs. `axis` is that of a weight's channels.
    `weight` says how many values share a step: all of a channel, or those of one sample.
    """

    def __init__(
        self, start: Tensor, growth: Tensor, ends: tuple[int, int], *,
        factor: float = 1.0, axis: int | None = None, weight: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.start: Tensor
        self.growth: Tensor
        self.register_buffer("start", start)
        if isinstance(growth, nn.Parameter):
            self.register_parameter("growth", growth)
        else:
            self.register_buffer("growth", growth)
        self.register_buffer("ends", torch.tensor(ends))
        (self.low, self.high), self.factor, self.axis, self.weight = ends, factor, axis, weight

    @property
    def step(self) -> Tensor:
        """The step as the QuantSpec has it."""
        return self.start * self.growth

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid."""
        step = self.step * self.factor if self.factor != 1.0 else self.step
        if self.axis is not None:
            step = step.reshape([-1 if i == self.axis else 1 for i in range(x.dim())])
        shared = x.numel() // (step.numel() if self.weight else max(len(x), 1) if x.dim() else 1)
        scale = 1 / math.sqrt(max(shared, 1) * max(-self.low, self.high, 1))
        return fake_quantize(x, step, self.low, self.high, scale)

    def extra_repr(self) -> str:
        """The grid's ends."""
        return f"low={self.low}, high={self.high}"


class Logarithm(nn.Module):
    """Logits from probabilities, for networks that end in a softmax."""

    def forward(self, probabilities: Tensor) -> Tensor:
        """Their natural logarithm, finite everywhere."""
        return probabilities.clamp(min=1e-20).log()
