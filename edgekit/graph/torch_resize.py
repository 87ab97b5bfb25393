"""Resize: torch's interpolation where it computes the same, else ONNX's definition axis by axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.graph.torch_host import to_list
from edgekit.graph.torch_step import Operator, Step


def resize(op: Operator) -> Step:
    """Resize by constant scales, or to sizes that may be shape arithmetic."""
    scales, sizes = op.constant(2), op.constant(3)
    wanted = 3 if op.given(3) else 2
    constant = sizes if op.given(3) else scales
    if constant is not None:
        fixed = [float(v) for v in constant.flat] if wanted == 2 else [int(v) for v in constant.flat]
        return Step(Resize(op, sized=wanted == 3, fixed=fixed), (0,))
    return Step(Resize(op, sized=wanted == 3, fixed=None), (0, wanted))


class Resize(nn.Module):
    """One Resize operator: `fixed` are its scales (or sizes, when `sized`), else they come as a second input."""

    def __init__(self, op: Operator, *, sized: bool, fixed: Sequence[float] | None) -> None:
        super().__init__()
        given = op.attributes
        self.mode = given.get("mode", "nearest")
        self.place = given.get("coordinate_transformation_mode", "half_pixel")
        self.nearest = given.get("nearest_mode", "round_prefer_floor")
        self.cubic = float(given.get("cubic_coeff_a", -0.75))
        self.exclude = bool(given.get("exclude_outside", 0))
        self.outside = float(given.get("extrapolation_value", 0.0))
        self.antialias = bool(given.get("antialias", 0))
        self.policy = given.get("keep_aspect_ratio_policy", "stretch")
        self.axes = given.get("axes")
        self.sized, self.fixed = sized, None if fixed is None else list(fixed)
        if self.place == "tf_crop_and_resize":
            box = op.constant(1)
            if box is None:
                raise op.refused("its region must be constant")
            self.box = [float(v) for v in box.flat]

    def forward(self, x: Tensor, wanted: Any = None) -> Tensor:
        """`x` resized."""
        numbers = self.fixed if wanted is None else to_list(wanted)
        assert numbers is not None
        axes = [a % x.dim() for a in self.axes] if self.axes is not None else list(range(x.dim()))
        scales = [1.0] * x.dim()
        sizes: list[Any] = list(x.shape)
        for axis, number in zip(axes, numbers, strict=True):
            sizes[axis] = number if self.sized else _scaled(x.shape[axis], float(number))
            scales[axis] = number / x.shape[axis] if self.sized else float(number)
        if self.sized and self.policy != "stretch":
            pick = min if self.policy == "not_larger" else max
            scale = pick(scales[axis] for axis in axes)
            for axis in axes:
                scales[axis], sizes[axis] = scale, int(scale * x.shape[axis] + 0.5)
        if self._is_plain(x, sizes, scales, axes):
            return self._interpolate(x, sizes, scales)
        for axis in axes:
            same = sizes[axis] is x.shape[axis] or (isinstance(sizes[axis], int) and sizes[axis] == x.shape[axis])
            if not same or scales[axis] != 1.0 or self.place == "tf_crop_and_resize":
                x = self._along(x, axis, sizes[axis], scales[axis], axes.index(axis), len(axes))
        return x

    def _is_plain(self, x: Tensor, sizes: list[Any], scales: list[float], axes: list[int]) -> bool:
        """Whether `torch.nn.functional.interpolate` computes exactly this."""
        resized = set(axes) - {0, 1}
        outer = all(_is_one(scales[a]) for a in axes if a < 2)
        if not x.is_floating_point() or x.dim() not in (3, 4, 5) or not outer or not resized:
            return False
        if self.antialias or self.exclude or self.policy != "stretch":
            return False
        if self.mode == "nearest":
            whole = not self.sized and all(float(scales[a]).is_integer() for a in resized)
            if self.place == "asymmetric" and self.nearest == "floor":
                return whole
            # Repeating every element a whole number of times is the same under these two rules as well.
            half = self.place == "half_pixel" and self.nearest in ("round_prefer_floor", "round_prefer_ceil")
            return whole and half and all(scales[a] >= 1 for a in resized)
        exact = self.sized or all(float(scales[a]).is_integer() for a in resized)
        known = self.place in ("half_pixel", "pytorch_half_pixel", "align_corners")
        if self.mode == "linear":
            return exact and known and not (self.place == "pytorch_half_pixel" and not self._large(sizes))
        return exact and x.dim() == 4 and self.cubic == -0.75 and self.place in ("half_pixel", "align_corners")

    @staticmethod
    def _large(sizes: list[Any]) -> bool:
        return all(not isinstance(size, int) or size > 1 for size in sizes[2:])

    def _interpolate(self, x: Tensor, sizes: list[Any], scales: list[float]) -> Tensor:
        modes = {"linear": {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()], "cubic": "bicubic"}
        mode = modes.get(self.mode, "nearest")
        corners = None if mode == "nearest" else self.place == "align_corners"
        if self.sized:
            return F.interpolate(x, size=sizes[2:], mode=mode, align_corners=corners)
        factors = [float(scale) for scale in scales[2:]]
        return F.interpolate(x, None, factors, mode, corners, recompute_scale_factor=False)

    def _along(self, x: Tensor, axis: int, size: Any, scale: float, order: int, count: int) -> Tensor:
        """One axis by ONNX's definition: a weighted sum of neighbours of every output position."""
        extent = x.shape[axis]
        position: Tensor = self._position(torch.arange(size, dtype=torch.float32), extent, size, scale, order, count)
        if self.mode == "nearest":
            return _mask(x.index_select(axis, self._round(position).clamp(0, extent - 1)), position, extent, axis, self)
        index, weight = self._neighbours(position, extent, scale)
        parts = x.index_select(axis, index.clamp(0, extent - 1).reshape(-1))
        parts = parts.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])
        weight = weight.to(x.dtype).reshape([*index.shape, *[1] * (x.dim() - axis - 1)])
        return _mask((parts * weight).sum(dim=axis + 1), position, extent, axis, self)

    def _position(self, i: Tensor, extent: Any, size: Any, scale: float, order: int, count: int) -> Any:
        """Where each output element lies in the input's coordinates, a tensor `[size]`."""
        if self.place == "asymmetric":
            return i / scale
        if self.place == "align_corners":
            last = (size if self.sized else extent * scale) - 1
            return i * ((extent - 1) / last) if size > 1 else i * 0
        if self.place == "pytorch_half_pixel" and not size > 1:
            return i * 0 - 0.5
        if self.place == "half_pixel_symmetric":
            adjustment = size / (scale * extent)
            centre = extent / 2
            return centre * (1 - adjustment) + (i + 0.5) / scale - 0.5
        if self.place == "tf_crop_and_resize":
            start, end = self.box[order], self.box[order + count]
            if size > 1:
                return start * (extent - 1) + i * ((end - start) * (extent - 1) / (size - 1))
            return i * 0 + 0.5 * (start + end) * (extent - 1)
        return (i + 0.5) / scale - 0.5

    def _round(self, position: Tensor) -> Tensor:
        rules = {
            "floor": position.floor(),
            "ceil": position.ceil(),
            "round_prefer_floor": (position - 0.5).ceil(),
            "round_prefer_ceil": (position + 0.5).floor(),
        }
        return rules[self.nearest].to(torch.int64)

    def _neighbours(self, position: Tensor, extent: int, scale: float) -> tuple[Tensor, Tensor]:
        """Indices and weights `[size, taps]`."""
        stretch = 1 / scale if self.antialias and scale < 1 else 1.0
        reach = int(-(-((1 if self.mode == "linear" else 2) * stretch) // 1))
        base = position.floor().to(torch.int64)
        index = base[:, None] + torch.arange(1 - reach, reach + 1)
        distance = ((index - position[:, None]) / stretch).abs()
        weight = (1 - distance).clamp(min=0) if self.mode == "linear" else self._cubic(distance)
        if self.exclude:
            weight = weight * ((index >= 0) & (index < extent))
        if self.exclude or self.antialias:
            weight = weight / weight.sum(dim=1, keepdim=True)
        return index, weight

    def _cubic(self, d: Tensor) -> Tensor:
        a = self.cubic
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _scaled(extent: Any, scale: float) -> Any:
    """`floor(extent * scale)`, in integers where the scale is whole, so that it exports."""
    return extent * int(scale) if scale.is_integer() else int(extent * scale)


def _is_one(scale: Any) -> bool:
    return isinstance(scale, int | float) and scale == 1


def _mask(x: Tensor, position: Tensor, extent: int, axis: int, op: Resize) -> Tensor:
    """tf_crop_and_resize: positions outside of the input get the extrapolation value."""
    if op.place != "tf_crop_and_resize":
        return x
    outside = (position < 0) | (position > extent - 1)
    return torch.where(outside.reshape(-1, *[1] * (x.dim() - axis - 1)), torch.full_like(x, op.outside), x)
