"""The network being compressed: a torch module while weights are trained, one ONNX graph from `quantize` on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx
    from torch import nn

    from edgekit.quant.spec import QuantSpec, Variant

Dim = int | str
"""A fixed extent, or the name of a dynamic axis."""

EXTENT = 64
"""What a dynamic axis other than the batch is taken as where a number is needed (trying, export, counting)."""

Role = Literal["reference", "float", "quantized"]
Precision = Literal["fp32", "fp16", "int8", "int8_dynamic", "int8_weights", "int4_weights"]
"""`int8` is static: activations are integers on a calibrated grid. `int8_dynamic` finds their ranges while it runs.
`int8_weights` and `int4_weights` keep the weights alone as integers."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a network: numpy dtype name and shape, dynamic axes by name.

    >>> TensorSpec("image", "float32", ("batch", 1, 28, 28)).sized(4)
    (4, 1, 28, 28)
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def sized(self, batch: int) -> tuple[int, ...]:
        """The shape with a dynamic first axis set to `batch` and every other dynamic axis to `EXTENT`."""
        return tuple(d if isinstance(d, int) else batch if i == 0 else EXTENT for i, d in enumerate(self.shape))

    @property
    def batched(self) -> bool:
        """Whether the first axis is dynamic."""
        return bool(self.shape) and isinstance(self.shape[0], str)


@dataclass(frozen=True)
class Step:
    """What one stage did: its settings, its time, and how the model measures after it.

    `snr_db` is the output's signal-to-noise ratio against the reference; `metrics` the task's metrics on the
    host after the stage; `curve` one entry an epoch where the stage trains; `notes` plain lines for the user;
    `warnings` those that stand at the top of the report; `sensitivity` one entry a layer where the stage looked at
    each alone (`edgekit.quant.mixed.Row`); `refused` says by backend why the quantized network should not ship there.
    """

    name: str
    config: Mapping[str, Any]
    seconds: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    snr_db: float | None = None
    agreement: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    macs: int | None = None
    parameters: int | None = None
    curve: tuple[Mapping[str, float], ...] = ()
    sensitivity: tuple[Mapping[str, Any], ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """One normalised ONNX graph with, after `quantize`, the QuantSpec that says how to lower it.

    `reference` is the untouched original (accuracy oracle and teacher); the original itself has none.
    `corrections` holds, per grid variant, the initializers whose values are others than in `proto` there: biases that
    make up for rounding, weights that were rounded by learning. They are float32 and lie on the variant's grid.
    """

    name: str
    proto: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    quant: QuantSpec | None = None
    history: tuple[Step, ...] = ()
    original: OnnxModel | None = None
    corrections: Mapping[Variant, Mapping[str, npt.NDArray[np.float32]]] = field(default_factory=dict)

    @property
    def reference(self) -> OnnxModel:
        """The untouched original."""
        return self.original or self

    def lowered(self, variant: Variant, backend: str | None = None) -> onnx.ModelProto:
        """The graph that emitters of `variant` get: `proto`, or a copy with the variant's corrections.

        Those are for static integers: a `backend` that gets another form of the model gets `proto`.
        """
        static = backend is None or self.quant is None or self.quant.form(backend) == "int8"
        changed = self.corrections.get(variant) if static else None
        if not changed:
            return self.proto
        from edgekit.graph.tools import with_initializers

        return with_initializers(self.proto, changed)

    def after(self, step: Step) -> OnnxModel:
        """The same network with one more step in its history."""
        return replace(self, history=(*self.history, step))


@dataclass(frozen=True, kw_only=True)
class TorchModel:
    """A trainable module. Stages copy it before they change it; `module` is in evaluation mode at rest."""

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    reference: OnnxModel
    history: tuple[Step, ...] = ()

    def after(self, step: Step) -> TorchModel:
        """The same network with one more step in its history."""
        return replace(self, history=(*self.history, step))


Model = TorchModel | OnnxModel


def as_onnx(model: Model) -> OnnxModel:
    """The model as one ONNX graph: itself, or what a torch module exports to. Only the latter imports torch."""
    if isinstance(model, OnnxModel):
        return model
    from edgekit.graph.crossing import to_onnx

    return to_onnx(model)


def trail(model: Model) -> str:
    """The stages behind a model, for messages: `prune -> distill`, or "" for the original."""
    return " -> ".join(step.name for step in model.history)
