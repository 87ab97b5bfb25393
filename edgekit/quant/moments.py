"""Second moments of what weighted operators multiply, from a sample of positions: `E[x x^T]` over patches `x`.

With them the error that rounded weights make at an operator's output is a quadratic form, `dw^T E[x x^T] dw`, and
needs no data any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.quant.layers import Layer
from edgekit.quant.view import attribute

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

PATCHES = (256, 768)
"""So many patches of an operator's input are looked at, the more the wider it is: see `Moments.enough`."""

EACH = 16
"""So many patches at most come from one sample, where there are samples enough."""

TOGETHER = 2**21
"""Bytes of patches that are summed up in one product: few at a time would cost as much."""

WIDEST = 1152
"""An operator with more inputs times taps than this has its moments in blocks of whole channels, at most so wide."""

Crop = tuple[tuple[int, int, int], ...]
"""Start, end and step on each spatial axis; empty for the whole tensor."""


@dataclass
class Moments:
    """`E[x x^T]` of one layer, summed up as patches come in; memory does not grow with them."""

    layer: Layer
    count: int = 0
    sums: list[Floats] = field(default_factory=list)
    waiting: list[Floats] = field(default_factory=list)

    @cached_property
    def widths(self) -> list[int]:
        """Of the layer's blocks."""
        return widths(self.layer)

    @property
    def full(self) -> bool:
        """Whether more patches would tell little more."""
        return self.count >= self.enough

    @cached_property
    def enough(self) -> int:
        """Twelve patches for each of the inputs times taps, within `PATCHES`, and half as many again at least."""
        widest = max(self.widths)
        return max(int(np.clip(12 * widest, *PATCHES)), int(1.5 * widest))

    def add(self, piece: Array, wanted: int, *, padded: bool) -> None:
        """Take about `wanted` of the patches in a piece of the layer's input."""
        if self.full:
            return
        rows = patches(self.layer, piece, wanted, padded=padded)
        self.waiting.append(rows)
        self.count += rows.shape[1]
        if self.full or len(self.waiting) * rows.nbytes >= TOGETHER:
            self._settle()

    def _settle(self) -> None:
        if not self.waiting:
            return
        rows = self.waiting[0] if len(self.waiting) == 1 else np.concatenate(self.waiting, axis=1)
        self.waiting.clear()
        edges = np.cumsum([0, *self.widths])
        for i, (start, end) in enumerate(itertools.pairwise(edges)):
            part = rows[:, :, start:end]
            product = np.matmul(part.transpose(0, 2, 1), part)
            if i < len(self.sums):
                self.sums[i] += product
            else:
                self.sums.append(product)

    def result(self) -> list[Floats]:
        """The moments `[groups, k, k]`, block after block of the layer's inputs; none without any patch."""
        self._settle()
        return [part / np.float32(self.count) for part in self.sums]


def single_threaded() -> AbstractContextManager[Any]:
    """Linear algebra on the thread that asks for it, for as long as the context lasts."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def widths(layer: Layer) -> list[int]:
    """How wide the blocks of a layer's moments are: its columns of `Layer.matrix`, whole channels together."""
    columns = layer.matrix(layer.value).shape[2]
    taps = int(np.prod(layer.value.shape[2:], dtype=int))
    most = max(WIDEST // taps, 1) * taps
    return [min(most, columns - start) for start in range(0, columns, most)]


def patches(layer: Layer, x: Array, wanted: int, *, padded: bool = True) -> Floats:
    """About `wanted` of the patches that `layer` multiplies, `[groups, patches, inputs * taps]`, on a regular grid.

    Without `padded` the operator's own padding is left out: `x` is a piece from the middle of its input.
    """
    if layer.node.op_type in ("Gemm", "MatMul"):
        flat = x.reshape(-1, x.shape[-1])
        return np.ascontiguousarray(flat[:: max(1, len(flat) // wanted)], np.float32)[None]
    kernel = layer.value.shape[2:]
    rank = len(kernel)
    plain = max(kernel) == 1 and not any(attribute(layer.node, "pads", [0]))
    if plain and layer.groups == 1 and max(attribute(layer.node, "strides", [1])) == 1:
        rows = x.reshape(*x.shape[:2], -1)[:, :, :: max(1, x[:, 0].size // wanted)]
        return np.ascontiguousarray(rows.transpose(0, 2, 1), np.float32).reshape(1, -1, x.shape[1])
    strides = attribute(layer.node, "strides", [1] * rank)
    dilations = attribute(layer.node, "dilations", [1] * rank)
    if padded:
        pads = padding(layer.node, x.shape[2:], kernel, strides, dilations)
        x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    extents = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, extents, axis=tuple(range(2, 2 + rank)))
    steps: Any = tuple(slice(None, None, step) for step in (1, 1, *strides, *dilations))
    picked: Array = windows[steps]
    side = max(1, round((wanted / len(x)) ** (1 / rank)))
    thin = tuple(slice(None, None, -(-size // side)) for size in picked.shape[2 : 2 + rank])
    picked = picked[(slice(None), slice(None), *thin)]
    # A regular grid is a view, and the patches are one copy: picking them one by one takes three times as long.
    grouped = picked.reshape(len(x), layer.groups, -1, *picked.shape[2:])
    ordered = grouped.transpose(1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank))
    count = len(x) * int(np.prod(picked.shape[2 : 2 + rank]))
    return np.ascontiguousarray(ordered, np.float32).reshape(layer.groups, count, -1)


def padding(
    node: onnx.NodeProto, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """The zeros before and after each spatial axis, `[before..., after...]`, `auto_pad` worked out."""
    rank = len(kernel)
    auto = attribute(node, "auto_pad", b"NOTSET")
    if auto in (b"NOTSET", b""):
        return list(attribute(node, "pads", [0] * 2 * rank))
    if auto == b"VALID":
        return [0] * 2 * rank
    before, after = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        less, more = total // 2, total - total // 2
        before.append(more if auto == b"SAME_LOWER" else less)
        after.append(less if auto == b"SAME_LOWER" else more)
    return before + after


def crop(sizes: Sequence[int], readers: Sequence[Layer], each: int) -> Crop:
    """What is read back of a tensor with these spatial sizes: all of it where that is little."""
    if not sizes or any(layer.node.op_type in ("Gemm", "MatMul") for layer in readers):
        return ()
    side = int(np.ceil(each ** (1 / len(sizes))))
    kernels = [layer.value.shape[2:] for layer in readers]
    if all(max(kernel) == 1 for kernel in kernels):
        return tuple((min(size - 1, size // (2 * side)), size, -(-size // side)) for size in sizes)
    found = []
    for axis, size in enumerate(sizes):
        need = 1
        for layer, kernel in zip(readers, kernels, strict=True):
            stride = attribute(layer.node, "strides", [1] * len(sizes))[axis]
            dilation = attribute(layer.node, "dilations", [1] * len(sizes))[axis]
            need = max(need, (side - 1) * stride + (kernel[axis] - 1) * dilation + 1)
        if size < 2 * need:
            return ()
        found.append(((size - need) // 2, (size - need) // 2 + need, 1))
    return tuple(found)
