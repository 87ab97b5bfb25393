"""What to do with a model. A stage is its own configuration, and acts."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from edgekit.context import RunContext
from edgekit.model import Model

STAGES: dict[str, str] = {
    "prune": "edgekit.stages.prune:Prune",
    "factorize": "edgekit.stages.factorize:Factorize",
    "sparsify": "edgekit.stages.sparsify:Sparsify",
    "distill": "edgekit.stages.distill:Distill",
    "quantize": "edgekit.stages.quantize:Quantize",
    "qat": "edgekit.stages.qat:Qat",
}
"""Name in a recipe -> class. Third parties add theirs under the entry point group `edgekit.stages`."""


@runtime_checkable
class Stage(Protocol):
    """A frozen pydantic value with the settings of one recipe entry.

    A class that works on what another stage makes says which by `after: ClassVar[str]`, one whose work others would
    undo names these by `not_before: ClassVar[tuple[str, ...]]`, and a recipe is held to it. One whose result depends on
    the grids of the recipe's targets says so by `by_grid: ClassVar[bool]`, and is done again for others.
    """

    kind: ClassVar[str]
    trains: ClassVar[bool]
    """Whether it needs a `TorchModel` (the pipeline then gives it the torch view of an ONNX source)."""

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """Its settings as plain values."""

    def apply(self, model: Model, ctx: RunContext) -> Model:
        """A new model with this stage's `Step` appended; `model` itself is never changed."""
