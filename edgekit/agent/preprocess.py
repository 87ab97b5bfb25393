"""Raw samples to model input: affine in float32, per channel or one for all, then the layout. Numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def preprocess(raw: Any, scale: Sequence[float], offset: Sequence[float], layout: str, to: str) -> Any:
    """`raw * scale + offset` as float32, moved from `layout` to `to`.

    Args:
        raw: samples `[N, ...]` of any number type.
        scale: one value, or one a channel.
        offset: like `scale`.
        layout: axes of `raw`, such as "NHW", "NHWC" or "NCHW"; "" for data that is not images.
        to: axes of the result; a channel axis that `raw` lacks is added. "" keeps the layout.

    Raises:
        ValueError: the numbers of axes or channels do not fit, or a layout names other axes.
    """
    check(raw.shape, scale, offset, layout, to)
    values = np.asarray(raw, dtype=np.float32)
    if layout and "C" not in layout:
        values, layout = values[..., np.newaxis], layout + "C"
    if len(scale) > 1 or len(offset) > 1:
        spread = [-1 if axis == "C" else 1 for axis in layout]
        values = values * np.asarray(scale, np.float32).reshape(spread) + np.asarray(offset, np.float32).reshape(spread)
    elif scale[0] != 1.0 or offset[0] != 0.0:
        values = values * np.float32(scale[0]) + np.float32(offset[0])
    if to and to != layout:
        if "C" not in to:
            values, layout = values.squeeze(layout.index("C")), layout.replace("C", "")
        values = values.transpose([layout.index(axis) for axis in to])
    return np.ascontiguousarray(values)


def check(shape: Sequence[int], scale: Sequence[float], offset: Sequence[float], layout: str, to: str) -> None:
    """Raise `ValueError` unless samples of `shape` can be preprocessed with these settings."""
    if not layout:
        if len(scale) > 1 or len(offset) > 1 or to:
            raise ValueError("scale and offset per channel, and a target layout, need the layout of the raw samples")
        return
    if len(shape) != len(layout):
        raise ValueError(f"samples of shape {list(shape)} have {len(shape)} axes, layout {layout!r} has {len(layout)}")
    if to and set(to) - {"C"} != set(layout) - {"C"}:
        raise ValueError(f"layout {layout!r} cannot become {to!r}: they name different axes")
    channels = shape[layout.index("C")] if "C" in layout else 1
    if to and "C" not in to and channels != 1:
        raise ValueError(f"layout {to!r} has no channel axis, the samples have {channels} channels")
    for name, values in (("scale", scale), ("offset", offset)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} values, the samples have {channels} channels")
