"""What an entry of the operator tables is given (`Operator`) and gives (`Step`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import onnx
from torch import Tensor, nn

from edgekit.errors import BuildError
from edgekit.graph.tools import Array
from edgekit.model import Dim


class Operator(Protocol):
    """One ONNX node: see `edgekit.graph.torch_view.Op`."""

    node: onnx.NodeProto
    type: str
    attributes: dict[str, Any]
    opset: int

    def __len__(self) -> int:
        """The number of inputs, absent ones included."""

    def given(self, index: int) -> bool:
        """Whether the node has an `index`-th input."""

    def constant(self, index: int) -> Array | None:
        """The value of an input that is an initializer, else None."""

    def static(self, index: int, default: Sequence[int] | None = None) -> list[int] | None:
        """The integers of an input that must be constant; `default` where the node has no such input."""

    def shape(self, index: int) -> tuple[Dim | None, ...] | None:
        """The inferred shape of an input, or None."""

    def rank(self, index: int) -> int | None:
        """The number of axes of an input, or None."""

    def parameter(self, index: int) -> Tensor | None:
        """The tensor of an input that is an initializer (shared by all its users), else None."""

    def alone(self, index: int) -> bool:
        """Whether no other node reads this input."""

    def refused(self, why: str) -> BuildError:
        """The error for an attribute or input that the view cannot express."""


class Step:
    """One operator as modules called in a row, the first on the node's `inputs`.

    `weights` maps initializer names to attribute paths inside the last module; `transposed` those that it holds
    transposed.
    """

    def __init__(
        self,
        module: nn.Module | Sequence[nn.Module],
        inputs: Sequence[int],
        weights: Mapping[str, str] | None = None,
        transposed: frozenset[str] = frozenset(),
    ) -> None:
        self.modules = (module,) if isinstance(module, nn.Module) else tuple(module)
        self.inputs = tuple(inputs)
        self.weights = dict(weights or {})
        self.transposed = transposed


class Function(nn.Module):
    """A function of tensors with fixed settings, as a module: so that every operator has a name of its own."""

    def __init__(self, function: Callable[..., Any], /, **settings: Any) -> None:
        super().__init__()
        self.function = function
        self.settings = settings

    def forward(self, *tensors: Any) -> Any:
        """The function's result."""
        return self.function(*tensors, **self.settings)

    def extra_repr(self) -> str:
        """The function and its settings."""
        name = getattr(self.function, "__name__", str(self.function))
        return ", ".join([name, *(f"{key}={value}" for key, value in self.settings.items())])


Entry = Callable[[Operator], Step]
"""An entry of an operator table."""


def item(values: Sequence[Any], index: int) -> Any:
    """One of an operator's results."""
    return values[index]
