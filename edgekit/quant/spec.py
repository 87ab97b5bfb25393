"""The backend-neutral result of quantization: ranges and scales, from which every backend's grid follows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Variant = Literal["affine", "symmetric", "reduced_range"]
"""`affine`: asymmetric 8-bit activations (ONNX Runtime, OpenVINO, LiteRT). `symmetric`: signed activations with
zero point 0 (TensorRT). `reduced_range`: affine with 7-bit weights (x86 without VNNI)."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(_Value):
    """The interval `[low, high]` of an activation tensor that the grid must cover, and who chose it."""

    low: float
    high: float
    calibrator: str
    fixed: bool = False


class PerTensor(_Value):
    """One symmetric scale for a whole weight."""

    kind: Literal["per_tensor"] = "per_tensor"
    scale: float


class PerChannel(_Value):
    """One symmetric scale for each slice of a weight along `axis`."""

    kind: Literal["per_channel"] = "per_channel"
    axis: int
    scales: tuple[float, ...]


class Grid(_Value):
    """A per-tensor integer grid: `real = scale * (q - zero_point)`, `q` in `[low, high]`, unsigned if affine."""

    scale: float
    zero_point: int
    low: int
    high: int


class QuantSpec(_Value):
    """What `quantize` decided. JSON beside the graph; names are those of the folded graph.

    `nodes` lists the operators that run in integers. `tensors` holds the range of every activation that gets
    Q/DQ; `weights` the scales of every quantized initializer (narrow range [-127, 127]); `ties` groups of
    activations that share one range (concat, pool, reshape); `keep_float` why a node stays float, per backend name
    or "*" for all. What a Relu or Clip right behind an operator reads has no range of its own: the integer grid of the
    activation's output does the clamping (a backend that needs one for it may take that of the output).
    """

    version: Literal[1] = 1
    precision: Literal["int8"] = "int8"
    nodes: tuple[str, ...]
    tensors: dict[str, Range]
    weights: dict[str, PerTensor | PerChannel]
    ties: tuple[tuple[str, ...], ...] = ()
    keep_float: dict[str, dict[str, str]] = Field(default_factory=dict)
    source: dict[str, str] = Field(default_factory=dict)

    def grid(self, tensor: str, variant: Variant) -> Grid:
        """The activation grid of `tensor`: u8 with a zero point for affine variants, s8 around zero for symmetric.

        The affine range is widened to hold zero exactly, so padding stays exact. A u8 grid with zero point z is
        the s8 grid with z - 128: three runtimes share it.
        """
        low, high = min(self.tensors[tensor].low, 0.0), max(self.tensors[tensor].high, 0.0)
        if variant == "symmetric":
            scale = float(np.float32(max(-low, high, 1e-12) / 127))
            return Grid(scale=scale, zero_point=0, low=-128, high=127)
        scale = float(np.float32(max(high - low, 1e-12) / 255))
        zero_point = int(np.clip(np.rint(-low / scale), 0, 255))
        return Grid(scale=scale, zero_point=zero_point, low=0, high=255)

    def is_float(self, node: str, backend: str) -> str | None:
        """The reason why `node` stays float in `backend`, or None."""
        return self.keep_float.get("*", {}).get(node) or self.keep_float.get(backend, {}).get(node)
