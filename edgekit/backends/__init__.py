"""How a model becomes a runtime's own file, and what the runtime will do with every node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.model import OnnxModel, Precision, Role
from edgekit.target import BackendFacts, Target

BACKENDS: dict[str, str] = {
    "onnxruntime": "edgekit.backends.onnxruntime:OnnxRuntime",
    "openvino": "edgekit.backends.openvino:OpenVino",
    "litert": "edgekit.backends.litert:LiteRT",
    "tensorrt": "edgekit.backends.tensorrt:TensorRT",
}
"""Name in a recipe -> class. Third parties add theirs under the entry point group `edgekit.backends`."""


@dataclass(frozen=True)
class Availability:
    """Whether this backend can compile and run on this machine, and if not, why and what to type."""

    compiles: bool
    runs: bool
    version: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Job:
    """One thing to build: `model` for `target` in `role`. Files go under `work`, which is empty.

    `samples` are preprocessed inputs `[n, ...]` (a few), in the order of `model.inputs`, for checks after the build.
    """

    model: OnnxModel
    role: Role
    precision: Precision
    target: Target
    facts: BackendFacts
    work: Path
    samples: tuple[npt.NDArray[np.generic], ...]


@dataclass(frozen=True)
class Placement:
    """What the runtime does with the graph's operators: how many run in 8-bit integers, and why the others don't."""

    int8_nodes: int
    float_nodes: int
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A compiled (or, where the device must compile, emitted) model.

    `files` maps names inside the bundle to paths; `entry` is the one that the runner loads. `runner` is what the
    agent's runner of this backend needs beside it (plain JSON values). `steps` is the quantization step of each
    output, or None for a float output. `golden` are positions in the job's samples that suit `selftest` (None: all
    do): where a file runs on several runtimes, those on which they agree.
    """

    status: Literal["built", "emitted"]
    files: Mapping[str, Path]
    entry: str
    placement: Placement
    runner: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[float | None, ...] = ()
    notes: tuple[str, ...] = ()
    golden: tuple[int, ...] | None = None


class Backend(Protocol):
    """One runtime. Stateless; importing the module imports nothing heavy."""

    name: ClassVar[str]

    def availability(self) -> Availability:
        """What is possible here, found without importing the runtime where metadata tells."""

    def build(self, job: Job) -> Built:
        """Emit and compile.

        Raises:
            BuildError: the model has operators that this backend lacks (named), or the result does not load.
            MissingDependencyError: the runtime's extra is not installed.
        """
