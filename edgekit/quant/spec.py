"""The backend-neutral result of quantization: ranges and scales, from which every backend's grid follows."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgekit.errors import UsageError

Variant = Literal["affine", "symmetric", "reduced_range"]
"""`affine`: asymmetric 8-bit activations (ONNX Runtime, OpenVINO, LiteRT). `symmetric`: signed activations with
zero point 0 (TensorRT). `reduced_range`: affine with 7-bit weights (x86 without VNNI)."""


VERSION: Literal[1] = 1
"""Of the QuantSpec's JSON. Goes up where an older edgekit would misread a newer file."""

_LARGEST = float(np.finfo(np.float32).max)

Form = Literal["int8", "int8_dynamic", "int8_weights", "int4_weights", "fp16"]
"""How a model is quantized: see `edgekit.model.Precision`."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _singles(values: tuple[float, ...]) -> tuple[float, ...]:
    if values and min(values) <= 0:
        raise ValueError(f"a scale must be above zero, got {min(values)}")
    if values and max(values) > _LARGEST:
        raise ValueError(f"a scale must be a float32, got {max(values)}")
    return tuple(np.asarray(values, np.float32).tolist())


Scale = Annotated[float, AfterValidator(lambda value: _singles((value,))[0])]
"""A positive float32."""
Scales = Annotated[tuple[float, ...], AfterValidator(_singles)]


class Range(_Value):
    """The interval `[low, high]` of an activation tensor that the grid must cover, and who chose it."""

    low: float = Field(ge=-_LARGEST, le=_LARGEST)
    high: float = Field(ge=-_LARGEST, le=_LARGEST)
    calibrator: str
    fixed: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low {self.low} lies above high {self.high}")
        return self


class PerTensor(_Value):
    """One symmetric scale for a whole weight."""

    kind: Literal["per_tensor"] = "per_tensor"
    scale: Scale


class PerChannel(_Value):
    """One symmetric scale for each slice of a weight along `axis`."""

    kind: Literal["per_channel"] = "per_channel"
    axis: int = Field(ge=0)
    scales: Scales


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
    activation's output does the clamping (a backend that needs one for it may take that of the output). `precision` is
    what the recipe asks for, `forms` what a backend gets instead; `tables` the scales of the rows that a Gather looks
    up in an embedding, which are stored in 8 bits.
    """

    version: Literal[1] = VERSION
    precision: Form = "int8"
    forms: dict[str, Form] = Field(default_factory=dict)
    nodes: tuple[str, ...]
    tensors: dict[str, Range]
    weights: dict[str, Annotated[PerTensor | PerChannel, Field(discriminator="kind")]]
    tables: dict[str, PerChannel] = Field(default_factory=dict)
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

    def form(self, backend: str) -> Form:
        """How `backend` gets the model."""
        return self.forms.get(backend, self.precision)

    def is_float(self, node: str, backend: str) -> str | None:
        """The reason why `node` stays float in `backend`, or None."""
        return self.keep_float.get("*", {}).get(node) or self.keep_float.get(backend, {}).get(node)

    def to_json(self) -> str:
        """For people and for `from_json`: an entry a line, no number longer than it takes to read it back exactly."""
        fields = self.model_dump(mode="json")
        for weight in fields["weights"].values():
            for key in ("scale", "scales"):
                if key in weight:
                    weight[key] = _Shortest(weight[key])
        return _spread(fields, 2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the QuantSpec") -> QuantSpec:
        """What `to_json` wrote.

        Raises:
            UsageError: no QuantSpec, one of a newer version, or one with values that make no grid; `where` says whose.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{where} is no JSON: {error}.") from error
        version = fields.get("version") if isinstance(fields, dict) else None
        if not isinstance(version, int):
            raise UsageError(f"{where} is no QuantSpec: it has no version.")
        if version > VERSION:
            raise UsageError(
                f"{where} has version {version}, and this edgekit reads versions up to {VERSION}. "
                "Upgrade it: pip install -U edgekit-toolchain"
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"] if part not in ("per_channel", "per_tensor"))
            raise UsageError(f"{where}: {place or 'as a whole'}: {first['msg']}.") from error


class _Shortest:
    """Float32 numbers, written with the digits that tell them from other float32 numbers."""

    def __init__(self, value: float | list[float]) -> None:
        values = np.asarray(value, np.float32)
        self.text = f"[{', '.join(map(str, values))}]" if values.ndim else str(values[()])


def _inline(value: Any) -> str:
    if isinstance(value, _Shortest):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_inline(item)}" for key, item in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _spread(value: Any, levels: int, indent: str = "") -> str:
    """JSON whose outer `levels` stand one entry a line; what lies deeper stands in one. Reasons get a line each."""
    if not levels or not isinstance(value, dict | list) or not value:
        return _inline(value)
    inner = f"{indent} "
    if isinstance(value, dict):
        deeper = {key: levels + (key == "keep_float") for key in value}
        entries = [f"{json.dumps(key)}: {_spread(item, deeper[key] - 1, inner)}" for key, item in value.items()]
    else:
        entries = [_spread(item, levels - 1, inner) for item in value]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n{inner}" + f",\n{inner}".join(entries) + f"\n{indent}{end}"
