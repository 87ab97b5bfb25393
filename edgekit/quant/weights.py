"""Symmetric integer weights: one scale a channel, narrow range, and a bias that fits 32 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.quant.spec import PerChannel, PerTensor, Variant

WEIGHT_LIMIT: dict[Variant, int] = {"affine": 127, "symmetric": 127, "reduced_range": 64}
"""Largest magnitude of an integer weight. 7 bits keep u8 x s8 sums within 16 bits on x86 without VNNI."""

BIAS_LIMIT = 2**30
"""Half of what int32 holds, so that the sum of bias and products does not overflow either."""

_SMALLEST = float(np.finfo(np.float32).tiny)

Floats = npt.NDArray[np.float32]


def channel_scales(
    weight: npt.NDArray[Any],
    axis: int | None,
    *,
    bias: npt.NDArray[Any] | None = None,
    input_scale: float | None = None,
) -> PerTensor | PerChannel:
    """The scales `max|w| / 127` of a weight, grown where a 32-bit bias of scale `input_scale * scale` would overflow.

    A channel of zeros gets the smallest scale that its bias allows.
    """
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.abs(weight.astype(np.float64)).max(axis=others, initial=0.0)
    scales = np.maximum(peak / 127, _SMALLEST * 2**20)
    if bias is not None and input_scale is not None:
        need = np.abs(bias.astype(np.float64)).reshape(-1) / (input_scale * BIAS_LIMIT)
        scales = np.maximum(scales, need.max(initial=0.0) if axis is None or need.size != scales.size else need)
    # Rounding to float32 must not push the peak over 127: that would clip it by more than half a step.
    single = scales.astype(np.float32)
    if axis is None:
        return PerTensor(scale=float(single))
    return PerChannel(axis=axis, scales=tuple(float(s) for s in single))


def scale_array(scales: PerTensor | PerChannel, variant: Variant) -> Floats:
    """The scales of `variant`, shaped `[]` or `[channels]`."""
    values = scales.scale if isinstance(scales, PerTensor) else scales.scales
    array = np.asarray(values, np.float32)
    limit = WEIGHT_LIMIT[variant]
    return array if limit == 127 else (array * np.float32(127 / limit)).astype(np.float32)


def quantize_weight(weight: npt.NDArray[Any], scales: PerTensor | PerChannel, variant: Variant) -> npt.NDArray[np.int8]:
    """The integer weights of `variant`: the same bytes for every backend."""
    steps = scale_array(scales, variant)
    if isinstance(scales, PerChannel):
        steps = steps.reshape([-1 if i == scales.axis else 1 for i in range(weight.ndim)])
    limit = WEIGHT_LIMIT[variant]
    integers: npt.NDArray[np.int8] = np.clip(np.rint(weight.astype(np.float32) / steps), -limit, limit).astype(np.int8)
    return integers


def dequantize_weight(integers: npt.NDArray[np.int8], scales: PerTensor | PerChannel, variant: Variant) -> Floats:
    """The float weights that integer weights stand for."""
    steps = scale_array(scales, variant)
    if isinstance(scales, PerChannel):
        steps = steps.reshape([-1 if i == scales.axis else 1 for i in range(integers.ndim)])
    return (integers.astype(np.float32) * steps).astype(np.float32)


def quantize_bias(bias: npt.NDArray[Any], input_scale: float, scales: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
    """A 32-bit bias and its scale, the product of input and weight scale."""
    steps = (np.float32(input_scale) * scales).astype(np.float32)
    limit = 2**31 - 1
    integers = np.clip(np.rint(bias.astype(np.float64) / steps.astype(np.float64)), -limit, limit)
    return integers.astype(np.int32), steps
