"""What a quantized bundle carries of its quantization, for those who ask later why it is as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from edgekit.quant.spec import QuantSpec

if TYPE_CHECKING:
    from edgekit.model import OnnxModel

MEMBER = "quant.json"
"""Its name in a bundle."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Operator(_Value):
    """An operator of the float graph that was quantized. `inputs` are its activations, without constants."""

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Record(_Value):
    """`quant.json`, version 1: the float graph's operators in order, and the QuantSpec without its weights' scales."""

    version: Literal[1] = 1
    operators: tuple[Operator, ...]
    spec: QuantSpec

    @classmethod
    def of(cls, model: OnnxModel) -> Record | None:
        """The record of a quantized model, None for one that is float."""
        if model.quant is None:
            return None
        graph = model.proto.graph
        constant = {tensor.name for tensor in graph.initializer}
        operators = tuple(
            Operator(
                name=node.name,
                type=node.op_type,
                inputs=tuple(name for name in node.input if name and name not in constant),
                outputs=tuple(name for name in node.output if name),
            )
            for node in graph.node
        )
        return cls(operators=operators, spec=model.quant.model_copy(update={"weights": {}, "tables": {}}))

    def makers(self) -> dict[str, Operator]:
        """The operator behind every tensor."""
        return {name: operator for operator in self.operators for name in operator.outputs}
