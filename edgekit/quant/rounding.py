"""Rounding weights so that their errors cancel at the operator's output, instead of each to its nearest step.

`compensated` is closed-form: columns of the weight are rounded one after another, and what rounding one does to the
output is taken over, as well as it can be, by those that are still to come (Frantar et al. 2022, arXiv:2210.17323; it
is Babai's nearest plane for the lattice that the moments of the input span, which is the form used here).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.quant.layers import Layer
from edgekit.quant.moments import single_threaded, widths
from edgekit.quant.spec import PerChannel, PerTensor, QuantSpec, Variant
from edgekit.quant.weights import WEIGHT_LIMIT, dequantize_weight, quantize_weight, scale_array

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Moments = Mapping[str, Sequence[Floats]]

DAMPING = 0.01
"""Of the mean of the moments' diagonal, added to it: few samples say little about directions that they lack."""

BLOCK = 64
"""Columns that are rounded one by one before the rest hears of them in one matrix product."""


def compensated(chosen: Sequence[Layer], spec: QuantSpec, variant: Variant, moments: Moments) -> dict[str, Floats]:
    """Weights on the grid of `variant`, by initializer, of every layer that has moments.

    An output keeps nearest rounding where the other would not lessen its error on the same moments. So does a weight
    that several operators share. Each core takes a layer of its own: a linear algebra library that shares small
    matrices among its threads is slower than one thread, and ten times slower where another process wants a core.
    """
    with single_threaded(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return by_layer(chosen, spec, variant, moments, compensate, pool.map)


def compensate(weight: Floats, moment: Floats, limit: int) -> Floats:
    """Whichever errs less at each output: nearest rounding or the nearest plane. What is zero stays zero."""
    plane = np.where(weight == 0, 0, nearest_plane(weight, moment, limit))
    return better(weight, np.clip(np.rint(weight), -limit, limit), plane, moment)


def by_layer(
    chosen: Sequence[Layer],
    spec: QuantSpec,
    variant: Variant,
    moments: Moments,
    rounded: Callable[[Floats, Floats, int], Floats],
    mapped: Callable[..., Iterable[Floats | None]] = map,
) -> dict[str, Floats]:
    """Weights that `rounded` gives others than the nearest integers: it takes weights in steps, moments, a limit.

    `mapped` is `map`, or one that works on several layers at once.
    """
    names = Counter(layer.weight for layer in chosen)
    ready = [
        layer
        for layer in chosen
        if layer.weight in spec.weights and layer.node.name in moments and names[layer.weight] == 1
    ]
    done = mapped(lambda layer: _rounded(layer, spec, variant, moments[layer.node.name], rounded), ready)
    return {layer.weight: weight for layer, weight in zip(ready, done, strict=True) if weight is not None}


def _rounded(
    layer: Layer,
    spec: QuantSpec,
    variant: Variant,
    moments: Sequence[Floats],
    rounded: Callable[[Floats, Floats, int], Floats],
) -> Floats | None:
    """The layer's weight, block after block of its inputs; None where it is what the nearest integers give."""
    scales, parts, start = spec.weights[layer.weight], [], 0
    matrix: Floats = (layer.matrix(layer.value) / step_matrix(layer, scales, variant)).astype(np.float32)
    for moment, width in zip(moments, widths(layer), strict=True):
        parts.append(rounded(matrix[:, :, start : start + width], moment, WEIGHT_LIMIT[variant]))
        start += width
    integers = layer.unmatrix(np.concatenate(parts, axis=2)).astype(np.int8)
    if np.array_equal(integers, quantize_weight(layer.value, scales, variant)):
        return None
    return dequantize_weight(integers, scales, variant)


def step_matrix(layer: Layer, scales: PerTensor | PerChannel, variant: Variant) -> Floats:
    """The step of each weight, to broadcast against `Layer.matrix`: `[groups, outputs, 1]`."""
    steps = scale_array(scales, variant)
    if not steps.ndim:
        return steps.reshape(1, 1, 1)
    return steps.reshape(layer.groups, -1, 1)


def output_error(change: Floats, moment: Floats) -> Array:
    """The mean square that a change `[groups, outputs, k]` of the weights makes at each output, `[groups, outputs]`."""
    error: Array = np.einsum("gok,gok->go", np.matmul(change, moment), change)
    return error


def better(exact: Floats, one: Floats, other: Floats, moment: Floats) -> Floats:
    """Output by output, whichever of two roundings errs less."""
    errs = output_error(one - exact, moment) <= output_error(other - exact, moment)
    return np.where(errs[:, :, None], one, other)


def nearest_plane(weight: Floats, moment: Floats, limit: int) -> Floats:
    """Integers near `weight` `[groups, outputs, k]`, which is in steps, that lessen the output's error.

    `moment` is `[groups, k, k]`. Columns whose inputs are strongest go first: the others can still make up for them.
    """
    k = weight.shape[2]
    energy = np.einsum("gkk->gk", moment).astype(np.float64)
    order = np.argsort(energy, axis=1, kind="stable")  # the last column is rounded first
    groups = np.arange(len(moment))[:, None, None]
    damped = moment[groups, order[:, :, None], order[:, None, :]].astype(np.float64)
    damped[:, range(k), range(k)] += DAMPING * energy.mean(axis=1, keepdims=True) + 1e-12
    upper = np.linalg.cholesky(damped).transpose(0, 2, 1)
    pull = (upper / np.einsum("gkk->gk", upper)[:, :, None]).astype(np.float32)
    # Column by column means row by row here, `[k, groups, outputs]`: what the loop touches lies together.
    target = np.take_along_axis(weight, np.broadcast_to(order[:, None, :], weight.shape), 2).transpose(2, 0, 1).copy()
    rounded, error = np.empty_like(target), np.zeros_like(target)
    for end in range(k, 0, -BLOCK):
        start = max(0, end - BLOCK)
        wanted = target[start:end] + _pulled(pull[:, start:end, end:], error[end:])
        for column in range(end - 1, start - 1, -1):
            move = _pulled(pull[:, column : column + 1, column + 1 : end], error[column + 1 : end])[0]
            value = np.clip(np.rint(wanted[column - start] + move), -limit, limit)
            rounded[column] = value
            error[column] = target[column] - value
    back = np.argsort(order, axis=1, kind="stable")
    return np.take_along_axis(rounded.transpose(1, 2, 0), np.broadcast_to(back[:, None, :], weight.shape), 2)


def _pulled(pull: Floats, error: Floats) -> Floats:
    """What errors `[columns, groups, outputs]` ask of other columns by `pull` `[groups, others, columns]`."""
    if len(pull) == 1:
        moved: Floats = np.matmul(pull[0], error[:, 0])[:, None]
    else:
        moved = np.matmul(pull, error.transpose(1, 0, 2)).transpose(1, 0, 2)
    return moved
