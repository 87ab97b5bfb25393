"""The file that ships: a stored zip that Python can execute, with model, manifest, golden samples and the agent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekit.model import Precision, Role


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorEntry(_Value):
    """An input or output of the shipped model; `step` is the quantization step of a quantized output."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    step: float | None = None


class PreprocessEntry(_Value):
    """Raw sample to model input, as the agent does it: see `edgekit.data.Preprocess`."""

    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    layout: str = ""
    to: str = ""


class Manifest(_Value):
    """`manifest.json` of a bundle, schema version 1."""

    schema_version: Literal[1] = 1
    model: str
    target: str
    backend: str
    role: Role
    precision: Precision
    status: Literal["built", "emitted"]
    entry: str
    runner: dict[str, Any] = Field(default_factory=dict)
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    preprocess: PreprocessEntry = PreprocessEntry()
    tolerance: dict[str, float]
    """How far `selftest` may stray from the golden outputs: `{"steps": 1}` for quantized outputs, `{"absolute": 1e-4}`."""
    members: dict[str, str] = Field(default_factory=dict)
    """sha256 of every other member of the zip, by name."""
    source_sha256: str = ""
    stages: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    data: dict[str, str] = Field(default_factory=dict)
    licences: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle. `model_bytes` counts the compiled model's files alone."""

    path: Path
    manifest: Manifest
    sha256: str
    model_bytes: int

    @property
    def size_bytes(self) -> int:
        """The whole file."""
        return self.path.stat().st_size
