"""The crossings between a torch module and an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from edgekit.data import drawn
from edgekit.errors import BuildError
from edgekit.extras import require
from edgekit.graph.exporting import copied, exporting, reason, without_fast_path
from edgekit.graph.normalise import MIN_OPSET, normalise
from edgekit.graph.tools import tensor_specs
from edgekit.graph.torch_view import torch_view
from edgekit.model import OnnxModel, TensorSpec, TorchModel

if TYPE_CHECKING:
    import onnx
    from torch import nn


def to_torch(model: OnnxModel) -> TorchModel:
    """The model as its torch view, to be pruned and trained.

    Raises:
        BuildError: the view lacks an operator of the graph; it is named.
    """
    return TorchModel(
        name=model.name,
        module=torch_view(normalise(model.proto)),
        inputs=model.inputs,
        outputs=model.outputs,
        reference=model.reference,
        history=model.history,
    )


def to_onnx(model: TorchModel) -> OnnxModel:
    """The module as one normalised graph with the same names of inputs and outputs. `model` is not changed."""
    proto = _export(model.module, model.inputs, model.name, [output.name for output in model.outputs])
    inputs, outputs = tensor_specs(proto)
    return OnnxModel(
        name=model.name,
        proto=proto,
        inputs=inputs,
        outputs=outputs,
        history=model.history,
        original=model.reference,
    )


def export_module(module: nn.Module, inputs: tuple[TensorSpec, ...], name: str) -> OnnxModel:
    """A module as an ONNX model of its own. Its output is called `output`, several `output_0`, `output_1`, ...

    It is exported in evaluation mode, in which BatchNorm is folded into convolutions.

    Raises:
        BuildError: the module cannot be exported, with the exporter's reason.
    """
    proto = _export(module, inputs, name, None)
    found_inputs, outputs = tensor_specs(proto)
    return OnnxModel(name=name, proto=proto, inputs=found_inputs, outputs=outputs)


def example_inputs(inputs: Sequence[TensorSpec], batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random tensors that fit `inputs`; two samples, so that no exporter takes the batch for a constant 1."""
    return tuple(map(torch.from_numpy, drawn(inputs, batch, seed)))


def _export(module: nn.Module, inputs: Sequence[TensorSpec], name: str, outputs: list[str] | None) -> onnx.ModelProto:
    # Where weights learn torch lays the result of attention out otherwise, and some views of it cannot be exported.
    module = copied(module).cpu().requires_grad_(False)
    examples = example_inputs(inputs)
    if outputs is None:
        with torch.no_grad():
            result = module(*examples)
        count = len(tree_leaves(result))
        outputs = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    dynamic = tuple({i: d for i, d in enumerate(spec.shape) if isinstance(d, str)} for spec in inputs)
    settings: dict[str, Any] = {
        "input_names": [spec.name for spec in inputs],
        "output_names": outputs,
        "opset_version": MIN_OPSET,
        "dynamo": True,
        "dynamic_shapes": dynamic if any(dynamic) else None,
        "verbose": False,
    }
    require("onnxscript", extra="onnx", why="exporting a module to ONNX")
    try:
        with exporting(), without_fast_path():
            program = torch.onnx.export(module, examples, **settings)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # its passes raise whatever they like
        raise BuildError(f"The model {name!r} cannot be exported to ONNX: {reason(error)}.") from error
    assert program is not None
    proto = program.model_proto
    proto.graph.name = name
    return normalise(proto)
