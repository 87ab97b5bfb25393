"""Reductions over axes, and positions of extremes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgekit.graph.torch_step import Entry, Function, Operator, Step

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(dim=axes, keepdim=keep)


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(dim=axes, keepdim=keep, dtype=x.dtype)


def _largest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.any(dim=axes, keepdim=keep) if x.dtype == torch.bool else x.amax(dim=axes, keepdim=keep)


def _smallest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.all(dim=axes, keepdim=keep) if x.dtype == torch.bool else x.amin(dim=axes, keepdim=keep)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keep, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _l2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep).sqrt()


def _square_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log()


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, dim=axes, keepdim=keep)


def _entry(function: Reduction) -> Entry:
    def build(op: Operator) -> Step:
        axes = op.static(1) if op.given(1) else op.attributes.get("axes")
        nothing = not axes and bool(op.attributes.get("noop_with_empty_axes", 0))
        keep = bool(op.attributes.get("keepdims", 1))
        return Step(Function(_over, function=function, axes=axes or None, keep=keep, nothing=nothing), (0,))

    return build


def _over(x: Tensor, function: Reduction, axes: list[int] | None, keep: bool, nothing: bool) -> Tensor:
    if nothing:
        # ONNX keeps the elementwise part of a reduction over no axes: reduce over a new one of extent 1.
        return function(x.unsqueeze(0), [0], False)
    if x.dim() == 0:
        return function(x[None], [0], False)
    return function(x, list(range(x.dim())) if axes is None else axes, keep)


def _position(function: Callable[..., Tensor]) -> Entry:
    def build(op: Operator) -> Step:
        given = op.attributes
        settings = {"axis": given.get("axis", 0), "keep": bool(given.get("keepdims", 1))}
        last = bool(given.get("select_last_index", 0))
        return Step(Function(_extreme, function=function, last=last, **settings), (0,))

    return build


def _extreme(x: Tensor, function: Callable[..., Tensor], axis: int, keep: bool, last: bool) -> Tensor:
    if last:
        return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
    return function(x, dim=axis, keepdim=keep)


def _running(op: Operator) -> Step:
    (axis,) = op.static(1) or [0]
    given = op.attributes
    settings = {"backwards": bool(given.get("reverse", 0)), "before": bool(given.get("exclusive", 0))}
    return Step(Function(_running_sum, axis=axis, **settings), (0,))


def _running_sum(x: Tensor, axis: int, backwards: bool, before: bool) -> Tensor:
    """The sum up to each position, or from it on; `before` leaves the position itself out."""
    x = x.flip(axis) if backwards else x
    total = x.cumsum(axis, dtype=x.dtype)
    total = total - x if before else total
    return total.flip(axis) if backwards else total


OPERATORS: dict[str, Entry] = {
    "ArgMax": _position(torch.argmax),
    "ArgMin": _position(torch.argmin),
    "CumSum": _running,
    "ReduceL1": _entry(_l1),
    "ReduceL2": _entry(_l2),
    "ReduceLogSum": _entry(_log_sum),
    "ReduceLogSumExp": _entry(_log_sum_exp),
    "ReduceMax": _entry(_largest),
    "ReduceMean": _entry(_mean),
    "ReduceMin": _entry(_smallest),
    "ReduceProd": _entry(_product),
    "ReduceSum": _entry(_sum),
    "ReduceSumSquare": _entry(_square_sum),
}
