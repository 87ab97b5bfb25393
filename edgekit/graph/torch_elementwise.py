"""Operators that compute every element by itself, and activations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.graph.torch_step import Entry, Function, Operator, Step


def _function(function: Callable[..., Any], **settings: Any) -> Entry:
    """An operator that is one function of all its inputs."""

    def build(op: Operator) -> Step:
        return Step(Function(function, **settings), range(len(op)))

    return build


def _module(kind: Callable[[], nn.Module]) -> Entry:
    """An operator of one input that torch has a module for."""

    def build(_: Operator) -> Step:
        return Step(kind(), (0,))

    return build


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(base, exponent).to(base.dtype)


def _reduce(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def apply(*values: Tensor) -> Tensor:
        return functools.reduce(function, values)

    return apply


def _mean(*values: Tensor) -> Tensor:
    return functools.reduce(torch.add, values) / len(values)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def modulo(op: Operator) -> Step:
    """Mod: the sign of the divisor, or of the dividend with fmod."""
    return Step(Function(torch.fmod if op.attributes.get("fmod", 0) else torch.remainder), (0, 1))


def clip(op: Operator) -> Step:
    """Clip: ReLU6 by its name, other constant bounds as numbers."""
    low, high = op.constant(1), op.constant(2)
    if (op.given(1) and low is None) or (op.given(2) and high is None):
        return Step(Function(_clip), range(len(op)))
    bounds = tuple(None if bound is None else bound.item() for bound in (low, high))
    if bounds == (0.0, 6.0):
        return Step(nn.ReLU6(), (0,))
    if bounds == (None, None):
        return Step(nn.Identity(), (0,))
    return Step(Function(torch.clamp, min=bounds[0], max=bounds[1]), (0,))


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def hard_sigmoid(op: Operator) -> Step:
    """HardSigmoid: max(0, min(1, alpha x + beta))."""
    alpha, beta = op.attributes.get("alpha", 0.2), op.attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return Step(nn.Hardsigmoid(), (0,))
    return Step(Function(_hard_sigmoid, alpha=alpha, beta=beta), (0,))


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def gelu(op: Operator) -> Step:
    """Gelu."""
    return Step(nn.GELU(op.attributes.get("approximate", "none")), (0,))


def leaky_relu(op: Operator) -> Step:
    """LeakyRelu."""
    return Step(nn.LeakyReLU(op.attributes.get("alpha", 0.01)), (0,))


def elu(op: Operator) -> Step:
    """Elu."""
    return Step(nn.ELU(op.attributes.get("alpha", 1.0)), (0,))


def softmax(op: Operator) -> Step:
    """Softmax along one axis."""
    return Step(nn.Softmax(op.attributes.get("axis", -1)), (0,))


def log_softmax(op: Operator) -> Step:
    """LogSoftmax along one axis."""
    return Step(nn.LogSoftmax(op.attributes.get("axis", -1)), (0,))


def prelu(_: Operator) -> Step:
    """PRelu with a slope that broadcasts."""
    return Step(Function(_prelu), (0, 1))


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.clamp(x, min=0) + slope * torch.clamp(x, max=0)


OPERATORS: dict[str, Entry] = {
    # Elementwise, one input
    "Abs": _function(torch.abs),
    "Ceil": _function(torch.ceil),
    "Cos": _function(torch.cos),
    "Erf": _function(torch.erf),
    "Exp": _function(torch.exp),
    "Floor": _function(torch.floor),
    "HardSwish": _module(nn.Hardswish),
    "Identity": _module(nn.Identity),
    "Log": _function(torch.log),
    "Mish": _module(nn.Mish),
    "Neg": _function(torch.neg),
    "Not": _function(torch.logical_not),
    "Reciprocal": _function(torch.reciprocal),
    "Relu": _module(nn.ReLU),
    "Round": _function(torch.round),
    "Sigmoid": _module(nn.Sigmoid),
    "Sign": _function(torch.sign),
    "Sin": _function(torch.sin),
    "Softplus": _module(nn.Softplus),
    "Sqrt": _function(torch.sqrt),
    "Tanh": _module(nn.Tanh),
    # Elementwise, several inputs
    "Add": _function(torch.add),
    "And": _function(torch.logical_and),
    "Div": _function(_divide),
    "Equal": _function(torch.eq),
    "Greater": _function(torch.gt),
    "GreaterOrEqual": _function(torch.ge),
    "Less": _function(torch.lt),
    "LessOrEqual": _function(torch.le),
    "Max": _function(_reduce(torch.maximum)),
    "Mean": _function(_mean),
    "Min": _function(_reduce(torch.minimum)),
    "Mod": modulo,
    "Mul": _function(torch.mul),
    "Or": _function(torch.logical_or),
    "Pow": _function(_power),
    "Sub": _function(torch.sub),
    "Sum": _function(_reduce(torch.add)),
    "Where": _function(_where),
    "Xor": _function(torch.logical_xor),
    # Activations with settings
    "Clip": clip,
    "Elu": elu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "LeakyRelu": leaky_relu,
    "LogSoftmax": log_softmax,
    "PRelu": prelu,
    "Softmax": softmax,
}
