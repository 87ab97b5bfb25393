"""What is known of a device kind: processor, memory, and the runtimes it can have."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekit.model import Precision
from edgekit.quant.spec import Variant


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cpu(_Value):
    """A processor: `features` in the words of the kernel's cpuinfo."""

    model: str
    cores: int
    features: tuple[str, ...] = ()


class Gpu(_Value):
    """A graphics processor. `compute` is NVIDIA's compute capability, such as "8.7"."""

    model: str
    compute: str
    memory_mb: int | None = None


class BackendFacts(_Value):
    """What one runtime can do on a target. `built_on`: "host" (ahead of time) or "device" (by the agent)."""

    min_version: str | None = None
    max_opset: int | None = None
    min_glibc: str | None = None
    runtimes: tuple[str, ...] = ()
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    grid: Variant = "affine"
    built_on: Literal["host", "device"] = "host"


class Budget(_Value):
    """What a model should keep to on this target, unless a recipe says otherwise."""

    size_mb: float | None = None
    latency_ms: float | None = None


class Target(_Value):
    """One device kind, as a YAML file under `targets/` says it."""

    name: str
    arch: Literal["x86_64", "aarch64"]
    description: str = ""
    cpu: Cpu
    gpu: Gpu | None = None
    memory_mb: tuple[int, ...] = ()
    python: tuple[str, ...] = ()
    backends: dict[str, BackendFacts]
    budget: Budget = Budget()
    sources: tuple[str, ...] = Field(min_length=1)
