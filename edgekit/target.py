"""What is known of a device kind: processor, memory, and the runtimes it can have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekit.agent import state
from edgekit.errors import UsageError
from edgekit.extras import unknown
from edgekit.model import Precision
from edgekit.quant.spec import Variant


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cpu(_Value):
    """A processor: `features` in the words of the kernel's cpuinfo; `a|b` means that one of them is there."""

    model: str
    cores: int
    features: tuple[str, ...] = ()


class Gpu(_Value):
    """A graphics processor. `compute` is NVIDIA's compute capability, such as "8.7"."""

    model: str
    compute: str
    memory_mb: int | None = None


class BackendFacts(_Value):
    """What one runtime can do on a target. `built_on`: "host" (ahead of time) or "device" (by the agent).

    `runtimes` are the packages that can run it there; `min_version` is that of the oldest, `max_opset` what it reads.
    """

    min_version: str | None = None
    max_opset: int | None = None
    min_glibc: str | None = None
    runtimes: tuple[str, ...] = ()
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    grid: Variant = "affine"
    built_on: Literal["host", "device"] = "host"


class Budget(_Value):
    """What a model should keep to on this target: a guide; what must hold is said by the gate of a recipe."""

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
    max_temperature_c: float | None = None
    """What no part of the chip may exceed while it is measured; None where no vendor states where it slows down."""
    backends: dict[str, BackendFacts]
    budget: Budget = Budget()
    sources: tuple[str, ...] = Field(min_length=1)


def targets_folder() -> Path:
    """Where the targets that come with edgekit lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_targets"
    return installed if installed.is_dir() else package.parent / "targets"


def list_targets() -> tuple[str, ...]:
    """The names of all targets that come with edgekit, sorted.

    >>> "raspberry-pi-5" in list_targets()
    True
    """
    return tuple(sorted(file.stem for file in targets_folder().glob("*.yaml")))


def load_target(name: str | Path) -> Target:
    """A target by its name, or from a YAML file of your own (a path that ends in `.yaml` or `.yml`).

    >>> load_target("raspberry-pi-5").cpu.model
    'cortex-a76'

    Raises:
        UsageError: no such target, or a file that does not describe one (with file and line).
    """
    if str(name).endswith((".yaml", ".yml")):
        return _read(Path(name))
    return _load_named(str(name))


def fitting(arch: str, features: Collection[str]) -> Target | None:
    """The target named after an architecture that asks most of a processor with these features, None where none fits.

    >>> fitting("x86_64", ("avx2", "fma")).name, fitting("x86_64", ("avx2", "fma", "avx_vnni")).name
    ('x86-64-no-vnni', 'x86-64')
    """
    named = [load_target(name) for name in list_targets() if name.startswith(arch.replace("_", "-"))]
    fits = [one for one in named if not lacking(one, features)]
    return max(fits, key=lambda one: len(one.cpu.features), default=None)


def lacking(target: Target, features: Collection[str]) -> list[str]:
    """What a processor with these features lacks of the target's."""
    return [feature for feature in target.cpu.features if set(features).isdisjoint(feature.split("|"))]


def overflows(target: Target, arch: str, features: Sequence[str]) -> bool:
    """Whether sums of 8-bit products overflow on a processor with these features, and not where the target says.

    >>> overflows(load_target("x86-64"), "x86_64", ["avx2", "fma"])
    True
    >>> overflows(load_target("x86-64-no-vnni"), "x86_64", ["avx2", "fma"])
    False
    """
    its = [one for each in target.cpu.features for one in each.split("|")]
    return state.saturates(arch, features) and not state.saturates(target.arch, its)


def overflows_here(target: Target) -> bool:
    """Whether they do on this machine."""
    here = state.machine()
    return overflows(target, here["arch"], here["features"])


@cache
def _load_named(name: str) -> Target:
    if name not in list_targets():
        raise UsageError(unknown("target", name, list_targets()) + " Or give the path of a YAML file of your own.")
    return _read(targets_folder() / f"{name}.yaml")


def _read(path: Path) -> Target:
    from edgekit.yamlfile import read_yaml

    document = read_yaml(path, "target")
    return document.validate(Target, document.value)
